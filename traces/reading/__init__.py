"""A trace's file read again: its events, what they add up to, and several files as one."""
