"""Python workers: a user's own model in a process of its own, and the way to call it."""
