"""The handler of both peers: it makes what the fault engine makes, in the same pieces and the same time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import Any

_RATE = 24_000
#: The fault engine's pieces are as long.
_PIECE_S = 0.5
_PIECE = bytes(round(_PIECE_S * _RATE) * 2)
#: One model speaks one text at a time, as one worker of the daemon does.
_model = threading.Lock()


def pieces(asked: dict[str, Any]) -> Iterator[bytes]:
    """16-bit audio for a body as the gateway takes it; ``{"pid": true}`` asks who makes it."""
    options = asked.get("options", {})
    if options.get("pid"):
        yield str(os.getpid()).encode()
        return
    with _model:
        left = float(options["seconds"])
        while left > 0:
            piece_s = min(_PIECE_S, left)
            if rtf := options.get("rtf"):
                time.sleep(rtf * piece_s)
            yield _PIECE[: round(piece_s * _RATE) * 2]
            left -= piece_s
