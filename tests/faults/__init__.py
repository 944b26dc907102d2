"""The fault campaign in its short form."""
