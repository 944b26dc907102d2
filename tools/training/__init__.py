"""How the demo's trained models are made: lessons, the training itself, and their card."""
