"""The lines of a batch as durable jobs: the daemon has them in its journal, and goes on with them when we don't.

Every line has an idempotency key, by which this run and the next join the job instead of having the line spoken twice.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from glmtts.client import AsyncClient, GlmttsError, Job, JobNotFound, RequestFailed, Speech

from ..retry import PUT_OFF, retry_delay
from .progress_file import Journal

if TYPE_CHECKING:
    from .runner import Line

#: Recordings that wait with the daemon at a time, in bytes: its memory for them is for all of its clients.
_MOST_RECORDINGS = 32 << 20

#: How long a daemon may be about to end before the batch does, in seconds: it is restarted in less.
_RESTART_S = 120.0

#: Put off again and again for this long, a line gives up: something is wrong with the limits.
_LONGEST_PUT_OFF_S = 3_600.0

_LONGEST_PAUSE_S = 30.0

#: Refusals after which :class:`DurableJobs` asks again by itself, for as long as that makes sense.
NOT_NOW = PUT_OFF | {"unavailable", "shutting_down"}

#: How often a line whose result is not kept any more is spoken anew, in one run.
_MAX_LOST = 3

#: How long the batch waits, when it ends, for the answer to the line that it has just sent, in seconds.
_ANSWER_S = 0.5

#: How long the daemon may take to cancel what is under way when the batch ends.
_CANCEL_S = 5.0


@dataclass
class DurableJobs:
    """Submits lines in their order, one at a time, and waits for any number of them.

    ``note`` gets a kind of news, of which one is enough for a while, and its words.
    """

    journal: Journal
    retries: int
    note: Callable[[str, str], None]
    #: What the daemon has and we have not: jobs by the names of their outputs.
    under_way: dict[str, Job] = field(default_factory=dict)
    #: Jobs of which the daemon said that it ends, by the names of their outputs.
    _said_of: dict[str, str] = field(default_factory=dict)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _recordings: dict[str, int] = field(default_factory=dict)
    _moved: asyncio.Event = field(default_factory=asyncio.Event)

    async def speak(self, client: AsyncClient, line: Line) -> Speech:
        """The line's speech, from the job that there is for it, or from a new one."""
        lost = 0
        while True:
            try:
                return await self._wait(client, line, await self._submit(client, line))
            except JobNotFound as error:
                # The job has ended, and its result is kept no longer.
                self._spend(line, error.code)
                lost += 1
                if lost > _MAX_LOST:
                    raise
                self.note("lost", f"line {line.number}: {error.message}; it is spoken again")
            except RequestFailed as error:
                # A daemon that ends says so of jobs that its successor goes on with; said twice of one, it has ended.
                if error.job and not (error.code == "shutting_down" and self._said_of.get(line.name) != error.job):
                    self._spend(line, error.code)
                elif error.job:
                    self._said_of[line.name] = error.job
                raise

    def settled(self, line: Line) -> None:
        """The line's speech is in its file, or will never be: the daemon has nothing of it any more."""
        self.under_way.pop(line.name, None)
        self._moved.set()

    def _spend(self, line: Line, code: str) -> None:
        self.journal.spent(line.name, code)
        self.under_way.pop(line.name, None)

    async def _wait(self, client: AsyncClient, line: Line, job: Job) -> Speech:
        self.under_way[line.name] = job
        self._recordings[line.name] = line.recording_bytes
        try:
            return await client.wait(job)
        finally:
            del self._recordings[line.name]
            self._moved.set()

    async def _submit(self, client: AsyncClient, line: Line) -> Job:
        """Hand the line to the daemon. While it takes no more, one line asks again, and the others wait for that."""
        async with self._turn:
            size = line.recording_bytes
            while size and (held := sum(self._recordings.values())) and held + size > _MOST_RECORDINGS:
                await self._pause(None)
            job = await self._ask_patiently(client, line)
        if job.warning and "paused" in job.warning:
            self.note("paused", job.warning)
        return job

    async def _ask_patiently(self, client: AsyncClient, line: Line) -> Job:
        tries, waited_s = 0, 0.0
        while True:
            try:
                return await self._ask(client, line)
            except RequestFailed as error:
                pause = retry_delay(error, otherwise=min(2.0**tries, _LONGEST_PAUSE_S))
                tries, waited_s = tries + 1, waited_s + pause
                if not self._is_worth_waiting(error, tries, waited_s):
                    raise
                hint = "; --no-durable goes on without the journal" if needs_no_journal(error) else ""
                words = f"line {line.number}: {error.message} ({error.code})"
                self.note(error.code, f"{words}; trying again in {pause:.1f} s{hint}")
                full = error.code == "queue_full"
            # Where one of ours has ended, there may be a place before that.
            await (self._pause(pause) if full else asyncio.sleep(pause))

    async def _ask(self, client: AsyncClient, line: Line) -> Job:
        key = self.journal.key(line.name, line.digest)
        asked = asyncio.ensure_future(client.submit(line.text, **line.request, durable=True, key=key))
        try:
            return await asyncio.shield(asked)
        except asyncio.CancelledError:
            # Whether the daemon has the line is what the person is told next.
            answered, _ = await asyncio.wait({asked}, timeout=_ANSWER_S)
            if answered and not asked.cancelled() and asked.exception() is None:
                self.under_way[line.name] = asked.result()
            asked.cancel()
            raise

    def _is_worth_waiting(self, error: RequestFailed, tries: int, waited_s: float) -> bool:
        if error.job or error.code not in NOT_NOW:
            return False
        if error.code in PUT_OFF:
            return waited_s <= _LONGEST_PUT_OFF_S
        if error.code == "shutting_down":
            return waited_s <= _RESTART_S
        return tries <= self.retries

    async def _pause(self, seconds: float | None) -> None:
        """Until one of our jobs has ended, or for ``seconds``."""
        self._moved.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._moved.wait()

    async def cancel(self, client: AsyncClient) -> None:
        """End what is under way, as far as the daemon can be reached."""
        with contextlib.suppress(GlmttsError, TimeoutError):
            async with asyncio.timeout(_CANCEL_S):
                for name, job in list(self.under_way.items()):
                    with contextlib.suppress(RequestFailed):
                        await client.cancel(job)
                    self.journal.spent(name, "cancelled")
                    del self.under_way[name]


def needs_no_journal(error: BaseException | None) -> bool:
    """Whether the daemon refused because it can't keep a journal, or can't use it now: without one it would speak."""
    if not isinstance(error, RequestFailed) or error.code not in ("bad_request", "unavailable"):
        return False
    named = error.message.startswith("durable:")
    return named or (error.code == "unavailable" and "journal" in error.message.lower())
