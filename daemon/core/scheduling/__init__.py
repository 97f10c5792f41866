"""What joins jobs and workers: admission, dispatch, preemption, completion, retries."""
