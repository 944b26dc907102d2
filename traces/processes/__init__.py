"""Several processes of one run: how a child finds the run, and the files through which it takes part."""
