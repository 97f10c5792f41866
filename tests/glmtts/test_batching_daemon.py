"""A daemon whose worker speaks for many at once: each client hears its own voice, whatever befalls the others."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from websockets.sync.client import connect

from ..process.conftest import Daemon
from ..support.gateways import Gateway
from .test_daemon import PITCHES, sound, voice_of
from .test_jobs import LONG, SHORT
from .upstream_root import PROMPT_TEXT, Root, recording

_BOUND = {"max_tokens": 40}


@pytest.fixture(scope="module")
def daemon(root: Root, start_shared_daemon: Callable[..., Daemon]) -> Daemon:
    daemon = start_shared_daemon(
        settings={"batching": "on", "slots": 16},
        workers={
            "max": 1,
            "hang_timeout_s": 5.0 if root.is_stand_in else 30.0,
            "restart": {"backoff_initial_s": 0.05, "backoff_max_s": 0.2, "breaker_failures": 50},
        },
        limits={"rate": ""},
    )
    for number, hz in enumerate(PITCHES):
        daemon.control("voice_add", recording(hz), name=f"v{number}", text=PROMPT_TEXT)
    return daemon


@pytest.fixture(scope="module")
def gateway(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with contextlib.closing(Gateway(daemon, tmp_path_factory.mktemp("gateway"))) as gateway:
        yield gateway


def test_sixteen_clients_at_once_hear_each_their_own_voice(daemon: Daemon, root: Root) -> None:
    wanted: list[dict[str, Any]] = [
        {
            "text": (SHORT, LONG)[number % 4 == 1],
            "voice": f"v{number}",
            "seed": number,
            "sample_rate": (24_000, 32_000)[number % 2],
            "options": _BOUND,
        }
        for number in range(16)
    ]
    one = daemon.client()
    alone = [sound(one, root, **each)[1] for each in wanted]
    clients = [daemon.client() for _ in wanted]
    ids = [client.send("synthesize", **each) for client, each in zip(clients, wanted, strict=True)]
    ended = [client.all(id, root.patience_s) for client, id in zip(clients, ids, strict=True)]
    assert [events[-1]["event"] for events, _ in ended] == ["done"] * 16
    together = [audio for _, audio in ended]
    assert [ours == own for ours, own in zip(together, alone, strict=True)] == [True] * 16
    if root.is_stand_in:
        assert [voice_of(audio) for audio in together] == pytest.approx(PITCHES, rel=0.03)


def over_http(gateway: Gateway, text: str, voice: str, seed: int) -> bytes:
    """As OpenAI's package plays it while it is made."""
    asked = {"model": "tts-1", "voice": voice, "input": text, "response_format": "pcm"}
    with (
        gateway.openai(max_retries=0) as client,
        client.audio.speech.with_streaming_response.create(
            # Its voices are those of OpenAI, as types; this is another.
            **asked,  # type: ignore[arg-type]
            extra_body={"seed": seed, "options": _BOUND},
        ) as answer,
    ):
        return b"".join(answer.iter_bytes())


def over_websocket(gateway: Gateway, text: str, voice: str, seed: int) -> bytes:
    """Written character by character."""
    with connect(f"ws://127.0.0.1:{gateway.port}/v1/audio/speech/stream", proxy=None) as connection:
        config = {"response_format": "pcm", "voice": voice, "seed": seed, "options": _BOUND}
        messages = [{"type": "session.config", **config}, *({"type": "input.text", "text": one} for one in text)]
        for message in [*messages, {"type": "session.close"}]:
            connection.send(json.dumps(message))
        said = list(connection)
    ends = [json.loads(one)["type"] for one in said if isinstance(one, str)]
    assert ends == ["audio.start", "audio.done", "session.done"], said
    return b"".join(one for one in said if isinstance(one, bytes))


def test_sixteen_listeners_at_once_hear_each_their_own_through_the_gateway(
    daemon: Daemon, gateway: Gateway, root: Root
) -> None:
    ways = (over_http, over_websocket)
    # A text that is written while it is spoken is one sentence here: where several are cut depends on the moment.
    wanted = [
        ((LONG if number % 8 == 2 else SHORT), f"v{number}", 100 + number, ways[number % 2]) for number in range(16)
    ]
    one = daemon.client()
    pcm = {"format": "pcm_s16le", "sample_rate": 24_000}
    alone = [sound(one, root, text, voice=voice, seed=seed, **pcm)[1] for text, voice, seed, _ in wanted]
    with ThreadPoolExecutor(16) as listeners:
        asked = [listeners.submit(way, gateway, text, voice, seed) for text, voice, seed, way in wanted]
        together = [one.result(root.patience_s) for one in asked]
    assert [len(ours) for ours in together] == [len(own) for own in alone]
    assert [ours == own for ours, own in zip(together, alone, strict=True)] == [True] * 16
    assert len(set(together)) == 16


@pytest.mark.usefixtures("stand_in")
def test_a_sentence_that_fails_or_is_cancelled_beside_others_costs_them_nothing(daemon: Daemon, root: Root) -> None:
    one = daemon.client()
    _, alone = sound(one, root, LONG)
    good, bad, leaving = daemon.client(), daemon.client(), daemon.client()
    id = good.send("synthesize", text=LONG, voice="v0", seed=1, options=_BOUND)
    failing = bad.send("synthesize", text=f"notanumber {SHORT}", voice="v1")
    left = leaving.send("synthesize", text=LONG * 3, voice="v2")
    leaving.until(left, "started")
    leaving.close()
    error = bad.all(failing, root.patience_s)[0][-1]
    assert error["event"] == "error" and error["code"] == "synthesis_failed" and "numbers" in error["message"], error
    events, audio = good.all(id, root.patience_s)
    assert audio == alone and events[-1]["attempts"] == 1


def test_what_a_killed_worker_had_begun_is_spoken_again_to_the_same_bytes(daemon: Daemon, root: Root) -> None:
    one = daemon.client()
    wanted: list[dict[str, Any]] = [
        {"text": LONG, "voice": f"v{number}", "seed": number, "options": _BOUND} for number in range(3)
    ]
    alone = [sound(one, root, **each)[1] for each in wanted]
    clients = [daemon.client() for _ in wanted]
    ids = [client.send("synthesize", **each) for client, each in zip(clients, wanted, strict=True)]
    pids = {daemon.worker_of(client.until(id, "started")) for client, id in zip(clients, ids, strict=True)}
    assert len(pids) == 1
    os.kill(pids.pop(), signal.SIGKILL)
    ended = [client.all(id, root.patience_s) for client, id in zip(clients, ids, strict=True)]
    assert [events[-1]["event"] for events, _ in ended] == ["done"] * 3, [events[-1] for events, _ in ended]
    assert [ours == own for (_, ours), own in zip(ended, alone, strict=True)] == [True] * 3
