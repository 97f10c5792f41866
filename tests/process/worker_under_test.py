"""A real worker process over a real ROUTER socket, spoken to as its supervisor would."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import zmq

from glmtts.daemon import flight_recorder
from glmtts.daemon.processes.command import command as worker_command
from glmtts.protocol.worker import (
    AudioChunk,
    Beats,
    CancelJob,
    Failed,
    Finished,
    Hello,
    JobProgress,
    Message,
    Ready,
    SpeakJob,
    SupervisorMessage,
    Suspended,
    SuspendJob,
    decode_from_worker,
    encode,
)

DEADLINE_S = 20.0
M = TypeVar("M", bound=Message)


class WorkerUnderTest:
    """A worker process, run by ``python``, and the supervisor's end of its wire, which waits ``patience_s``."""

    def __init__(
        self,
        folder: Path,
        *,
        python: str = sys.executable,
        patience_s: float = DEADLINE_S,
        receives: int = 8,
        **config: Any,
    ) -> None:
        """``receives``: messages that may wait to be read. While so many do and more come, the end of the worker's
        process ends the connection with what has not been read of it.
        """
        self.patience_s = patience_s
        self.context = zmq.Context()
        self.router = self.context.socket(zmq.ROUTER)
        self.router.set(zmq.LINGER, 0)
        self.router.set(zmq.RCVHWM, receives)
        self.router.set(zmq.ROUTER_MANDATORY, 1)
        endpoint = f"ipc://{folder}/w.sock"
        self.router.bind(endpoint)
        self.identity = b""
        self.token = secrets.token_hex(8)
        self.lifeline, self.write_end = os.pipe2(os.O_CLOEXEC)
        self.recorder = flight_recorder.create()
        self.log = folder / "log"
        self.engine = str(config.get("engine", "fault"))
        settings = {
            "name": "w0",
            "endpoint": endpoint,
            "token": self.token,
            "daemon_pid": os.getpid(),
            "lifeline_fd": self.lifeline,
            "recorder_fd": self.recorder,
            "engine": "fault",
            "engine_settings": {},
            "warmup_text": "",
            "recording_min_s": 1.0,
            "recording_max_s": 30.0,
            "default_sample_rate": 24_000,
        } | config
        with self.log.open("wb") as log:
            self.begun = time.monotonic()
            self.process = subprocess.Popen(
                worker_command(python),
                env={**os.environ, "GLMTTS_WORKER": json.dumps(settings)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[self.lifeline, self.recorder],
                start_new_session=True,
            )
        os.close(self.lifeline)
        self.jobs = 0
        self._kept: list[tuple[Message, bytes | None]] = []
        self.beats: list[JobProgress] = []

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(DEADLINE_S)
        if self.write_end >= 0:
            os.close(self.write_end)
        os.close(self.recorder)
        self.router.close()
        self.context.term()

    def receive(self) -> tuple[Message, bytes | None]:
        if not self.router.poll(round(self.patience_s * 1e3)):
            raise AssertionError(f"the worker said nothing in {self.patience_s} s; its log:\n{self.log.read_text()}")
        self.identity, header, *body = self.router.recv_multipart()
        return decode_from_worker(header), body[0] if body else None

    def next(self) -> tuple[Message, bytes | None]:
        """The next message that is none of beats, which are kept in ``beats``."""
        if self._kept:
            return self._kept.pop(0)
        while isinstance((received := self.receive())[0], Beats):
            self.beats += received[0].jobs
        return received

    def moving(self) -> JobProgress:
        """Wait for beats; returns the first job's. Other messages are kept for when they are asked for."""
        while not isinstance((received := self.receive())[0], Beats):
            self._kept.append(received)
        return received[0].jobs[0]

    def expect(self, kind: type[M]) -> M:
        message, _ = self.next()
        assert isinstance(message, kind), f"{message} instead of {kind.__name__}; log:\n{self.log.read_text()}"
        return message

    def ready(self) -> Ready:
        self.expect(Hello)
        return self.expect(Ready)

    def send(self, message: SupervisorMessage, body: bytes | None = None) -> None:
        self.router.send_multipart([self.identity, encode(message), *([] if body is None else [body])])

    def start(self, text: str = "hello", body: bytes | None = None, **job: Any) -> str:
        self.jobs += 1
        name = f"0-{self.jobs}"
        given: dict[str, Any] = {"voice": None, "format": "wav", "sample_rate": None, "stream": False, "seed": 0}
        self.send(SpeakJob(**(given | {"job": name, "text": text, "options": {}} | job)), body)
        return name

    def until_end(self, name: str) -> tuple[Finished | Failed, list[tuple[Message, bytes | None]]]:
        """The job's last message (its body as the last of the others) and all before it."""
        seen = self.until((Finished, Failed), name)
        end = seen[-1][0]
        assert isinstance(end, Finished | Failed)
        return end, seen

    def until(self, kind: type[Message] | tuple[type[Message], ...], name: str) -> list[tuple[Message, bytes | None]]:
        """What the job says, up to a message of that kind."""
        seen: list[tuple[Message, bytes | None]] = []
        while not seen or not isinstance(seen[-1][0], kind):
            seen.append(self.next())
            assert getattr(seen[-1][0], "job", None) == name, f"{seen[-1]}; log:\n{self.log.read_text()}"
        return seen

    def until_all_end(self, *names: str) -> dict[str, list[tuple[Message, bytes | None]]]:
        """What jobs say that are spoken side by side, each up to its last message."""
        seen: dict[str, list[tuple[Message, bytes | None]]] = {name: [] for name in names}
        while not all(said and isinstance(said[-1][0], Finished | Failed) for said in seen.values()):
            received = self.next()
            seen[getattr(received[0], "job", "")].append(received)
        return seen

    def until_dead(self) -> tuple[int, flight_recorder.Note]:
        """Wait for the end of the process. Returns its code, and what it had begun."""
        return self.process.wait(self.patience_s), flight_recorder.read(self.recorder)

    def speak(self, text: str = "hello", body: bytes | None = None, **job: Any) -> tuple[Finished, bytes]:
        end, seen = self.until_end(self.start(text, body, **job))
        assert isinstance(end, Finished), end
        streamed = b"".join(audio or b"" for message, audio in seen if isinstance(message, AudioChunk))
        return end, streamed if job.get("stream") else seen[-1][1] or b""

    def fail(self, text: str = "hello", body: bytes | None = None, **job: Any) -> Failed:
        end, _ = self.until_end(self.start(text, body, **job))
        assert isinstance(end, Failed), end
        return end

    # --- messages that must arrive before a job begins or resumes

    def busy(self) -> str:
        """Give the worker a stream that it can't finish, because nobody reads it; ``free`` ends that."""
        text = "今天天气不错，" * 2_000
        options = {"seconds": 3_600} if self.engine == "fault" else {}
        name = self.start(text, format="pcm_s16le", stream=True, sample_rate=48_000, options=options)
        self.expect(AudioChunk)
        return name

    def free(self, name: str) -> None:
        self.send(CancelJob(job=name))
        end, _ = self.until_end(name)
        assert isinstance(end, Failed) and end.code == "cancelled"

    def suspended(self, begin: Callable[[], str]) -> tuple[str, list[tuple[Message, bytes | None]]]:
        """Begin or resume a job, and suspend it at its first boundary; returns all its messages until then."""
        other = self.busy()
        name = begin()
        self.send(SuspendJob(job=name))
        self.free(other)
        return name, self.until(Suspended, name)


Start = Callable[..., WorkerUnderTest]


@contextlib.contextmanager
def workers() -> Iterator[Start]:
    """Starts workers, and ends them."""
    with tempfile.TemporaryDirectory(prefix="glmtts-") as folder, contextlib.ExitStack() as stack:

        def begin(**config: Any) -> WorkerUnderTest:
            own = Path(folder) / secrets.token_hex(4)
            own.mkdir()
            worker = WorkerUnderTest(own, **config)
            stack.callback(worker.close)
            return worker

        yield begin
