"""The commands and programs of docs/http.md, one after another against a running gateway, as a reader enters them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile

from ..process.conftest import Daemon
from ..support.gateways import Gateway, keys_for
from .conftest import needs

DOC = Path(__file__).resolve().parents[2] / "docs/http.md"
#: Their commands install and start programs; other tests do that.
_STARTS = ("Start", "Keys and customers", "Open WebUI", "Home Assistant", "From upstream's Gradio page")


class Block(NamedTuple):
    """A block of code, and the section that it is in."""

    section: str
    language: str
    text: str


def blocks() -> list[Block]:
    found, section = [], ""
    for heading, language, text in re.findall(r"(?ms)^##+ ([^\n]+)$|^```(sh|python)\n(.*?)^```$", DOC.read_text()):
        section = heading or section
        if text and section not in _STARTS:
            found.append(Block(section, language, text))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader's folder: recordings, and players that only count."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("anna.wav", "clara.wav"):
        soundfile.write(folder / name, 0.3 * np.sin(np.arange(96_000) / 20), 24_000)
    (folder / "bin").mkdir()
    for name in ("aplay", "mpv"):
        player = folder / "bin" / name
        player.write_text("#!/bin/sh\nwc -c > played-by-$(basename $0)\n")
        player.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def served(daemon: Daemon, folder: Path) -> Iterator[tuple[Gateway, str]]:
    """A gateway with a key, which serves without one too, and the key."""
    file, headers = keys_for(folder, "anna")
    key = headers["anna"]["Authorization"].removeprefix("Bearer ")
    with contextlib.closing(Gateway(daemon, folder, f'api_keys = "{file}"\nanonymous = true\n')) as gateway:
        yield gateway, key


def test_every_block_does_what_it_says(served: tuple[Gateway, str], folder: Path) -> None:
    needs("jq", "jq")
    gateway, key = served
    environment = os.environ | {"PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
    id, ran = "", []
    for block in blocks():
        text = block.text.replace("127.0.0.1:8080", f"127.0.0.1:{gateway.port}").replace("glm-...", key)
        if block.language == "python":
            before = f"from openai import OpenAI\nclient = OpenAI(base_url='http://127.0.0.1:{gateway.port}/v1', "
            commands = [[sys.executable, "-c", f"{before}api_key='{key}')\n{text}"]]
        else:
            # One by one: a later line has the id that an earlier one has answered.
            lines = re.split(r"\n(?=curl|jq)", text)
            commands = [["bash", "-ec", f"set -o pipefail\n{line}"] for line in lines]
        for command in commands:
            command[-1] = re.sub(r"/ID\b", f"/{id}", command[-1]).replace("curl ", "curl --fail-with-body -sS ")
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, timeout=50, check=False
            )
            assert done.returncode == 0, f"{block.section}: {command[-1]}\n{done.stdout}{done.stderr}"
            with contextlib.suppress(ValueError, AttributeError):
                answer = json.loads(done.stdout)
                id = answer.get("task_id") or answer.get("id") or id
            ran.append(block.section)
    assert {
        "Speak",
        "Stream",
        "Text in pieces",
        "Voices",
        "Jobs",
        "Batch",
        "From OpenAI",
        "From a Flask service",
    } <= set(ran)
    for name in ("weather.mp3", "later.wav", "first.mp3", "2.mp3", "clara.mp3", "weather.wav"):
        assert soundfile.info(folder / name).duration > 0.1, name
    for player in ("aplay", "mpv"):
        assert int((folder / f"played-by-{player}").read_text()) > 10_000
