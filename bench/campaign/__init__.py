"""The fault campaign of `bench/faults.py`: its models, its callers, its faults, its checks."""
