"""`keepwarm chat`, `run` and `embed`: what is sent to a model, and how its answer is printed."""
