"""A daemon with a journal, by script, and the command `glmttsctl batch` that its tests run."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from click.testing import Result

from glmtts.protocol import events
from glmtts.protocol.errors import ErrorCode
from glmtts.protocol.requests import Cancel, Request, Synthesize, Wait

from ..scripted_daemon import ScriptedDaemon, accepted, done
from .conftest import GLMTTSCTL, Ctl


@dataclass
class Job:
    id: str
    text: str
    audio: bytes
    end: ErrorCode | None = None
    ended: bool = False
    listeners: list[tuple[bytes, str]] = field(default_factory=list)


class JournalledDaemon:
    """A scripted daemon with a journal: jobs by key, which end at once, or when a test ends a text that is ``held``."""

    def __init__(self, daemon: ScriptedDaemon) -> None:
        self.daemon = daemon
        self.spoken: list[str] = []
        self.held: set[str] = set()
        self.cancelled: list[str] = []
        self.refuse: Callable[[Synthesize], events.Error | None] = lambda _: None
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        daemon.script = self.script

    def script(self, daemon: ScriptedDaemon, peer: bytes, request: Request, body: bytes) -> None:
        with self._lock:
            if isinstance(request, Synthesize):
                self._synthesize(peer, request, body)
            elif isinstance(request, Wait):
                self._listen(self._find(request.job), peer, request.id)
            elif isinstance(request, Cancel):
                self.cancelled.append(self._find(request.job).text)
                daemon.send(peer, events.Result(id=request.id, values={"state": "cancelled"}))

    def _synthesize(self, peer: bytes, request: Synthesize, body: bytes) -> None:
        if refusal := self.refuse(request):
            self.daemon.send(peer, refusal)
            return
        # Without a key each request is a job of its own.
        key = request.key if isinstance(request.key, str) else f"none-{len(self._jobs)}"
        assert request.durable is isinstance(request.key, str) and 1 <= len(key) <= 128
        job = self._jobs.get(key)
        if job is None:
            job = self._jobs[key] = Job(self.daemon.new_job(), request.text, body + request.text.encode())
            self.spoken.append(request.text)
        self.daemon.send(peer, accepted(job.id, request.id))
        self._listen(job, peer, request.id)

    def _listen(self, job: Job, peer: bytes, id: str) -> None:
        job.listeners.append((peer, id))
        if job.ended or job.text not in self.held:
            self._tell(job)

    def _tell(self, job: Job) -> None:
        job.ended = True
        for peer, id in job.listeners:
            if job.end is None:
                self.daemon.send(peer, done(job.id, id, job.audio), job.audio)
            else:
                self.daemon.send(peer, events.Error.of(id, job.end, "it says why", job=job.id))
        job.listeners.clear()

    def _find(self, id: str) -> Job:
        return next(job for job in self._jobs.values() if job.id == id)

    def end(self, *texts: str, error: ErrorCode | None = None) -> None:
        """End the jobs of these texts, well or with an error; a later listener hears the same."""
        with self._lock:
            self.held -= set(texts)
            for job in self._jobs.values():
                if job.text in texts:
                    job.end = error
                    self._tell(job)


class Batch:
    """Lines in a file, and the command that speaks them into ``out``: here, or as a process of its own."""

    def __init__(self, ctl: Ctl, daemon: ScriptedDaemon, folder: Path) -> None:
        self.out = folder / "out"
        self.file = folder / "b.jsonl"
        self._ctl = ctl
        self._endpoint = daemon.endpoint
        self.processes: list[subprocess.Popen[str]] = []

    def write(self, *lines: str | dict[str, str], **keys: str) -> None:
        whole = [{"uttid": line, "syn_text": line} | keys if isinstance(line, str) else line for line in lines]
        self.file.write_text("".join(json.dumps(line) + "\n" for line in whole))

    def run(self, *more: object, out: Path | None = None) -> Result:
        return self._ctl("batch", self.file, "--out", out or self.out, *more)

    def begin(self, *more: str) -> subprocess.Popen[str]:
        # The tests may run under nohup, and the command would then ignore a closed terminal too.
        command = ["env", "--default-signal=HUP", *GLMTTSCTL, "batch", str(self.file), "--out", str(self.out)]
        process = subprocess.Popen([*command, "--endpoint", self._endpoint, *more], stderr=subprocess.PIPE, text=True)
        self.processes.append(process)
        return process

    @property
    def outputs(self) -> list[str]:
        return sorted(path.name for path in self.out.glob("*.wav"))

    @property
    def failures(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in (self.out / "failures.jsonl").read_text().splitlines()]


def until_asked(daemon: ScriptedDaemon, count: int) -> None:
    for _ in range(count):
        daemon.next_of(Synthesize)
