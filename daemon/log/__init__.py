"""The daemon's log, and the output of its workers."""
