"""The inside of a worker process: it takes jobs, runs the engine and sends audio."""
