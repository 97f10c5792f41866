"""A peer: FastAPI and uvicorn with the model in the server's own process, as most services of one file have it."""

from __future__ import annotations

import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from handler import pieces

app = FastAPI()


@app.post("/v1/audio/speech")
def speech(asked: dict[str, Any]) -> StreamingResponse:
    """Audio as it is made."""
    return StreamingResponse(pieces(asked), media_type="audio/pcm")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
