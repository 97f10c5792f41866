"""Speaking the lines of a batch, several at a time: who is retried, who fails alone, and what stops them all."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmtts.client import AsyncClient, ConnectionLost, DaemonNotRunning, GlmttsError, RequestFailed, Speech

from ..retry import PUT_OFF, retry_delay
from ..ui.files import write_atomically
from .durable import NOT_NOW, DurableJobs, needs_no_journal
from .progress_file import Journal

#: With these the daemon says that it can't work now: the other lines would meet the same.
_STOPS_ALL = frozenset({"unavailable", "shutting_down"})

#: Where these come from a write, no other file would fare better.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})

_LONGEST_PAUSE_S = 30.0

#: Put off again and again for this long, a line gives up: something is wrong with the limits.
_LONGEST_PUT_OFF_S = 3_600.0

#: What happens to every line under way is said once in so many seconds.
_SAID_AGAIN_S = 10.0

#: How long the daemon may be away, in seconds: one that has our lines in its journal is waited for.
_RECONNECT_S = 30.0
_RECONNECT_DURABLE_S = 120.0


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is to be spoken: what to ask for, and the file to write. ``recording_bytes``: its prompt's size."""

    number: int
    name: str
    digest: str
    text: str
    request: dict[str, Any]
    recording_bytes: int = 0


@dataclass(frozen=True, slots=True)
class FailedLine:
    """A line that was not spoken, and why."""

    number: int
    code: str
    reason: str
    name: str = ""

    def as_map(self) -> dict[str, Any]:
        """As it stands in failures.jsonl."""
        record: dict[str, Any] = {"line": self.number, "code": self.code, "reason": self.reason}
        return record | ({"output": self.name} if self.name else {})


@dataclass
class BatchRun:
    """Lines on their way to ``folder``. ``spoken`` and ``failed`` grow while it runs; ``moved`` is called with each.

    With ``durable`` the daemon goes on with what it has when this ends early, unless ``cancel_on_exit``.
    """

    folder: Path
    journal: Journal
    outstanding: int
    retries: int
    note: Callable[[str], None]
    moved: Callable[[], None]
    durable: bool = True
    cancel_on_exit: bool = False
    spoken: int = 0
    audio_s: float = 0.0
    failed: list[FailedLine] = field(default_factory=list)
    _jobs: DurableJobs | None = None
    _said: dict[str, float] = field(default_factory=dict)

    @property
    def in_daemon(self) -> int:
        """Lines that the daemon has and goes on with."""
        return len(self._jobs.under_way) if self._jobs is not None else 0

    async def run(self, endpoint: str | None, lines: Sequence[Line]) -> None:
        """Speak ``lines``. A line that fails alone goes to ``failed``; raises what makes it useless to go on."""
        if self.durable:
            self._jobs = DurableJobs(self.journal, self.retries, self._note_once)
        reconnect_s = _RECONNECT_DURABLE_S if self.durable else _RECONNECT_S
        async with AsyncClient(endpoint=endpoint, reconnect_s=reconnect_s) as client:
            todo = iter(lines)
            takers = [asyncio.create_task(self._take(client, todo)) for _ in range(min(self.outstanding, len(lines)))]
            try:
                await asyncio.gather(*takers)
            finally:
                for taker in takers:
                    # Cancelled with us they know it already, and a second time would cut off what they put in order.
                    if not taker.cancelling():
                        taker.cancel()
                # Each ends its job with the daemon before the connection closes, unless that is to go on with it.
                await asyncio.gather(*takers, return_exceptions=True)
                if self._jobs is not None and self.cancel_on_exit:
                    await self._jobs.cancel(client)

    def _note_once(self, kind: str, words: str) -> None:
        """Say what would be said of hundreds of lines at once of one of them."""
        now = time.monotonic()
        if now - self._said.get(kind, -_SAID_AGAIN_S) >= _SAID_AGAIN_S:
            self._said[kind] = now
            self.note(words)

    async def _take(self, client: AsyncClient, todo: Iterator[Line]) -> None:
        for line in todo:
            try:
                speech = await self._speak(client, line)
                write_atomically(self.folder / line.name, speech.audio)
            except RequestFailed as error:
                if error.code in _STOPS_ALL or needs_no_journal(error):
                    raise
                self._failed(line, error.code, error.message)
            except DaemonNotRunning:
                raise
            except GlmttsError as error:
                if isinstance(error, ConnectionLost):
                    raise
                self._failed(line, "failed", str(error))
            except OSError as error:
                if error.errno in _NO_ROOM:
                    raise
                self._failed(line, "failed", f"{error.filename or line.name}: {error.strerror or error}")
            else:
                self.journal.add(line.name, line.digest, line=line.number, audio_s=speech.audio_s)
                self._settle(line)
                self.spoken += 1
                self.audio_s += speech.audio_s
                self.moved()

    def _failed(self, line: Line, code: str, reason: str) -> None:
        self.failed.append(FailedLine(line.number, code, reason, line.name))
        self._settle(line)
        self.moved()

    def _settle(self, line: Line) -> None:
        if self._jobs is not None:
            self._jobs.settled(line)

    async def _attempt(self, client: AsyncClient, line: Line) -> Speech:
        if self._jobs is not None:
            return await self._jobs.speak(client, line)
        return await client.speak(line.text, **line.request, durable=False)

    async def _speak(self, client: AsyncClient, line: Line) -> Speech:
        """The line's speech, tried again as often as that makes sense."""
        tries, put_off_s = 0, 0.0
        while True:
            try:
                return await self._attempt(client, line)
            except RequestFailed as error:
                if self._jobs is not None and not error.job and error.code in NOT_NOW:
                    raise  # it was asked again, as often as that makes sense
                pause = retry_delay(error, otherwise=min(2.0**tries, _LONGEST_PAUSE_S))
                if error.code in PUT_OFF:
                    put_off_s += pause
                    if put_off_s > _LONGEST_PUT_OFF_S:
                        raise
                else:
                    tries += 1
                    if not error.retryable or tries > self.retries:
                        raise
                    pause = min(pause, _LONGEST_PAUSE_S)
                self.note(f"line {line.number}: {error.message} ({error.code}); trying again in {pause:.1f} s")
            except ConnectionLost as error:
                tries += 1
                if tries > self.retries:
                    raise
                pause = min(2.0**tries, _LONGEST_PAUSE_S)
                self._note_once("connection", f"line {line.number}: {error}; trying again in {pause:.1f} s")
            await asyncio.sleep(pause)
