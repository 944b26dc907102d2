"""The engine of kind `server`: any program that answers over HTTP, where it is told to."""
