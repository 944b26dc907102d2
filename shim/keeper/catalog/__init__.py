"""From a configuration to engines the core can decide about: files read, bytes measured, placements."""
