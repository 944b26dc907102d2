"""Readers of endpoints' answers, which are never trusted: events, fields, tool calls, vectors, errors.

`reading` turns bytes into deltas; `foreign_errors` turns foreign errors into ours.
"""
