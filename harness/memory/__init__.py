"""A memory of passages in one SQLite file: words beside vectors, and honest about what it could not ask."""
