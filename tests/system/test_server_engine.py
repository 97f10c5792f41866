"""A daemon that speaks through this project's own gateway, which it starts as its server, with a daemon behind it."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile

if TYPE_CHECKING:
    from ..process.conftest import Start


def test_this_projects_own_gateway_is_a_server_too(start: Start) -> None:
    own = str(Path(sys.executable).with_name("glmttsctl"))
    server = {"command": [own, "serve", "--port", "{port}"], "start_timeout_s": 30.0}
    daemon = start(
        wait=False,
        engine={"name": "server", "warmup_text": "Hello.", "server": server},
        workers={"start_timeout_s": 40.0},
    )
    daemon.until_ready(patience_s=40.0)
    client = daemon.client()
    voices = [voice["name"] for voice in client.ask("voices")["voices"]]
    assert "en-us" in voices and "cmn" in voices
    texts = ["The weather is nice today.", "今天天气不错。", "So it is."]
    ids = [client.send("synthesize", text=text, voice="auto") for text in texts]
    heard = [soundfile.read(io.BytesIO(client.all(id)[1]), dtype="int16") for id in ids]
    assert [rate for _, rate in heard] == [24_000] * 3 and all(np.abs(samples).max() > 3_000 for samples, _ in heard)
    again, _ = soundfile.read(io.BytesIO(client.speak(texts[0], voice="auto")[1]), dtype="int16")
    assert np.array_equal(again, heard[0][0])
    assert client.refused("synthesize", text="hello", voice="nobody")["code"] == "voice_not_found"
    daemon.stop()
