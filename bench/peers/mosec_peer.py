"""A peer: mosec with one worker for whole answers, and one for streams, which it has as server-sent events alone."""

from __future__ import annotations

import base64
import json
from typing import Any

from handler import pieces
from mosec import Runtime, Server, SSEWorker, Worker


class Whole(Worker):
    """The audio in one piece."""

    def deserialize(self, data: bytes) -> Any:
        """JSON."""
        return json.loads(data)

    def serialize(self, data: bytes) -> bytes:
        """As it is."""
        return data

    def forward(self, data: dict[str, Any]) -> bytes:
        """Answer one request."""
        return b"".join(pieces(data))


class Stream(SSEWorker):
    """The audio as it is made."""

    def deserialize(self, data: bytes) -> Any:
        """JSON."""
        return json.loads(data)

    def forward(self, data: dict[str, Any]) -> Any:
        """Answer one request."""
        for piece in pieces(data):
            self.send_stream_event(base64.b64encode(piece).decode())
        return data


if __name__ == "__main__":
    server = Server()
    server.register_runtime({"/speech": [Runtime(Whole)], "/stream": [Runtime(Stream)]})
    server.run()
