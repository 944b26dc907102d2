"""What the keeper and its programs tell those that watch them."""
