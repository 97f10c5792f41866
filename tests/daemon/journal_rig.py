"""What the journal's tests share: rows, a loop that waits for answers, and the journal in a process of its own."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from glmtts.daemon.core import effects, inputs
from glmtts.daemon.storage.journal import Journal
from glmtts.daemon.storage.timeline import Timeline
from glmtts.protocol.events import Done
from glmtts.protocol.requests import GetJob, Synthesize

__all__ = ["Journal", "Path", "Rig", "done", "effects", "end", "inputs", "json", "os", "row", "select", "subprocess"]

T = TypeVar("T")
DAY_S = 86_400.0
TIMEOUT_S = 20.0
TO = inputs.ReplyTo(1)
#: A problem of the journal says this.
MEANS = "Durable jobs are refused meanwhile; other requests are served."


def content(folder: Path) -> dict[str, bytes]:
    """The content of the files, without those that every reader makes anew: the index of the log, and an empty log."""
    files = [path for path in folder.glob("journal.db*") if not path.name.endswith("-shm")]
    return {path.name: data for path in files if (data := path.read_bytes()) or path.name == "journal.db"}


def row(
    job: str, *, client: str = "uid:1", text: str = "你好。", created: float = 1e9, **more: Any
) -> inputs.JournalRow:
    """A durable job; ``key`` and ``options`` are its request's."""
    wishes = {name: more.pop(name) for name in ("key", "options") if name in more}
    request = Synthesize(id=f"request of {job}", v=1, text=text, durable=True, **wishes)
    more.setdefault("content", f"content of {job}")
    return inputs.JournalRow(
        job=job, client=client, user="anna", request=request, format="wav", sample_rate=None, created=created, **more
    )


def done(job: str) -> Done:
    return Done(
        id=f"request of {job}",
        job=job,
        format="wav",
        sample_rate=24_000,
        audio_s=1.5,
        waited_s=0.1,
        synthesis_s=0.5,
        first_audio_s=0.2,
        rtf=0.3,
        attempts=1,
        engine="fault",
        voice="",
        sha256="0" * 64,
    )


def end(
    job: str, *, result: str = "", keep_s: float = DAY_S, keep_bytes: int = 1 << 40, keep_free: int = 0
) -> effects.JournalEnd:
    return effects.JournalEnd(job, "done", done(job), result, keep_s, keep_bytes, keep_free)


def steady(now: Callable[[], float]) -> Timeline:
    """One on which seconds pass as ``now`` says, and whose wall clock is right."""
    return Timeline(now, now, lambda: "this boot")


class Rig:
    """A journal, and the loop that it wakes."""

    def __init__(
        self,
        folder: Path,
        *,
        now: float = 1e9,
        wall: Callable[[], float] | None = None,
        timeline: Timeline | None = None,
        retry_s: tuple[float, float] = (0.02, 0.1),
        **limits: Any,
    ) -> None:
        self.now = now
        self.warnings: list[str] = []
        self.seen: list[inputs.Input] = []
        self.folder = folder
        self.file = folder / "journal.db"
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.journal = Journal(
            folder,
            self._write,
            on_warning=self.warnings.append,
            timeline=timeline or steady(wall or (lambda: self.now)),
            retry_s=retry_s,
            **limits,
        )
        self.opened = self.journal.open()

    def __enter__(self) -> Rig:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.journal.close(TIMEOUT_S)
        self.seen += self.journal.collect()
        os.close(self._read)
        os.close(self._write)

    def until(self, kind: type[T], true: Callable[[T], bool] = lambda _: True) -> T:
        """Wait for an answer, which is taken out of those that were seen."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            for answer in self.seen:
                if isinstance(answer, kind) and true(answer):
                    self.seen.remove(answer)
                    return answer
            if not select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise AssertionError(f"no {kind.__name__} within {TIMEOUT_S} s; there are {self.seen}")
            os.read(self._read, 4096)
            self.seen += self.journal.collect()

    def add(self, new: inputs.JournalRow) -> inputs.JournalAdded:
        self.journal.add(effects.JournalAdd(new))
        return self.until(inputs.JournalAdded, lambda a: a.job == new.job)

    def end(self, job: str, **more: Any) -> inputs.JournalEnded:
        self.journal.end(end(job, **more))
        return self.until(inputs.JournalEnded, lambda a: a.job == job)

    def look(self, job: str, client: str | None = None) -> inputs.JournalFound:
        self.journal.find(effects.JournalFind(TO, GetJob(id="f", v=1, job=job), client))
        return self.until(inputs.JournalFound)

    def found(self, job: str, client: str | None = None) -> inputs.JournalRow | None:
        answer = self.look(job, client)
        assert answer.problem == ""
        return answer.row


def python(code: str, *argv: str, wrapper: Sequence[str] = (), **more: Any) -> subprocess.Popen[str]:
    """Another process that runs ``code``, with its output piped; ``wrapper`` is a command that runs commands."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, **more}
    return subprocess.Popen([*wrapper, sys.executable, "-c", code, *argv], **pipes)


def run(code: str, *argv: str, wrapper: Sequence[str] = ()) -> str:
    """Run ``code`` in another process, with all of ``__all__``; returns what it printed. Its failure is the test's."""
    preamble = "from tests.daemon.journal_rig import *\n"
    root = Path(__file__).parents[2]
    with python(preamble + code, *argv, wrapper=wrapper, cwd=root, stderr=subprocess.PIPE) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return str(out)
