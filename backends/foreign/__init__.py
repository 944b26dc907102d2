"""What strangers send: JSON, parsed within bounds and checked for its types, and texts that are shown."""
