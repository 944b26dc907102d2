"""The keeper as a process: its start, its locks, its log, its folder, its end."""
