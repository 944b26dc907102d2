"""JSON of strangers: parsed within bounds, and checked to be of the types that are expected."""
