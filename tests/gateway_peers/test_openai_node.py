"""OpenAI's own package for Node, unmodified. Its sibling for Python is in tests/process/test_gateway.py."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..process.conftest import Daemon, Start
from ..support.gateways import Gateway, keys_for
from .conftest import needs

Node = Callable[..., Any]


@pytest.fixture(scope="module")
def node(node_modules: Path) -> Node:
    """Runs one call of openai_node.mjs at a gateway, and returns what it prints."""
    program = needs("node", "nodejs")
    # A module finds its packages from the folder that it is in.
    script = shutil.copy(Path(__file__).with_name("openai_node.mjs"), node_modules.parent)

    def call(gateway: Gateway, *arguments: str, key: str = "none") -> Any:
        command = [program, str(script), f"http://127.0.0.1:{gateway.port}/v1", key, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return call


@pytest.mark.parametrize(("asked", "begins"), [("opus", "OggS"), ("flac", "fLaC"), ("wav", "RIFF"), ("mp3", "\xff")])
def test_a_file_of_each_format(gateway: Gateway, node: Node, asked: str, begins: str) -> None:
    assert node(gateway, "create", asked)["begins"].startswith(begins)


def test_the_beginning_is_heard_before_the_end_is_made(gateway: Gateway, node: Node) -> None:
    heard = node(gateway, "streamed")
    assert heard["bytes"] == 3 * 24_000 * 2
    assert heard["first"] < heard["total"] / 2


def test_events(gateway: Gateway, node: Node) -> None:
    *deltas, end = node(gateway, "events")
    assert deltas and all(event["type"] == "speech.audio.delta" and event["audio"] for event in deltas)
    assert end["type"] == "speech.audio.done" and end["usage"]["input_tokens"] == len("Hello there.")
    assert node(gateway, "decoded")[-1] == "speech.audio.done"


def test_models_and_voices(gateway: Gateway, node: Node) -> None:
    lists = node(gateway, "lists")
    assert {"glm-tts", "tts-1"} <= set(lists["models"])
    assert all(voice["id"] and voice["name"] for voice in lists["voices"])
    assert node(gateway, "custom", lists["voices"][0]["id"])["bytes"] > 0


def test_what_can_t_succeed_is_sent_once_and_names_the_key(gateway: Gateway, node: Node) -> None:
    refused = node(gateway, "refused", json.dumps({"voice": "nonesuch"}), "3")
    assert (refused["name"], refused["code"], refused["param"]) == ("BadRequestError", "voice_not_found", "voice")
    assert len(refused["sent"]) == 1 and refused["requestID"].startswith("req_")
    # A 500 that the package would send again by itself, but for x-should-retry.
    failed = node(gateway, "refused", json.dumps({"options": {"fault": "raise"}}), "3")
    assert (failed["name"], failed["status"], len(failed["sent"])) == ("InternalServerError", 500, 1)


def test_an_unknown_key_is_an_authentication_error(daemon: Daemon, tmp_path: Path, node: Node) -> None:
    file, headers = keys_for(tmp_path, "anna")
    with contextlib.closing(Gateway(daemon, tmp_path, f'api_keys = "{file}"\n')) as gateway:
        refused = node(gateway, "refused", "{}", "3", key="glm-unknown")
        assert (refused["name"], refused["code"], len(refused["sent"])) == ("AuthenticationError", "invalid_api_key", 1)
        key = headers["anna"]["Authorization"].removeprefix("Bearer ")
        assert "name" not in node(gateway, "refused", "{}", "0", key=key)


def test_retries_come_when_the_answer_says(start: Start, tmp_path: Path, node: Node) -> None:
    daemon = start(limits={"rate": "20/minute"})
    with contextlib.closing(Gateway(daemon, tmp_path)) as gateway:
        while gateway.ask("POST", "/v1/audio/jobs", {"input": "One of many."})[0] == 202:
            pass
        heard = node(gateway, "refused", "{}", "3")
    assert "name" not in heard, heard
    first, second = heard["sent"]
    # One in three seconds; by itself the package comes again after half a second.
    assert second["at"] - first["at"] >= first["wait"] > 0


def test_a_timeout_cancels_the_job_in_the_daemon(gateway: Gateway, daemon: Daemon, node: Node) -> None:
    assert node(gateway, "timeout") == {"name": "APIConnectionTimeoutError"}
    jobs = gateway.ask("GET", "/v1/audio/jobs")[1]["data"]
    (id,) = [job["id"] for job in jobs if job["status"] == "cancelled"]
    daemon.until(lambda: re.search(f"cancelled.*{id}|{id}.*cancelled", daemon.log()), "the daemon's log says so")
