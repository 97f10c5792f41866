"""Jobs: the state of each, the table of all, the queue and its order, estimates of their time."""
