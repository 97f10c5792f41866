"""Work that the loop must not wait for, done in background threads: for operators, and on voices."""
