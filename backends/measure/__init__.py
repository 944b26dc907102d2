"""Measures the machine once: the bytes that decode reads per second, and the cost of loads and starts.

`measure_machine` runs llama.cpp's own programs on models that are generated for it.
"""
