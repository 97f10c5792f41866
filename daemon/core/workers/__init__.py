"""Workers: states, processes, placement on GPUs, memory, restarts and replacement."""
