"""The peer: a mosec service with one worker that takes a MessagePack map and gives back as much audio as asked for.

``{"sleep_s": 30}`` keeps the worker busy, so that it can be killed in mid-job; ``{"pid": true}`` tells whom to kill.
"""

from __future__ import annotations

import os
import time
from typing import Any

from mosec import Server, Worker
from mosec.mixin import MsgpackMixin

AUDIO = bytes(int(os.environ.get("BENCH_AUDIO_BYTES", "9600")))


class Echo(MsgpackMixin, Worker):
    """Gives ready-made audio back."""

    def forward(self, data: dict[str, Any]) -> dict[str, Any]:
        """Answer one request."""
        if "sleep_s" in data:
            time.sleep(data["sleep_s"])
        if "pid" in data:
            return {"pid": os.getpid()}
        return {"audio": AUDIO, "format": "pcm_s16le", "sample_rate": 24_000}


if __name__ == "__main__":
    # mosec's Server has no annotations.
    server = Server()  # type: ignore[no-untyped-call]
    server.append_worker(Echo, num=1)
    server.run()  # type: ignore[no-untyped-call]
