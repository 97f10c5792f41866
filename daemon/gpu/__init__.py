"""GPU memory and health, sampled through NVML in a thread of its own."""
