"""The daemon: a supervisor that owns the sockets and the queue, and worker processes that own the model."""

__version__ = "0.1.0"
