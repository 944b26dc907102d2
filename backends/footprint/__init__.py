"""What a model takes before it is loaded: llama.cpp's dry measurement, cached, and placements.

`inspect` is the door: a file and engine arguments in, a placement with bytes per device out.
`probe` runs in its own process and imports nothing from here.
"""
