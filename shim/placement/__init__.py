"""The placement plan: figures that `keepwarm build` measured, by hardware, llama.cpp build and files.

`plan_file` reads and writes it, `plan_entry` is one model's part, and `from_plan` makes placements of it
without opening a model. `build_plan` measures; no other module here does.
"""
