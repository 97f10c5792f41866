"""Whether jobs are being served, and with ``deep`` whether every worker can speak a word.

A check starts nothing, and is answered within its ``timeout_s``: monitoring asks again and again.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from glmtts.protocol import control, events
from glmtts.protocol.errors import ErrorCode
from glmtts.protocol.worker import Check, Checked

from ..context import Context
from ..effects import Tell
from ..inputs import Controlled, ReplyTo
from ..monitoring.problems import Problems
from ..workers.pool import Pool
from ..workers.worker import Worker, WorkerState

#: Checks at the same time; more are a mistake of the caller.
_MOST_CHECKS = 8
#: A job that has moved this lately is proof enough: its worker is not asked for a word.
_MOVES_S = 5.0

#: ``spoke`` a word; ``speaking``: its job moves; ``busy`` with a job in the whole time; ``failed``: it tried, or has
#: died; ``silent``: no answer; ``absent``: it has no process that can speak.
Verdict = Literal["spoke", "speaking", "busy", "failed", "silent", "absent"]
_WELL: frozenset[Verdict] = frozenset({"spoke", "speaking", "busy"})


class _Asked(Struct):
    """A check that waits for workers: by name the process that was asked, and what was found."""

    to: ReplyTo
    id: str
    state: str
    begun_at: float
    incarnations: dict[str, int] = {}
    found: dict[str, dict[str, Any]] = {}


class Health:
    """Owns the checks that wait for workers. Each is answered once."""

    def __init__(self, context: Context, pool: Pool, problems: Problems) -> None:
        self._context = context
        self._pool = pool
        self._problems = problems
        self._asked: dict[str, _Asked] = {}
        self._checks = 0

    def check(self, event: Controlled, request: control.Health, state: str) -> None:
        """Say how it is, or with ``deep`` find out first."""
        if not request.deep:
            self._answer(event.to, request.id, state, None)
            return
        if len(self._asked) >= _MOST_CHECKS:
            message = f"{_MOST_CHECKS} checks are running already; ask again when they are done"
            self._context.refuse(event.to, request.id, ErrorCode.UNAVAILABLE, message, retry_after_s=1.0)
            return
        self._checks += 1
        name = f"c{self._checks}"
        asked = _Asked(event.to, request.id, state, self._context.now)
        for worker in self._pool:
            if worker.state not in (WorkerState.READY, WorkerState.BUSY):
                self._note(asked, worker.name, "absent", self._why_absent(worker))
            elif self._moves(worker):
                self._note(asked, worker.name, "speaking")
            else:
                asked.incarnations[worker.name] = worker.incarnation
                self._context.effects.append(Tell(worker.incarnation, Check(check=name)))
        self._asked[name] = asked
        self._context.timers.set(("health", name), self._context.now + request.timeout_s)

    def awaits(self, to: ReplyTo, id: str) -> bool:
        """Whether a check is going to answer this request."""
        return any(asked.to == to and asked.id == id for asked in self._asked.values())

    def _moves(self, worker: Worker) -> bool:
        return any(done >= 0 and at >= self._context.now - _MOVES_S for at, done in worker.process.moved.values())

    @staticmethod
    def _why_absent(worker: Worker) -> str:
        process = worker.process
        ended = process.exit_reason or process.replace_reason or worker.last_exit
        reason = worker.reason or process.stuck or (ended.detail if ended else "")
        return f"{worker.state}: {reason}" if reason else worker.state.value

    @staticmethod
    def _note(asked: _Asked, name: str, verdict: Verdict, problem: str = "", took_s: float | None = None) -> None:
        asked.found[name] = {"verdict": verdict, "problem": problem, "took_s": took_s}

    # --- what workers say

    def on_checked(self, worker: Worker, message: Checked) -> None:
        """A worker has spoken its word, or has failed to."""
        asked = self._asked.get(message.check)
        if asked is None or asked.incarnations.get(worker.name) != worker.incarnation:
            return
        took_s = round(self._context.now - asked.begun_at, 3)
        self._note(asked, worker.name, "failed" if message.problem else "spoke", message.problem, took_s)

    def reconcile(self) -> None:
        """Answer the checks that are complete; a worker that has died meanwhile has failed."""
        for name, asked in list(self._asked.items()):
            for worker, incarnation in asked.incarnations.items():
                if worker not in asked.found and self._pool.by_incarnation(incarnation) is None:
                    there = self._pool.workers.get(worker)
                    death = there and (there.process.exit_reason or there.last_exit)
                    self._note(asked, worker, "failed", death.detail if death else "its process is gone")
            if asked.incarnations.keys() <= asked.found.keys():
                self._finish(name)

    @property
    def waiting(self) -> bool:
        """Whether a check waits for workers."""
        return bool(self._asked)

    def on_late(self, name: str) -> None:
        """Time is up."""
        asked = self._asked.get(name)
        if asked is None:
            return
        for worker, incarnation in asked.incarnations.items():
            if worker in asked.found:
                continue
            there = self._pool.by_incarnation(incarnation)
            if there is not None and there.jobs and self._moves(there):
                self._note(asked, worker, "busy")
            else:
                self._note(asked, worker, "silent", "it did not answer in time")
        self._finish(name)

    def _finish(self, name: str) -> None:
        asked = self._asked.pop(name)
        self._context.timers.cancel(("health", name))
        workers = [{"name": w} | asked.found[w] for w in sorted(asked.found)]
        self._context.answer(asked.to, asked.id, self._answer, asked.to, asked.id, asked.state, workers)

    def _answer(self, to: ReplyTo, id: str, state: str, workers: list[dict[str, Any]] | None) -> None:
        unready = self._problems.unready(state)
        problems = [problem for problem in self._problems.describe(state, {}) if problem["severity"] != "note"]
        values: dict[str, Any] = {
            "state": state,
            "ready": not unready,
            "healthy": not unready,
            "asleep": self._problems.asleep,
            "problems": problems,
        }
        if workers is not None:
            values["workers"] = workers
            values["healthy"] = not unready and all(worker["verdict"] in _WELL for worker in workers)
        self._context.send(to, events.Result(id=id, values=values))
