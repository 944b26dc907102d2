"""`keepwarm doctor`: what this machine offers to keepwarm, and what stands in its way."""
