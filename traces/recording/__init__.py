"""What happens to what a run is told: put off, made into spans, and written to its files and exporters."""
