"""When a session begins and ends what it holds: its inline keeper, and what a forgotten `Shim` left."""
