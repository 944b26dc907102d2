"""Streams that hold a lease until their end: of pieces of an answer, and of results."""
