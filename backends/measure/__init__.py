"""Measuring the machine, once: what decode reads per second, what loads and starts cost.

`measure_machine` runs llama.cpp's own programs on models that are generated for it.
"""
