"""The plan: what `keepwarm build` measured, on disk, keyed by hardware, llama.cpp build and files.

`file` reads and writes it, `hardware` says what machine this is, `entry` is one model's part, `use`
makes placements of it without opening a model. `build` measures; nothing else here does.
"""
