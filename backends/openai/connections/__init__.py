"""Connections to an endpoint: how they are made and pooled, and the bounds below HTTP that each holds."""
