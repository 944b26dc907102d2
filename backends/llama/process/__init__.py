"""One llama-server: how its load is watched, and the error when it does not become ready.

`start_failures` makes that error.
"""
