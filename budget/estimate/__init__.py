"""The closed form: what a model would take, from the numbers of its header alone.

Pure: `ModelShape` in, bytes per device and part out. Formulas name the file of llama.cpp that they
follow. `Estimator` covers the architectures in `budget.estimate.architectures`; another one is said
to be unknown, never guessed.
"""
