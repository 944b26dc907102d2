"""State files and foreign JSON."""
