"""The worker over llama-cpp-python: its parts, its engine, and how it is chosen."""
