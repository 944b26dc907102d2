"""The keeper's socket: which users may connect, which ops a client may ask for, and the answers."""
