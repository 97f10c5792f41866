"""Every decision of the daemon, without I/O: jobs, queue, workers, limits."""
