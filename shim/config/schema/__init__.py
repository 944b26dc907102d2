"""The schema of a configuration: sections, models, values with their units, and the generated reference."""
