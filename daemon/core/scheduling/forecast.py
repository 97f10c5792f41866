"""When a waiting job will be started: from what the workers have left to do, and what goes before it.

Estimates are of work, in seconds of an engine's time. A worker with several slots shares it among the jobs in them, so
each takes its work times the number of jobs there; and a job waits only where they are all taken.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection
from itertools import islice
from typing import NamedTuple, TypeAlias

from glmtts.protocol.requests import PRIORITIES, Priority
from glmtts.protocol.worker import MAX_SUSPENDED

from ..jobs.job import Job
from ..state import State
from ..workers.worker import Worker

#: Waiting jobs that are placed one by one, so that the first positions are exact.
_WALKED = 64
#: A job that takes longer than was expected counts as having this part of that still to go.
_NEVER_DONE = 0.1
#: Jobs that are placed one by one on the workers; the bulk of more is spread evenly first.
_PLACED = 64


class Outlook(NamedTuple):
    """How many jobs go before one, and in how many seconds it will be started; None if that is unknown."""

    position: int
    wait_s: float | None


class Forecast:
    """Estimates when jobs are started and done; it changes nothing."""

    def __init__(self, state: State) -> None:
        self._context, self._job_table = state.context, state.job_table
        self._queue, self._pool, self._estimator = state.queue, state.pool, state.estimator

    # --- one job

    def left_s(self, job: Job) -> float:
        """Seconds of work that are left of a job that was begun."""
        attempt, expected_s = job.attempt, job.account.cost_s
        if attempt.segment > 1 and attempt.segments > attempt.segment:
            # Two segments tell more than what others took.
            expected_s = attempt.boundary_s / attempt.segment * attempt.segments
        return max(expected_s - attempt.work_s(self._context.now), _NEVER_DONE * expected_s)

    def boundary_s(self, job: Job) -> float:
        """Seconds until a job that was begun can be suspended: at a segment boundary, or among several at once."""
        attempt = job.attempt
        if attempt.slots > 1:
            return 0.0
        if attempt.segments <= 1:
            return self.left_s(job)
        spoken = attempt.segment
        segment_s = attempt.boundary_s / spoken if spoken else job.account.cost_s / attempt.segments
        since_s = attempt.work_s(self._context.now) - attempt.boundary_s
        return min(max(segment_s - since_s, _NEVER_DONE * segment_s), self.left_s(job))

    # --- waiting jobs

    def of(self, job: Job) -> Outlook:
        """Where a job stands that waits."""
        if self._queue.is_held(job):
            return Outlook(0, None)
        position, work_s = self._queue.ahead_of(job)
        if position <= _WALKED and not self._is_last_of_one_row(position):
            view = self.view(job)
            for exact, other in enumerate(islice(self._queue.in_order(), 2 * _WALKED)):
                if other is job:
                    return Outlook(exact, view.starts_in_s(job))
                view.place(other)
        return Outlook(position, self.view(job, alone=True).starts_behind_s(job, position, work_s))

    def _is_last_of_one_row(self, position: int) -> bool:
        """Whether one client alone waits for one worker, behind whose other jobs it stands: that is exact as it is."""
        alone = len(self._queue.clients()) == 1 and len(self._pool.workers) == 1
        return alone and position == len(self._queue) - 1

    def next_start_s(self, priorities: Collection[Priority], client: str = "") -> float | None:
        """Seconds until the next job of these classes, and of this client, is started, and leaves its place."""
        view = self.view()
        for job in islice(self._queue.in_order(), _WALKED):
            if job.request.priority in priorities and client in ("", job.client.key):
                return view.starts_in_s(job)
            view.place(job)
        # Many stand before it.
        found = (self._queue.first_of(client, priority) for priority in priorities)
        waits = [self.of(job).wait_s for job in found if job is not None]
        return min((wait_s for wait_s in waits if wait_s is not None), default=None)

    def next_end_s(self, client: str = "") -> float | None:
        """Seconds until the next job is done, of this client if one is named."""
        if not self._estimator.trained:
            return None
        live, ends = self._job_table.live, []
        for worker in self._pool.workers.values():
            begun = [live[id] for id in worker.process.begun if id in live]
            ends += [self.left_s(job) * len(begun) for job in begun if client in ("", job.client.key)]
        if ends or not client:
            return min(ends, default=None)
        starts_in_s = self.next_start_s(PRIORITIES, client)
        found = (self._queue.first_of(client, priority) for priority in PRIORITIES)
        costs = [job.account.latency_s for job in found if job is not None]
        return None if starts_in_s is None or not costs else starts_in_s + min(costs)

    def view(self, job: Job | None = None, *, alone: bool = False) -> View:
        """The work that the workers have left now; jobs are then placed behind it.

        With a ``job``, as that one finds them: jobs of its own class may give way to it as well. ``alone``: no others
        will be placed before it.
        """
        urgent: list[tuple[float, int]] = []
        patient: list[tuple[bool, float, str]] = []
        batch = job is not None and job.request.priority == "batch"
        if self._estimator.trained and not self._queue.paused:
            for worker in self._pool.workers.values():
                if worker.serving and not worker.process.replace_reason:
                    if not (alone and batch):
                        slots = self._slots(worker, job, urgent=True)
                        urgent += [(work_s * len(slots), len(slots)) for _, work_s in slots]
                    if not alone or batch:
                        slots = self._slots(worker, job, urgent=False)
                        patient += [(not has_batch, work_s, worker.name) for has_batch, work_s in slots]
        # Of several slots some take no batch jobs: those that have some already do, then those that are free first.
        patient = sorted(patient)[: len(patient) - self._pool.kept_free(len(patient))]
        load: dict[str, int] = {}
        for _, _, name in patient:
            load[name] = load.get(name, 0) + 1
        for name, slots_for_batch in load.items():
            load[name] = max(slots_for_batch, len(self._pool.workers[name].process.begun))
        return View(
            urgent,
            [(work_s * load[name], load[name]) for _, work_s, name in patient],
            preempt=self._context.settings.queue.preempt,
        )

    def _slots(self, worker: Worker, waiting: Job | None, *, urgent: bool) -> list[tuple[bool, float]]:
        """Each slot of a worker: whether it has a batch job, and the work until it takes an urgent job, or any.

        Urgent ones need not wait for batch jobs to end.
        """
        live, process = self._job_table.live, worker.process
        preempt, may_yield = self._context.settings.queue.preempt, MAX_SUSPENDED - len(process.suspended)
        begun = set(process.begun)
        slots: list[tuple[float, bool]] = []
        behind: list[tuple[float, bool]] = []
        for id in worker.jobs:
            job = live.get(id)
            if job is None or job.attempt.waits_for_text:
                continue
            suspended, batch = job.attempt.suspended, job.request.priority == "batch"
            boundary_s = 0.0 if suspended else self.boundary_s(job)
            yields = preempt and (suspended or process.slots == 1 or may_yield > 0)
            if urgent and yields and batch:
                work_s = boundary_s
                may_yield -= not suspended
            elif yields and waiting is not None and (in_s := self._gives_way_in_s(job, waiting)) is not None:
                work_s = max(in_s, boundary_s)
            else:
                work_s = self.left_s(job)
            (slots if id in begun else behind).append((work_s, batch))
        slots += [(0.0, False)] * (process.slots - len(slots))
        # Jobs that are suspended or lie ready take the slots that are free first.
        heapq.heapify(slots)
        for work_s, batch in behind:
            free_in_s, has_batch = slots[0]
            heapq.heapreplace(slots, (free_in_s + work_s, has_batch or batch))
        return [(has_batch, work_s) for work_s, has_batch in slots]

    def _gives_way_in_s(self, begun: Job, waiting: Job) -> float | None:
        """Seconds until a begun job can be suspended for a waiting one of its class (preemption.py); None: never."""
        if begun.client.key == waiting.client.key:
            return None
        heard = begun.is_heard and begun.request.priority != "batch"
        # A single segment has no boundary.
        if heard or not begun.attempt.begun or (begun.attempt.segments == 1 and begun.attempt.slots == 1):
            return None
        unspoken_s = begun.account.charged_s - begun.attempt.work_s(self._context.now)
        return self._queue.goes_before_in_s(waiting, begun, self.left_s(begun), unspoken_s=unspoken_s)


#: In how many seconds a slot is free, and how many share the worker's time with it.
_Slot: TypeAlias = tuple[float, int]


class View:
    """The slots of the workers by when they are free, for jobs that may and may not interrupt batch jobs."""

    def __init__(self, urgent: list[_Slot], patient: list[_Slot], *, preempt: bool) -> None:
        self._urgent = urgent
        self._patient = patient
        self._preempt = preempt
        heapq.heapify(urgent)
        heapq.heapify(patient)

    def _slots(self, job: Job) -> list[_Slot]:
        return self._patient if job.request.priority == "batch" else self._urgent

    def starts_in_s(self, job: Job) -> float | None:
        """Seconds until a job is started that comes behind all that were placed."""
        slots = self._slots(job)
        return round(slots[0][0], 3) if slots else None

    def place(self, job: Job) -> None:
        """The job is the next that is started."""
        # Urgent jobs need not wait for a batch job to end.
        gives_way = self._preempt and job.request.priority == "batch"
        for slots in (self._patient,) if gives_way else (self._urgent, self._patient):
            if slots:
                free_in_s, load = slots[0]
                heapq.heapreplace(slots, (free_in_s + job.account.cost_s * load, load))

    def starts_behind_s(self, job: Job, count: int, work_s: float) -> float | None:
        """Seconds until a job is started before which ``count`` others come, with so much work in all."""
        slots = list(self._slots(job))
        if not slots:
            return None
        if len(slots) == 1:
            return round(slots[0][0] + work_s * slots[0][1], 3)
        one_s = work_s / max(1, count)
        bulk = max(0, count - _PLACED) // len(slots)
        for _ in range(count - bulk * len(slots)):
            free_in_s, load = slots[0]
            heapq.heapreplace(slots, (free_in_s + one_s * load, load))
        return round(slots[0][0] + bulk * one_s * slots[0][1], 3)
