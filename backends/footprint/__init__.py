"""A model's bytes before it is loaded: llama.cpp's dry measurement, cached, and placements.

`inspect` is the entry: it takes a file and engine arguments, and returns a placement with bytes per device.
`probe` runs in its own process and imports nothing from here.
"""
