"""Graphs of agents: steps, the order in which they start, their run, and its journal."""
