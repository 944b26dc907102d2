"""The closed form: what a model would take, from the numbers of its header alone.

Pure: `ModelShape` in, bytes per device and part out (`closed_form`). Formulas name the file of llama.cpp
that they follow. Weights, KV cache and state are exact; compute buffers are where the graph is known
(`graph`), and have a bound that is never low elsewhere (`compute_bound`).
"""
