"""Where a request goes: one of several endpoints, or the model that takes over."""
