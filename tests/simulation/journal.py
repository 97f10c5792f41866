"""The journal as the simulation plays it: it answers late and in order, fails for a while, and forgets what it had not
committed when the daemon dies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec import UNSET
from msgspec.structs import replace

from glmtts.daemon.core import effects, inputs
from glmtts.protocol.events import Error

from .rules import Rule, must
from .texts import takes_s

if TYPE_CHECKING:
    from .world import World

_PROBLEM = "/state/journal.db: no space left on device"


@dataclass
class Pending:
    """What was asked of the journal, and is not on disk."""

    adds: list[inputs.JournalRow]
    starts: dict[str, int]
    ends: dict[str, effects.JournalEnd]
    finds: list[effects.JournalFind]


def _nothing() -> Pending:
    return Pending([], {}, {}, [])


class Journal:
    """One file for all daemons of a life; ``rows`` are the ones that are on disk."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.rows: dict[str, inputs.JournalRow] = {}
        self._expires: dict[str, float] = {}
        #: When each job was added, and its deadline, by a clock that nobody can set.
        self._times: dict[str, tuple[float, float | None]] = {}
        self._keys: dict[tuple[str, str], str] = {}
        #: Files of results, the oldest first.
        self.results: dict[str, bytes] = {}
        #: Jobs whose end this daemon's core was told to be on disk, or not to be yet.
        self.answered: set[str] = set()
        #: Jobs that this daemon has to bring to an end: of an earlier one, or accepted.
        self.due: set[str] = set()
        #: Why it can't be used; None before anybody knows.
        self.problem: str | None = None
        #: What the core was told of it in this life.
        self.problems: set[str] = set()
        #: Jobs whose end the shell has lost.
        self.lost: set[str] = set()
        self._disk_fails = False
        self._handed_over = False
        self._uncertain: set[str] = set()
        self._told: set[str] = set()
        self._pending = _nothing()
        self._writing = False
        self._retries = False
        if world.scene.journal_fails:
            world.after(world.random.expovariate(0.1), self._break)

    # --- daemons come and go

    def open(self) -> None:
        """A daemon starts: it is told what an earlier one has left."""
        if self._world.scene.journal:
            self._world.later(self._world.random.choice((0.0, 0.02, 0.5)), self._recover)

    def close(self, *, clean: bool) -> None:
        """A daemon has ended: what it had no time for is lost."""
        if clean and not self._disk_fails and self.problem == "":
            pending = self._take()
            self._commit(pending)
        self._pending = _nothing()
        self.problem = None
        self._handed_over = self._writing = self._retries = False
        self._uncertain, self._told = set(), set()
        self.answered, self.due, self.lost = set(), set(), set()

    def heal(self) -> None:
        """The disk works again."""
        self._disk_fails = False

    def _break(self) -> None:
        world = self._world
        if not world.ending:
            self._disk_fails = True
            world.after(world.random.choice((0.3, 3.0, 15.0)) * world.random.random(), self.heal)
            world.after(world.random.expovariate(0.1), self._break)

    @property
    def idle(self) -> bool:
        """Nothing is left to do."""
        return not self._world.scene.journal or (self.problem == "" and not self._writing and not self._world.owed)

    def unfinished(self) -> list[str]:
        """Jobs on disk that have not ended."""
        return [job for job, row in self.rows.items() if row.event is None]

    def never_ends(self, job: str) -> None:
        """The shell has lost the end of a job: the next daemon speaks it again."""
        self.lost.add(job)
        self.answered.add(job)

    def ends(self, job: str) -> bool:
        """Whether the end of a job is known here, on disk or not yet."""
        row = self.rows.get(job)
        return job in self._pending.ends or (row is not None and row.event is not None)

    def answerable(self, job: str) -> bool:
        """Whether whoever asks for this job has to be told how it ended."""
        row = self.rows.get(job)
        if row is None or self.problem != "":
            return False
        event = row.event
        if event is None:
            # Its end was told while the disk failed, and is not there yet.
            return job not in self._pending.ends
        return isinstance(event, Error) or bool(row.result) or event.path is not UNSET

    # --- what is asked of it

    def ask(self, effect: effects.JournalAdd | effects.JournalStart | effects.JournalEnd | effects.JournalFind) -> None:
        """The core wants something written, or looked up."""
        pending = self._pending
        match effect:
            case effects.JournalAdd():
                must(Rule.OUTPUT_ONCE, effect.row.job not in self.rows, effect.row.job, "is written down twice")
                pending.adds.append(effect.row)
                now, left_s = self._world.now, effect.row.deadline_in_s
                self._times[effect.row.job] = now, None if left_s is None else now + left_s
            case effects.JournalStart():
                pending.starts[effect.job] = effect.attempts
            case effects.JournalEnd():
                row = self.rows.get(effect.job)
                again = effect.job in pending.ends or (row is not None and row.event is not None)
                must(Rule.OUTPUT_ONCE, not again, effect.job, "is ended twice")
                keep_s = self._world.machine.settings.queue.keep_durable_s
                must(Rule.OUTPUT_ONCE, effect.keep_s >= keep_s, effect.job, "is kept for", effect.keep_s, "s alone")
                self._look_at_deadline(effect)
                pending.ends[effect.job] = effect
            case effects.JournalFind():
                self._world.owed.add((effect.to.connection, effect.request.id))
                pending.finds.append(effect)
        self._begin()

    def _look_at_deadline(self, end: effects.JournalEnd) -> None:
        """A job is given up when its deadline has come, over all daemons and whatever the wall clock says."""
        deadline_at = self._times.get(end.job, (0.0, None))[1]
        if self._world.clocks.workers_frozen:
            return  # jobs have taken longer than their texts do, and the core has learnt that
        if deadline_at is not None and isinstance(end.event, Error) and end.event.code == "deadline_exceeded":
            left_s = deadline_at - self._world.now
            soon = left_s < 1.5 * takes_s(self.rows[end.job].request.text, self._world.scene)
            must(Rule.ONE_END, soon, end.job, "is given up with", left_s, "s left")

    def _begin(self) -> None:
        """All that comes while it is at the disk is written at once, afterwards."""
        if not self._writing and self.problem is not None:
            self._writing = True
            self._world.later(self._world.random.choice((0.001, 0.005, 0.05)), self._turn)

    def _take(self) -> Pending:
        pending, self._pending = self._pending, _nothing()
        return pending

    def _turn(self) -> None:
        """The disk has answered."""
        self._writing = False
        if not self._world.scene.journal:
            return
        pending = self._take()
        answers: list[inputs.Input] = []
        if self.problem == "" and not self._disk_fails:
            answers += self._commit(pending)
        else:
            if self.problem == "":
                self.problem = _PROBLEM
                answers.append(inputs.JournalChanged(_PROBLEM))
                # The commit may have reached the disk, though it was not said so.
                for row in pending.adds:
                    if self._world.random.random() < 0.3 and self._add(row) is None:
                        self._uncertain.add(row.job)
            answers += [inputs.JournalAdded(row.job, _PROBLEM) for row in pending.adds]
            answers += [inputs.JournalEnded(job, _PROBLEM) for job in pending.ends if job not in self._told]
            self._told.update(pending.ends)
            self._pending.starts, self._pending.ends = pending.starts, pending.ends
            if not self._retries:
                self._retries = True
                self._world.later(0.25, self._recover)
        answers += [self._find(effect) for effect in pending.finds]
        self._answer(answers)

    def _answer(self, answers: list[inputs.Input]) -> None:
        for answer in answers:
            if isinstance(answer, inputs.JournalChanged) and answer.problem:
                self.problems.add(answer.problem)
            if isinstance(answer, inputs.JournalEnded):
                self.answered.add(answer.job)
            elif isinstance(answer, inputs.JournalFound):
                self._world.owed.discard((answer.to.connection, answer.request.id))
            elif isinstance(answer, inputs.JournalAdded) and not answer.problem and answer.known is None:
                self.due.add(answer.job)
            self._world.happen(answer)

    def _recover(self) -> None:
        """Try whether it can be used, now or again."""
        self._retries = False
        if self._disk_fails:
            self._retries = True
            self._world.later(self._world.random.uniform(0.25, 2.0), self._recover)
            if self.problem is None:
                self.problem = _PROBLEM
                self._answer([inputs.JournalChanged(_PROBLEM)])
            return
        for job in self._uncertain:
            self._forget(job)
        self._uncertain.clear()
        rows = []
        if not self._handed_over:
            rows = [self._handed_over_now(row) for row in self.rows.values() if row.event is None]
            self.due.update(row.job for row in rows)
            if self.problem is None:
                # At the start the shell clears away what dead attempts have left, but for jobs that go on.
                self._world.marks = {(path, job) for path, job in self._world.marks if job in self.due}
        self._handed_over = True
        self.problem = ""
        pending = Pending([], self._pending.starts, self._pending.ends, [])
        self._pending.starts, self._pending.ends = {}, {}
        self._world.promises.recovered(rows)
        self._answer([inputs.JournalChanged("", rows), *self._commit(pending)])
        self._begin()

    def _handed_over_now(self, row: inputs.JournalRow) -> inputs.JournalRow:
        now, (added, deadline_at) = self._world.now, self._times[row.job]
        return replace(row, age_s=now - added, deadline_in_s=None if deadline_at is None else deadline_at - now)

    # --- the file

    def _commit(self, pending: Pending) -> list[inputs.Input]:
        answers: list[inputs.Input] = [inputs.JournalAdded(row.job, known=self._add(row)) for row in pending.adds]
        for job, attempts in pending.starts.items():
            if job in self.rows and self.rows[job].event is None:
                self.rows[job].attempts = attempts
        for job, end in pending.ends.items():
            if (row := self.rows.get(job)) is not None:
                row.state, row.event, row.result, row.recording = end.state, end.event, end.result, None
                self._expires[job] = self._world.now + end.keep_s
            self._shrink(end.keep_bytes)
            answers.append(inputs.JournalEnded(job))
        self._expire()
        return answers

    def _add(self, row: inputs.JournalRow) -> tuple[str, str] | None:
        if row.request.key is not UNSET:
            key = (row.client, row.request.key)
            known = self.rows.get(self._keys.get(key, ""))
            if known is not None:
                return known.job, known.content
            self._keys[key] = row.job
        self.rows[row.job] = replace(row)
        return None

    def _forget(self, job: str) -> None:
        row = self.rows.pop(job, None)
        self._times.pop(job, None)
        if row is not None:
            self.results.pop(row.result, None)

    def _expire(self) -> None:
        now = self._world.now
        for job in [job for job, at in self._expires.items() if at <= now]:
            del self._expires[job]
            self._forget(job)

    def _shrink(self, keep_bytes: int) -> None:
        noted = [row for row in self.rows.values() if row.result]
        size = sum(len(self.results[row.result]) for row in noted)
        for row in noted[:-1]:
            if size <= keep_bytes:
                break
            size -= len(self.results.pop(row.result))
            row.result = ""

    def _find(self, effect: effects.JournalFind) -> inputs.JournalFound:
        row = self.rows.get(getattr(effect.request, "job", ""))
        if self.problem is None or not self._handed_over:
            return inputs.JournalFound(effect.to, effect.request, effect.client, problem=_PROBLEM)
        if row is None or (effect.client is not None and effect.client not in (row.client, row.client.split("/")[0])):
            return inputs.JournalFound(effect.to, effect.request, effect.client)
        return inputs.JournalFound(effect.to, effect.request, effect.client, replace(row))
