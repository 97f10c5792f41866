"""Speaking the lines of a batch as jobs of the daemon: which are retried, which fail alone, and what stops them all.

Each line is a durable job with an idempotency key: the daemon finishes the jobs when this command ends, and the next
run joins them by their keys instead of having the lines spoken twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmtts.client import AsyncClient, ConnectionLost, DaemonNotRunning, GlmttsError, Job, RequestFailed, Speech
from glmtts.client.files import write_whole
from glmtts.protocol.system_words import error_in_words

from ..retry import TRY_LATER, retry_delay
from .file import Line
from .progress_file import ProgressFile

#: The daemon can't work now, and would refuse every other line too.
_STOPS_ALL = frozenset({"unavailable", "shutting_down"})

#: Refusals after which the same line is submitted again before any other.
_NOT_NOW = TRY_LATER | _STOPS_ALL

#: Errors of a write after which no other file can be written either.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})

_LONGEST_PAUSE_S = 30.0

#: A line that is refused for this long fails: the limits are wrong.
_LONGEST_WAIT_S = 3_600.0

#: The daemon may be gone, or about to end, for this long: a restart takes less.
_RESTART_S = 120.0

#: A remark that holds for every line under way is repeated after this many seconds.
_REPEAT_NOTE_S = 10.0

#: The recordings of all jobs under way have at most this many bytes: the daemon's memory for them is shared by clients.
_MOST_RECORDINGS = 32 << 20

#: A line whose result is lost is spoken again this often in one run.
_MAX_LOST = 3

#: At its end the batch waits this many seconds for the answer to the line that it sent last.
_ANSWER_S = 0.5

#: At its end the batch gives the daemon this many seconds to cancel jobs.
_CANCEL_S = 5.0


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

    Lines are submitted in their order, one at a time, ``outstanding`` of them ahead. The jobs outlive this run unless
    ``cancel_on_exit``; those that are not ``durable`` are always cancelled.
    """

    folder: Path
    progress: ProgressFile
    outstanding: int
    retries: int
    note: Callable[[str], None]
    moved: Callable[[], None]
    durable: bool = True
    cancel_on_exit: bool = False
    spoken: int = 0
    audio_s: float = 0.0
    failed: list[FailedLine] = field(default_factory=list)
    #: Jobs that the daemon has accepted and that have not ended, by the names of their outputs.
    under_way: dict[str, Job] = field(default_factory=dict)
    #: Jobs that a stopping daemon has given up, by the names of their outputs.
    _left_to_restart: dict[str, str] = field(default_factory=dict)
    _recordings: dict[str, int] = field(default_factory=dict)
    _submitting: asyncio.Lock = field(default_factory=asyncio.Lock)
    _freed: asyncio.Event = field(default_factory=asyncio.Event)
    _noted_at: dict[str, float] = field(default_factory=dict)

    @property
    def in_daemon(self) -> int:
        """Lines that the daemon speaks although this command ends."""
        return len(self.under_way) if self.durable else 0

    async def run(self, endpoint: str | None, lines: Sequence[Line]) -> None:
        """Speak ``lines``. A line that fails alone goes to ``failed``.

        Raises:
            DaemonNotRunning, ConnectionLost: the daemon is gone for longer than a restart takes.
            RequestFailed: the daemon refuses every line.
            OSError: no output can be written.
        """
        async with AsyncClient(endpoint=endpoint, reconnect_s=_RESTART_S) as client:
            todo = iter(lines)
            takers = [asyncio.create_task(self._take(client, todo)) for _ in range(min(self.outstanding, len(lines)))]
            try:
                await asyncio.gather(*takers)
            finally:
                for taker in takers:
                    # Takers cancelled together with this task are already ending: a second cancel would cut that short.
                    if not taker.cancelling():
                        taker.cancel()
                await asyncio.gather(*takers, return_exceptions=True)
                if self.cancel_on_exit or not self.durable:
                    await self._cancel(client)

    async def _take(self, client: AsyncClient, todo: Iterator[Line]) -> None:
        for line in todo:
            try:
                speech = await self._speak(client, line)
                write_whole(self.folder / line.name, speech.audio)
            except RequestFailed as error:
                if error.code in _STOPS_ALL or has_no_journal(error):
                    raise
                self._fail(line, error.code, error.message)
            except (DaemonNotRunning, ConnectionLost):
                raise
            except GlmttsError as error:
                self._fail(line, "failed", str(error))
            except OSError as error:
                if error.errno in _NO_ROOM:
                    raise
                self._fail(
                    line, "failed", error_in_words(error) if error.filename else f"{line.name}: {error_in_words(error)}"
                )
            else:
                self.progress.add(line.name, line.digest, line=line.number, audio_s=speech.audio_s)
                self.spoken += 1
                self.audio_s += speech.audio_s
                self._end(line)

    def _fail(self, line: Line, code: str, reason: str) -> None:
        self.failed.append(FailedLine(line.number, code, reason, line.name))
        self._end(line)

    def _end(self, line: Line) -> None:
        self.under_way.pop(line.name, None)
        self._freed.set()
        self.moved()

    async def _speak(self, client: AsyncClient, line: Line) -> Speech:
        """The line's speech, from its job of an earlier run or from a new one; retried as often as that makes sense."""
        tries, lost, waited_s = 0, 0, 0.0
        while True:
            pause = min(2.0**tries, _LONGEST_PAUSE_S)
            try:
                return await self._wait(client, line, await self._submit(client, line))
            except ConnectionLost as error:
                tries += 1
                if tries > self.retries:
                    raise
                self._note("connection", f"line {line.number}: {error}; trying again in {pause:.1f} s")
            except RequestFailed as error:
                self._forget_job(line, error)
                if error.code == "job_not_found" and lost < _MAX_LOST:
                    lost += 1
                    self._note("lost", f"line {line.number}: {error.message}; it is spoken again")
                    continue
                if not error.job and error.code in _NOT_NOW:
                    raise  # _submit has retried it
                pause = retry_delay(error, otherwise=pause)
                if error.code in TRY_LATER:
                    waited_s += pause
                else:
                    tries += 1
                    pause = min(pause, _LONGEST_PAUSE_S)
                if not error.retryable or tries > self.retries or waited_s > _LONGEST_WAIT_S:
                    raise
                self.note(f"line {line.number}: {error.message} ({error.code}); trying again in {pause:.1f} s")
            await asyncio.sleep(pause)

    def _forget_job(self, line: Line, error: RequestFailed) -> None:
        """After an error of a job, its key is used up, so that the next attempt is a new job.

        A daemon that stops says shutting_down of durable jobs that its successor finishes: the first time, the key
        stays.
        """
        if error.code != "job_not_found" and not error.job:
            return
        if error.code == "shutting_down" and self._left_to_restart.get(line.name) != error.job:
            self._left_to_restart[line.name] = error.job or ""
            return
        self.progress.spent(line.name, error.code)
        self.under_way.pop(line.name, None)

    async def _wait(self, client: AsyncClient, line: Line, job: Job) -> Speech:
        self.under_way[line.name] = job
        self._recordings[line.name] = line.recording_bytes
        try:
            return await client.wait(job)
        finally:
            del self._recordings[line.name]
            self._freed.set()

    async def _submit(self, client: AsyncClient, line: Line) -> Job:
        """Submit the line. While the daemon accepts no more, one line asks again and all others wait for it."""
        tries, waited_s = 0, 0.0
        async with self._submitting:
            size = line.recording_bytes
            while size and (held := sum(self._recordings.values())) and held + size > _MOST_RECORDINGS:
                await self._job_ended()
            while True:
                try:
                    job = await self._ask(client, line)
                    break
                except RequestFailed as error:
                    pause = retry_delay(error, otherwise=min(2.0**tries, _LONGEST_PAUSE_S))
                    tries, waited_s = tries + 1, waited_s + pause
                    if not self._may_pass(error, tries, waited_s):
                        raise
                    hint = "; --no-durable does without the journal" if has_no_journal(error) else ""
                    words = f"line {line.number}: {error.message} ({error.code})"
                    self._note(error.code, f"{words}; trying again in {pause:.1f} s{hint}")
                    full = error.code == "queue_full"
                # A full queue has room again as soon as one of our own jobs has ended.
                await (self._job_ended(pause) if full else asyncio.sleep(pause))
        if job.warning and "paused" in job.warning:
            self._note("paused", job.warning)
        return job

    def _may_pass(self, error: RequestFailed, tries: int, waited_s: float) -> bool:
        if error.job or error.code not in _NOT_NOW:
            return False
        if error.code == "unavailable":
            return tries <= self.retries
        return waited_s <= (_RESTART_S if error.code == "shutting_down" else _LONGEST_WAIT_S)

    async def _ask(self, client: AsyncClient, line: Line) -> Job:
        key = self.progress.key(line.name, line.digest) if self.durable else None
        asked = asyncio.ensure_future(client.submit(line.text, **line.request, durable=self.durable, key=key))
        try:
            return await asyncio.shield(asked)
        except asyncio.CancelledError:
            # The last remark says how many lines the daemon has: wait for its answer to this one.
            answered, _ = await asyncio.wait({asked}, timeout=_ANSWER_S)
            if answered and not asked.cancelled() and asked.exception() is None:
                self.under_way[line.name] = asked.result()
            asked.cancel()
            raise

    async def _job_ended(self, within_s: float | None = None) -> None:
        self._freed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._freed.wait()

    async def _cancel(self, client: AsyncClient) -> None:
        """Cancel the jobs under way, as far as the daemon can be reached."""
        with contextlib.suppress(GlmttsError, TimeoutError):
            async with asyncio.timeout(_CANCEL_S):
                for name, job in list(self.under_way.items()):
                    with contextlib.suppress(RequestFailed):
                        await client.cancel(job)
                    if self.durable:
                        self.progress.spent(name, "cancelled")
                    del self.under_way[name]

    def _note(self, kind: str, words: str) -> None:
        """Say once what is true of hundreds of lines at a time."""
        now = time.monotonic()
        if now - self._noted_at.get(kind, -_REPEAT_NOTE_S) >= _REPEAT_NOTE_S:
            self._noted_at[kind] = now
            self.note(words)


def has_no_journal(error: BaseException | None) -> bool:
    """Whether the daemon refused a durable job because its journal is off or can't be written now."""
    if not isinstance(error, RequestFailed) or error.code not in ("bad_request", "unavailable"):
        return False
    named = error.message.startswith("durable:")
    return named or (error.code == "unavailable" and "journal" in error.message.lower())
