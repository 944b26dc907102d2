"""The keeper's socket: who may connect, what each client may ask, and what it is told."""
