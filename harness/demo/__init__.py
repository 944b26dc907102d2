"""`keepwarm demo`: real models under a budget for half of them, measured from outside and traced."""

from harness.demo.command import demo_command

__all__ = ["demo_command"]
