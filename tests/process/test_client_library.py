"""The Python clients against a real daemon: what a program loses if they misread it, or it them."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import soundfile

from glmtts.client import AsyncClient, Client, ConnectionLost, JobEvent, RequestFailed, Speech, SpeechOptions
from glmtts.protocol.events import Started

from .conftest import Daemon


@pytest.fixture(scope="module")
def daemon(start_shared: Callable[..., Daemon]) -> Iterator[Daemon]:
    yield start_shared(engine={"name": "espeak", "warmup_text": "a"})


@pytest.fixture
def faulty(start: Callable[..., Daemon]) -> Daemon:
    return start(workers={"max": 2, "restart": {"max_attempts": 2}})


def test_three_lines_of_python_make_a_wav_that_plays(daemon: Daemon, tmp_path: Path) -> None:
    program = (
        "from glmtts.client import Client\nwith Client() as client:\n    client.speak('今天天气不错').save('a.wav')"
    )
    environment = os.environ | {"GLMTTS_ENDPOINT": daemon.endpoint}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True, timeout=30)
    samples, rate = soundfile.read(tmp_path / "a.wav")
    assert rate == 24_000
    assert 0.8 < len(samples) / rate < 4.0
    assert abs(samples).max() > 0.05


def test_a_stream_is_the_same_speech_as_the_whole_file(daemon: Daemon) -> None:
    with Client(daemon.endpoint, timeout=20) as client:
        whole = client.speak("Streams are heard while they are made. This is one.", format="pcm_s16le")
        with client.stream("Streams are heard while they are made. This is one.") as stream:
            chunks = list(stream)
        assert b"".join(chunk.samples for chunk in chunks) == whole.audio
        assert [chunk.seq for chunk in chunks] == list(range(len(chunks)))
        assert stream.done is not None and stream.done.sha256 == whole.sha256


def test_one_asyncio_client_carries_many_requests_at_once(daemon: Daemon) -> None:
    async def run() -> list[str]:
        async with AsyncClient(daemon.endpoint, timeout=30) as client:
            speeches = await asyncio.gather(*(client.speak(f"Number {n}.", format="flac") for n in range(20)))
            heard = b""
            async for chunk in client.stream("And a stream beside them."):
                heard += chunk.samples
            assert heard
            return [speech.sha256 for speech in speeches]

    digests = asyncio.run(run())
    assert len(set(digests)) == 20


def test_the_daemon_answers_everything_that_a_client_may_ask(daemon: Daemon) -> None:
    with Client(daemon.endpoint, timeout=20) as client:
        assert client.ping().protocol == 1
        assert client.info().engine == "espeak"
        assert "auto" in {voice.name for voice in client.voices()}
        job = client.submit("A job of mine.")
        speech = client.wait(job)
        assert soundfile.read(io.BytesIO(speech.audio))[1] == 24_000
        assert client.job(job.id).state == "done"
        assert job.id in {one.job for one in client.jobs(state="done")}
        assert client.wait(job.id).sha256 == speech.sha256, "a result is kept for who asks again"
        assert client.cancel(job.id) == "done"


def test_bad_requests_raise_what_the_daemon_says(daemon: Daemon) -> None:
    with Client(daemon.endpoint, timeout=20) as client:
        refused: list[tuple[str, SpeechOptions, str]] = [
            ("hello", {"voice": "nobody"}, "voice_not_found"),
            ("…", {}, "bad_request"),
            ("x" * 5_001, {}, "too_large"),
            ("hello", {"output": "../x.wav"}, "bad_request"),
            ("hello", {"prompt": b"no recording", "prompt_text": "hello"}, "bad_audio"),
        ]
        for text, options, code in refused:
            with pytest.raises(RequestFailed) as raised:
                client.speak(text, **options)
            assert raised.value.code == code, (text, options)


def test_a_killed_worker_costs_its_client_a_moment_and_nobody_else_anything(faulty: Daemon) -> None:
    attempts: list[JobEvent] = []
    with Client(faulty.endpoint, timeout=20) as client, Client(faulty.endpoint, timeout=20) as other:
        running = threading.Event()
        result: list[Speech] = []

        def note(event: JobEvent) -> None:
            attempts.append(event)
            if isinstance(event, Started):
                running.set()

        def speak() -> None:
            result.append(client.speak("hello", options={"fault": "sleep", "seconds": 1.0}, on_event=note))

        thread = threading.Thread(target=speak)
        thread.start()
        assert running.wait(10)
        started = next(event for event in attempts if isinstance(event, Started))
        os.kill(faulty.worker_of({"worker": started.worker}), 9)
        assert other.speak("not bothered").duration_s > 0
        thread.join(20)
        assert result and result[0].attempts == 2


def test_a_client_outlives_the_daemon_and_says_what_was_lost(start: Callable[..., Daemon]) -> None:
    daemon = start()
    with Client(daemon.endpoint, timeout=30) as client:
        job = client.submit("hello", options={"fault": "sleep", "seconds": 60})
        daemon.kill()
        daemon.process = daemon.launch()
        with pytest.raises(ConnectionLost):
            client.wait(job)
        assert client.speak("hello again").duration_s > 0


@pytest.mark.parametrize("left", [0, 3, 8])
def test_a_program_that_runs_short_of_descriptors_hears_so_and_lives_on(daemon: Daemon, left: int) -> None:
    script = f"""
import os, resource
from glmtts.client import Client, Control, GlmttsError, Watch
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
full = []
try:
    while True:
        full.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
for fd in full[len(full) - {left}:]:
    os.close(fd)
for kind in Client, Control, Watch:
    try:
        kind()
    except GlmttsError as error:
        print("Too many open files" in str(error))
for fd in full[:32]:
    os.close(fd)
print(Client().ping().protocol)
"""
    environment = os.environ | {"GLMTTS_RUNTIME_DIR": str(daemon.runtime)}
    environment.pop("GLMTTS_ENDPOINT", None)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True"] * 3 + ["1"], done.stderr
