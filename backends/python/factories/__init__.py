"""Ready-made factories: each file is loaded by itself, in the interpreter of the model that names it."""
