"""A limit: the least that a broker in Python can do, as a process of its own.

It polls, drains both sockets and forwards; it decodes nothing and decides nothing.
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
    workers.poll(flags=zmq.POLLOUT)  # what came before the worker did would be dropped below
    poller = zmq.Poller()
    poller.register(clients, zmq.POLLIN)
    poller.register(workers, zmq.POLLIN)
    while True:
        for source, _ in poller.poll():
            target = workers if source is clients else clients
            try:
                while True:
                    target.send_multipart(source.recv_multipart(zmq.NOBLOCK), zmq.NOBLOCK)
            except zmq.Again:
                pass


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
