"""The keeper as a process: its order, its locks, its log, its socket's place, its end."""
