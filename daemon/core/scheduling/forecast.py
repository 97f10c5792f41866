"""When a waiting job will be started: from what the workers have left to do, and what goes before it."""

from __future__ import annotations

import heapq
from collections.abc import Collection
from itertools import islice
from typing import NamedTuple

from glmtts.protocol.requests import PRIORITIES, Priority

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
        return max(expected_s - attempt.active_s(self._context.now), _NEVER_DONE * expected_s)

    def boundary_s(self, job: Job) -> float:
        """Seconds until a job that was begun reaches the next segment boundary, where it can be suspended."""
        attempt = job.attempt
        if attempt.segments <= 1:
            return self.left_s(job)
        spoken = attempt.segment
        segment_s = attempt.boundary_s / spoken if spoken else job.account.cost_s / attempt.segments
        since_s = attempt.active_s(self._context.now) - attempt.boundary_s
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
        live = self._job_table.live
        at_work = (live[id] for worker in self._pool.workers.values() for id in worker.process.begun if id in live)
        ends = [self.left_s(job) for job in at_work if client in ("", job.client.key)]
        if ends or not client:
            return min(ends, default=None)
        starts_in_s = self.next_start_s(PRIORITIES, client)
        found = (self._queue.first_of(client, priority) for priority in PRIORITIES)
        costs = [job.account.cost_s for job in found if job is not None]
        return None if starts_in_s is None or not costs else starts_in_s + min(costs)

    def view(self, job: Job | None = None, *, alone: bool = False) -> View:
        """The work that the workers have left now; jobs are then placed behind it.

        With a ``job``, as that one finds them: jobs of its own class may give way to it as well. ``alone``: no others
        will be placed before it.
        """
        urgent: list[float] = []
        patient: list[tuple[bool, float]] = []
        batch = job is not None and job.request.priority == "batch"
        if self._estimator.trained and not self._queue.paused:
            for worker in self._pool.workers.values():
                if worker.serving and not worker.process.replace_reason:
                    if not (alone and batch):
                        urgent.append(self._free_in_s(worker, job, urgent=True))
                    if not alone or batch:
                        patient.append((not self._has_batch(worker), self._free_in_s(worker, job, urgent=False)))
        # Of several workers some take no batch jobs: those that have some already do, then those that are free first.
        may_have_batch = len(patient) - self._pool.kept_free(len(patient))
        return View(
            urgent,
            [free_in_s for _, free_in_s in sorted(patient)[:may_have_batch]],
            preempt=self._context.settings.queue.preempt,
        )

    def _has_batch(self, worker: Worker) -> bool:
        live = self._job_table.live
        return any(id in live and live[id].request.priority == "batch" for id in worker.jobs)

    def _free_in_s(self, worker: Worker, waiting: Job | None, *, urgent: bool) -> float:
        """Seconds until a worker takes an urgent job, or any: the former need not wait for batch jobs to end."""
        live, total_s = self._job_table.live, 0.0
        preempt = self._context.settings.queue.preempt and worker.process.slots == 1
        for id in worker.jobs:
            job = live.get(id)
            if job is None or job.attempt.waits_for_text:
                continue
            boundary_s = 0.0 if job.attempt.suspended else self.boundary_s(job)
            if urgent and preempt and job.request.priority == "batch":
                total_s += boundary_s
            elif preempt and waiting is not None and (in_s := self._gives_way_in_s(job, waiting)) is not None:
                total_s += max(in_s, boundary_s)
            else:
                total_s += self.left_s(job)
        return total_s / worker.process.slots

    def _gives_way_in_s(self, begun: Job, waiting: Job) -> float | None:
        """Seconds until a begun job can be suspended for a waiting one of its class (preemption.py); None: never."""
        if begun.client.key == waiting.client.key:
            return None
        heard = begun.is_heard and begun.request.priority != "batch"
        # A single segment has no boundary.
        if heard or not begun.attempt.begun or begun.attempt.segments == 1:
            return None
        unspoken_s = begun.account.charged_s - begun.attempt.active_s(self._context.now)
        return self._queue.goes_before_in_s(waiting, begun, self.left_s(begun), unspoken_s=unspoken_s)


class View:
    """The workers by when they are free, for jobs that may and may not interrupt batch jobs."""

    def __init__(self, urgent: list[float], patient: list[float], *, preempt: bool) -> None:
        self._urgent = urgent
        self._patient = patient
        self._preempt = preempt
        heapq.heapify(urgent)
        heapq.heapify(patient)

    def _workers(self, job: Job) -> list[float]:
        return self._patient if job.request.priority == "batch" else self._urgent

    def starts_in_s(self, job: Job) -> float | None:
        """Seconds until a job is started that comes behind all that were placed."""
        workers = self._workers(job)
        return round(workers[0], 3) if workers else None

    def place(self, job: Job) -> None:
        """The job is the next that is started."""
        # Urgent jobs need not wait for a batch job to end.
        gives_way = self._preempt and job.request.priority == "batch"
        for workers in (self._patient,) if gives_way else (self._urgent, self._patient):
            if workers:
                heapq.heapreplace(workers, workers[0] + job.account.cost_s)

    def starts_behind_s(self, job: Job, count: int, work_s: float) -> float | None:
        """Seconds until a job is started before which ``count`` others come, with so much work in all."""
        workers = list(self._workers(job))
        if not workers:
            return None
        if len(workers) == 1:
            return round(workers[0] + work_s, 3)
        one_s = work_s / max(1, count)
        bulk = max(0, count - _PLACED) // len(workers)
        for _ in range(count - bulk * len(workers)):
            heapq.heapreplace(workers, workers[0] + one_s)
        return round(workers[0] + bulk * one_s, 3)
