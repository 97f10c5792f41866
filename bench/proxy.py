"""A limit: libzmq's own ``zmq.proxy`` between clients and the echo worker, as a process of its own.

Nothing that stands between two processes over ZeroMQ is faster: the loop is C and looks at no message.
"""

from __future__ import annotations

import sys

import zmq


def main(front: str, back: str) -> None:
    """Forward between a ROUTER bound to ``front`` and a DEALER bound to ``back`` until the process is ended."""
    context = zmq.Context()
    clients, workers = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    clients.bind(front)
    workers.bind(back)
    zmq.proxy(clients, workers)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
