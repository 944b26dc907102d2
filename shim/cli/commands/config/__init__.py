"""`keepwarm config`: check, show, schema; `reload` and `trust` stand beside it."""
