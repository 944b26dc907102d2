"""Engines and everything that is measured: GGUF files, footprints, processes, HTTP, devices."""
