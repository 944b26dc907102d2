"""What each event does: requests and leases of clients, reports of engines, pins, configurations.

`rule` is the form of all of them: what is checked first, and what takes effect afterwards.
"""
