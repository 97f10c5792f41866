"""The work of the journal's thread: one transaction for all that has arrived, and recovery when it fails.

While the journal can't be written to, adds are refused at once, and ends are kept until they can be written.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from glmtts.protocol.requests import Cancel, GetJob, Wait

from ..core import effects, inputs
from . import free_space
from .problems import explain, keeps_connection, printable
from .rows import UnreadableRowError
from .store import Store

#: The number of ends after which the number of remembered jobs is checked.
_TIDY_AFTER_ENDS = 1_000
#: The most expired jobs, and the most superfluous results, that one transaction removes.
_TIDY_LIMIT = 64
#: The longest pause between two looks at the clock: the machine may be suspended meanwhile.
_TIDY_PAUSE_S = 60.0
#: A journal that fails after having worked this long is retried with the shortest pause.
_STEADY_S = 30.0
_NOW, _NEVER = float("-inf"), float("inf")


class Writer:
    """Owns the records that are not written yet, and when to retry. For one thread.

    ``answers`` collects inputs for the core, ``warnings`` lines for the log.
    """

    def __init__(self, store: Store, retry_s: tuple[float, float]) -> None:
        """See :class:`.journal.Journal` for ``retry_s``."""
        self.answers: list[inputs.Input] = []
        self.warnings: list[str] = []
        #: Why the journal can't be used; ``""`` while it can be, None before it was opened.
        self.problem: str | None = None
        #: Transactions that reached the disk, the seconds that they took, and transactions that failed.
        self.writes, self.write_s, self.failures = 0, 0.0, 0
        self._store = store
        self._timeline = store.timeline
        self._retry_s = retry_s
        self._retry_at = _NOW
        self._delay_s = retry_s[0]
        self._working_since = _NOW
        self._starts: dict[str, int] = {}
        self._ends: dict[str, effects.JournalEnd] = {}
        #: Jobs whose end was already reported as not yet written.
        self._reported: set[str] = set()
        #: Jobs whose add was refused though their row may be on disk, since only the flush may have failed.
        self._uncertain: set[str] = set()
        #: What clients had spoken by client and day, and the first day that is kept.
        self._usage: dict[tuple[str, int], inputs.Spoken] = {}
        self._usage_from = 0
        self._handed_over = False
        self._keep_bytes: int | None = None
        #: What a full disk leaves of that; None where there is room.
        self._disk_bytes: int | None = None
        #: When something may have to be removed, on the journal's timeline.
        self._tidy_at = _NEVER
        self._ends_since_tidy = 0

    @property
    def behind(self) -> bool:
        """Whether starts or ends are not on disk yet."""
        return bool(self._starts or self._ends or self._usage)

    def pause_s(self) -> float | None:
        """Seconds until the writer has work of its own; None: never."""
        if self.problem != "":
            return self._retry_at - time.monotonic()
        if self._tidy_at == _NEVER:
            return None
        return min(self._tidy_at - self._timeline.now(), _TIDY_PAUSE_S)

    def turn(
        self,
        adds: Sequence[effects.JournalAdd] = (),
        finds: Sequence[effects.JournalFind] = (),
        starts: dict[str, int] | None = None,
        ends: dict[str, effects.JournalEnd] | None = None,
    ) -> None:
        """Write the records that have arrived or are due. Every add and look-up is answered, whatever fails."""
        self._starts |= starts or {}
        self._ends = (ends or {}) | self._ends
        if self.problem == "":
            self._heal()
        if self.problem != "" and time.monotonic() >= self._retry_at:
            self._recover()
        if self.problem == "" and (adds or self.behind or self._tidy_at <= self._timeline.now()):
            self._write(adds)
        else:
            self._refuse(adds)
        if self.problem:
            new = [job for job in self._ends if job not in self._reported]
            self.answers += [inputs.JournalEnded(job, self.problem) for job in new]
            self._reported.update(new)
        self.answers += [self._find(effect) for effect in finds]

    def count(self, kept: Sequence[effects.KeepUsage]) -> None:
        """Take what clients had spoken, for the next transaction that succeeds."""
        for effect in kept:
            self._usage_from = max(self._usage_from, effect.oldest)
            for row in effect.rows:
                self._usage.setdefault((row.client, row.day), inputs.Spoken()).add(row.spoken)

    def close(self) -> None:
        """Try once more to write the rest, and close the file."""
        if self.problem != "" and self.behind:
            self._recover()
        else:
            self._heal()
        if self._ends:
            self.warnings.append(
                f"the ends of {len(self._ends)} durable jobs were not written: the next daemon runs them again"
            )
        self._store.close(for_good=True)

    def _write(self, adds: Sequence[effects.JournalAdd]) -> None:
        began = time.monotonic()
        try:
            with self._store.transaction():
                answers = [self._add(effect.row) for effect in adds]
                unknown = self._write_pending()
                useless = self._tidy()
                self._store.note_time()
        except Exception as error:
            self._uncertain.update(effect.row.job for effect in adds)
            self._fail(error)
            self._refuse(adds)
            return
        self.writes += 1
        self.write_s += time.monotonic() - began
        self.answers += answers
        self.answers += self._store.removed
        # A job that was cancelled, or whose worker died, may have left a file.
        useless += [job for job, end in self._ends.items() if not end.result]
        self._written(unknown)
        # After the rows, since the next daemon removes files that a crash leaves without a row.
        self.warnings += self._store.results.remove(useless)

    def _heal(self) -> bool:
        """Write files of the journal that were removed anew; returns False if that fails: it is tried again."""
        try:
            if line := self._store.heal():
                self.warnings.append(line)
        except Exception as error:
            self._fail(error, keep=True)
            return False
        return True

    def _recover(self) -> None:
        """Open the journal, or prove that it can be written to again."""
        rows: list[inputs.JournalRow] = []
        usage: list[inputs.UsageRow] = []
        damaged: list[str] = []
        if not self._heal():
            return
        try:
            if not self._store.is_open:
                self._store.open()
            with self._store.transaction():
                self._store.prove()
                self._store.forget(self._uncertain)
                self._store.add_rescued()
                if not self._handed_over:
                    rows, damaged = self._store.unfinished()
                    usage = self._store.usage()
                unknown = self._write_pending()
                self._store.note_time()
            if not self._handed_over:
                self._sweep(rows)
        except Exception as error:
            self._fail(error)
            return
        self._handed_over = True
        self._store.rescued = []
        self._uncertain.clear()
        self.problem = ""
        self._working_since = time.monotonic()
        self._tidy_at = _NOW
        self.warnings += damaged + self._timeline.notes
        self._timeline.notes = []
        self.answers.append(inputs.JournalChanged("", rows, usage))
        self._written(unknown)

    def _fail(self, error: Exception, *, keep: bool = False) -> None:
        """Note that the journal can't be used, and when to retry: later each time, unless it had worked for long.

        ``keep``: the connection stays open, as it has what is on no disk.
        """
        now = time.monotonic()
        self.failures += 1
        if self.problem == "" and now - self._working_since >= _STEADY_S:
            self._delay_s = self._retry_s[0]
        self._retry_at = now + self._delay_s
        self._delay_s = min(self._retry_s[1], self._delay_s * 2)
        problem = explain(error, self._store.file)
        if not keep and not keeps_connection(error):
            self._store.close(error)
        if problem != self.problem:
            self.problem = problem
            self.answers.append(inputs.JournalChanged(problem))

    def _refuse(self, adds: Sequence[effects.JournalAdd]) -> None:
        self.answers += [inputs.JournalAdded(effect.row.job, self.problem or "") for effect in adds]

    def _add(self, row: inputs.JournalRow) -> inputs.JournalAdded:
        try:
            return inputs.JournalAdded(row.job, known=self._store.add(row))
        except (ValueError, TypeError, OverflowError) as error:
            return inputs.JournalAdded(row.job, f"the job can't be written to {self._store.shown}: {error}")

    def _write_pending(self) -> list[str]:
        """Write the starts and ends; returns the jobs that are not in the journal."""
        for job, attempts in self._starts.items():
            self._store.start(job, attempts)
        if self._usage:
            self._store.count(self._usage, self._usage_from)
        before, keep_free = self._store.result_bytes, 0
        unknown = []
        for job, end in self._ends.items():
            if not self._store.end(end):
                unknown.append(job)
            self._keep_bytes, keep_free = end.keep_bytes, end.keep_free
            self._tidy_at = min(self._tidy_at, self._timeline.now() + end.keep_s)
        self._ends_since_tidy += len(self._ends)
        if (added := self._store.result_bytes - before) > 0 and keep_free:
            self._look_at_disk(added, keep_free)
        if self._too_much or self._ends_since_tidy >= _TIDY_AFTER_ENDS:
            self._tidy_at = _NOW
        return unknown

    def _look_at_disk(self, added: int, keep_free: int) -> None:
        """On a full disk results make room for new ones, and for no more than those: others may have filled it."""
        with contextlib.suppress(OSError):
            missing = added - free_space.above(self._store.results.folder, keep_free)
            self._disk_bytes = self._store.result_bytes - min(missing, 2 * added) if missing > 0 else None

    @property
    def _keep(self) -> int | None:
        """Bytes of results that may stay; None where no end has said it."""
        if self._keep_bytes is None or self._disk_bytes is None:
            return self._keep_bytes
        return max(0, min(self._keep_bytes, self._disk_bytes))

    @property
    def _too_much(self) -> bool:
        keep = self._keep
        return keep is not None and self._store.result_bytes > keep

    def _written(self, unknown: list[str]) -> None:
        """Answer the records that are now on disk."""
        self.warnings += [
            f"job {job} has ended, and is not in {self._store.shown}: its result can't be fetched after a restart"
            for job in unknown
        ]
        self.answers += [inputs.JournalEnded(job) for job in self._ends]
        self._starts.clear()
        self._ends.clear()
        self._usage = {}
        self._reported.clear()

    def _tidy(self) -> list[str]:
        """Remove a bounded number of expired rows and old results; returns the notes of the files to remove."""
        now = self._timeline.now()
        if self._tidy_at > now:
            return []
        self._ends_since_tidy = 0
        useless, more = self._store.expire(self._timeline.sure(), _TIDY_LIMIT)
        if (keep := self._keep) is not None:
            dropped, still_more = self._store.shrink(keep, _TIDY_LIMIT)
            useless += dropped
            more = more or still_more
            if not still_more:
                self._disk_bytes = None
        following = self._store.next_expiry()
        if following is not None and not self._timeline.settled:
            following = max(following, now + self._timeline.settles_in_s)
        self._tidy_at = _NOW if more else _NEVER if following is None else following
        return useless

    def _sweep(self, rows: list[inputs.JournalRow]) -> None:
        if self._store.is_new:
            # The old one was moved away, as the message for a damaged journal says: its results may still be wanted.
            if old := self._store.results.rename_old():
                self.warnings.append(
                    f"the journal is new: the results of the earlier one are now in {printable(old)}; put them back "
                    "with that journal, or remove them"
                )
            return
        removed = self._store.results.sweep(self._store.result_names(), {row.job for row in rows})
        if removed:
            self.warnings.append(
                f"{removed} files in {printable(self._store.results.folder)} belonged to no job and were removed"
            )

    def _find(self, effect: effects.JournalFind) -> inputs.JournalFound:
        request = effect.request
        if not isinstance(request, Wait | GetJob | Cancel):
            return found(effect, problem=f"{type(request).__name__} names no job to look up")
        # A journal that can't be written to, as on a full disk, can still be read.
        if not self._store.is_open:
            return found(effect, problem=self.problem or "the journal is closed")
        try:
            row = self._store.find(request.job)
        except UnreadableRowError as error:
            return found(effect, problem=str(error))
        except Exception as error:
            self._fail(error)
            return found(effect, problem=self.problem or "")
        if row is None or (effect.client is not None and effect.client not in (row.client, row.client.split("/")[0])):
            return found(effect)
        return found(effect, row)


def found(
    effect: effects.JournalFind, row: inputs.JournalRow | None = None, *, problem: str = ""
) -> inputs.JournalFound:
    """The answer to a look-up."""
    return inputs.JournalFound(effect.to, effect.request, effect.client, row, problem)
