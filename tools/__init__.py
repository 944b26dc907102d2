"""Programs that make what tests, benchmarks and the demo need; not part of the package."""
