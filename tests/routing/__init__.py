"""Several endpoints of one model, and models that take over."""
