"""Servers of the user: any program that answers over HTTP."""
