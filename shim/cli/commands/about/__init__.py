"""`keepwarm list`, `show` and `logs`: which models there are, their facts, and their engines' logs."""
