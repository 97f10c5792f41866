"""The WebSocket with a client in another language: Node and its package ws."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from ..support.gateways import Gateway
from .conftest import needs


def spoken(gateway: Gateway, node_modules: Path, text: str, **config: Any) -> Any:
    program = needs("node", "nodejs")
    # A module finds its packages from the folder that it is in.
    script = shutil.copy(Path(__file__).with_name("websocket_node.mjs"), node_modules.parent)
    url = f"ws://127.0.0.1:{gateway.port}/v1/audio/speech/stream"
    command = [program, str(script), url, text, json.dumps(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_text_in_words_is_heard_before_its_end(gateway: Gateway, node_modules: Path) -> None:
    heard = spoken(gateway, node_modules, "Good morning. 今天天气不错。 How are you?")
    assert [message["type"] for message in heard["messages"]] == ["audio.start", "audio.done", "session.done"]
    assert heard["beforeDone"] and heard["messages"][1]["total_bytes"] == heard["bytes"] > 0
    assert heard["code"] == 1000


def test_an_error_has_its_name(gateway: Gateway, node_modules: Path) -> None:
    heard = spoken(gateway, node_modules, "Good morning.", voice="nonesuch")
    error, end = heard["messages"]
    assert (error["code"], error["param"], end["total_sentences"]) == ("voice_not_found", "voice", 0)
