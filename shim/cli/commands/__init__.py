"""One module a command (a folder where a command has parts), each imported when it is run."""
