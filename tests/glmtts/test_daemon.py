"""GLM-TTS behind the daemon: everybody hears his own voice, whatever befalls the workers."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile

from ..process.conftest import Daemon, Peer
from .test_jobs import LONG, SHORT
from .upstream_root import PROMPT_TEXT, Root, pitch, recording

#: Voices whose pitches are so far apart that nobody takes one for the next.
PITCHES = [110.0 * 1.09**number for number in range(16)]
_BOUND = {"max_tokens": 40}


@pytest.fixture(scope="module")
def daemon(root: Root, start_shared_daemon: Callable[..., Daemon]) -> Daemon:
    workers = {
        "max": 2,
        # The grammar's compilation and the first look at a recording have no beats in between.
        "hang_timeout_s": 3.0 if root.is_stand_in else 15.0,
        "stop_timeout_s": 0.5,
        "restart": {"backoff_initial_s": 0.05, "backoff_max_s": 0.2, "breaker_failures": 50},
    }
    daemon = start_shared_daemon(workers=workers, limits={"rate": ""})
    for number, hz in enumerate(PITCHES):
        daemon.control("voice_add", recording(hz), name=f"v{number}", text=PROMPT_TEXT)
    return daemon


def ctl(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).with_name("glmttsctl")), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"GLMTTS_ENDPOINT": daemon.endpoint, "NO_COLOR": "1"},
    )


def voice_of(audio: bytes) -> float:
    samples, rate = soundfile.read(io.BytesIO(audio), dtype="float32")
    return pitch(samples, rate)


def sound(client: Peer, root: Root, text: str = SHORT, **keys: Any) -> tuple[Any, bytes]:
    given: dict[str, Any] = {"voice": "v0", "seed": 1, "options": _BOUND, **keys}
    events, audio = client.all(client.send("synthesize", text=text, **given), root.patience_s)
    assert events[-1]["event"] == "done", events[-1]
    return events[-1], audio


def until_all_speak(daemon: Daemon, root: Root) -> None:
    daemon.until_ready(patience_s=root.patience_s)


# --- voices


def test_say_speaks_with_a_registered_voice_and_with_a_prompt(daemon: Daemon, root: Root, tmp_path: Path) -> None:
    me = tmp_path / "me.wav"
    me.write_bytes(recording(200.0))
    added = ctl(daemon, "voice", "add", "me", str(me), "--text", PROMPT_TEXT)
    assert added.returncode == 0, added.stderr
    files = {name: tmp_path / f"{name}.wav" for name in ("registered", "prompted", "streamed")}
    for name, options in {
        "registered": ["--voice", "me"],
        "prompted": ["--prompt", str(me), "--prompt-text", PROMPT_TEXT],
        "streamed": ["--voice", "me", "--stream"],
    }.items():
        said = ctl(daemon, "say", SHORT, "--seed", "3", *options, "-o", str(files[name]))
        assert said.returncode == 0, said.stderr
    assert len({file.read_bytes() for file in files.values()}) == 1
    if root.is_stand_in:
        assert voice_of(files["registered"].read_bytes()) == pytest.approx(200.0, rel=0.03)


def test_sixteen_clients_at_once_hear_each_his_own_voice(daemon: Daemon, root: Root) -> None:
    until_all_speak(daemon, root)
    alone_client = daemon.client()
    wanted: list[dict[str, Any]] = [
        {"text": SHORT, "voice": f"v{number}", "seed": number, "sample_rate": (24_000, 32_000)[number % 2]}
        for number in range(16)
    ]
    alone = [sound(alone_client, root, **one)[1] for one in wanted]
    clients = [daemon.client() for _ in wanted]
    ids = [client.send("synthesize", options=_BOUND, **one) for client, one in zip(clients, wanted, strict=True)]
    together = [client.all(id, root.patience_s)[1] for client, id in zip(clients, ids, strict=True)]
    assert together == alone
    if root.is_stand_in:
        assert [voice_of(audio) for audio in together] == pytest.approx(PITCHES, rel=0.03)


def test_a_prompt_is_heard_by_nobody_else(daemon: Daemon, root: Root) -> None:
    client = daemon.client()
    _, before = sound(client, root)
    prompt = {"text": PROMPT_TEXT}
    events, prompted = client.all(
        client.send("synthesize", recording(330.0), text=SHORT, prompt=prompt, seed=1, options=_BOUND), root.patience_s
    )
    assert events[-1]["event"] == "done" and prompted != before
    assert sound(client, root)[1] == before


def test_a_text_that_can_t_be_spoken_is_refused_and_the_next_is_heard(daemon: Daemon, root: Root) -> None:
    client = daemon.client()
    for text in ("。。。", "Привет, мир", "\ud800"):
        error = client.refused("synthesize", text=text, voice="v0")
        assert error["code"] == "bad_request" and not error["retryable"] and "text" in error["message"], error
    assert client.refused("synthesize", text=SHORT, voice="v0", options={"top_k": 0})["code"] == "bad_request"
    assert client.refused("synthesize", text=SHORT)["code"] == "bad_request"
    assert sound(client, root)[0]["attempts"] == 1


# --- faults


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
def test_a_worker_that_is_lost_in_mid_sentence_costs_its_job_nothing_but_time(
    daemon: Daemon, root: Root, how: signal.Signals
) -> None:
    until_all_speak(daemon, root)
    client = daemon.client()
    alone, audio = sound(client, root, LONG, options={"max_tokens": 80})
    id = client.send("synthesize", text=LONG, voice="v0", seed=1, options={"max_tokens": 80})
    os.kill(daemon.worker_of(client.until(id, "started")), how)
    events, again = client.all(id, root.patience_s)
    assert events[-1]["event"] == "done" and events[-1]["attempts"] == 2, events[-1]
    assert again == audio and events[-1]["sha256"] == alone["sha256"]


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("word", "code", "words"),
    [
        ("segfault", "worker_crashed", "SIGSEGV"),
        ("hangforever", "hung", "no progress"),
        ("outofmemory", "out_of_memory", "memory"),
        ("devicefault", "cuda_context", "CUDA"),
    ],
)
def test_a_sentence_that_costs_a_worker_is_answered_and_others_are_spoken(
    daemon: Daemon, root: Root, word: str, code: str, words: str
) -> None:
    until_all_speak(daemon, root)
    client, bystander = daemon.client(), daemon.client()
    _, alone = sound(bystander, root)
    id = client.send("synthesize", text=f"{word} {SHORT}", voice="v1")
    theirs = bystander.send("synthesize", text=SHORT, voice="v0", seed=1, options=_BOUND)
    events, _ = client.all(id, root.patience_s)
    error = events[-1]
    assert error["event"] == "error" and words in error["message"], error
    assert error["code"] in (code, "worker_crashed"), error
    assert bystander.all(theirs, root.patience_s)[1] == alone
    assert sound(client, root)[1] == alone
