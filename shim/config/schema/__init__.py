"""What a configuration may say: sections, models, values and their units, and the reference of it all."""
