"""Jobs meet workers here: admission, dispatch, preemption, completion, retries."""
