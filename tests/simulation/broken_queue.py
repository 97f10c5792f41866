"""Cores whose queue is wrong: who goes first, what is quarantined, what one client may have, what is counted."""

from __future__ import annotations

from typing import Any

import pytest

from glmtts.daemon.core import shares
from glmtts.daemon.core.api import refusals
from glmtts.daemon.core.api.client_requests import ClientRequests
from glmtts.daemon.core.jobs import class_queue
from glmtts.daemon.core.jobs.class_queue import ClassQueue
from glmtts.daemon.core.jobs.estimates import Estimator
from glmtts.daemon.core.jobs.fair_share import FairShare
from glmtts.daemon.core.jobs.job import Job
from glmtts.daemon.core.jobs.job_table import JobTable
from glmtts.daemon.core.jobs.queue import WaitingQueue
from glmtts.daemon.core.scheduling import preemption, rate_limit
from glmtts.daemon.core.scheduling.admission import Admission
from glmtts.daemon.core.scheduling.preemption import Preemption
from glmtts.daemon.core.scheduling.rate_limit import RateLimiter
from glmtts.daemon.core.scheduling.retry import Quarantine, Retries
from glmtts.daemon.core.shares import SharedRows
from glmtts.daemon.core.workers.pool import Pool
from glmtts.daemon.core.workers.worker import Worker, WorkerState

Patch = pytest.MonkeyPatch


# --- 5: quarantine


def no_quarantine(patch: Patch) -> None:
    patch.setattr(Retries, "deaths_of", lambda *_: 0)


def those_aside_are_blamed(patch: Patch) -> None:
    blame = Retries._blame

    def all_of_them(self: Retries, jobs: list[Job], death: Any) -> None:
        aside = [job for job in self._job_table.live.values() if job.attempt.suspended]
        blame(self, jobs + aside, death)

    patch.setattr(Retries, "_blame", all_of_them)


def the_healthy_quarantined(patch: Patch) -> None:
    deaths = Quarantine.deaths

    def of_anybody(self: Quarantine, digest: str, now: float) -> int:
        return max([deaths(self, digest, now), *(entry.deaths for entry in self._entries.values())])

    patch.setattr(Quarantine, "deaths", of_anybody)


# --- 6: fairness


def batch_starves(patch: Patch) -> None:
    def peek(self: WaitingQueue, now: float, without: Any = ()) -> Job | None:
        waiting = (
            class_queue
            for priority, class_queue in self._class_queues.items()
            if len(class_queue) and priority not in without
        )
        first = next(waiting, None)
        return None if first is None else first.next(now)

    patch.setattr(WaitingQueue, "peek", peek)


def weights_ignored(patch: Patch) -> None:
    patch.setattr(FairShare, "weight", lambda *_: 1.0)


def a_book_is_served_first(patch: Patch) -> None:
    def first(self: ClassQueue, now: float) -> Job | None:  # noqa: ARG001
        flow = next(iter(self._flows.values()), None)
        return flow.jobs[0][2] if flow is not None else None

    patch.setattr(ClassQueue, "next", first)


def jobs_counted_for_time(patch: Patch) -> None:
    patch.setattr(Estimator, "expect_s", lambda *_: 0.1)
    patch.setattr(WaitingQueue, "settle", lambda *_: None)


def never_put_aside(patch: Patch) -> None:
    patch.setattr(Preemption, "look", lambda *_: None)


def deadlines_ignored_in_the_order(patch: Patch) -> None:
    patch.setattr(class_queue, "due", lambda job: job.accepted_at)


def given_up_though_there_is_time(patch: Patch) -> None:
    patch.setattr(Estimator, "least_s", lambda self, job: 3 * self.expect_s(job))


# --- 7: bounds


def results_never_dropped(patch: Patch) -> None:
    patch.setattr(JobTable, "expire", lambda _, now, __: now + 60.0)


def queue_without_an_end(patch: Patch) -> None:
    patch.setattr(Admission, "check", lambda self, client, *_: self._remember(client))


def rates_of_connections(patch: Patch) -> None:
    synthesize = ClientRequests.synthesize
    connection = [0]

    def remembered(self: ClientRequests, event: Any, request: Any) -> None:
        connection[0] = event.to.connection
        synthesize(self, event, request)

    patch.setattr(ClientRequests, "synthesize", remembered)
    take = RateLimiter.take
    patch.setattr(
        RateLimiter, "take", lambda self, client, rate, now: take(self, f"{client} {connection[0]}", rate, now)
    )


def rates_forgotten_by_a_reload(patch: Patch) -> None:
    apply = Admission.apply

    def and_forgotten(self: Admission) -> None:
        apply(self)
        self._rate, self._rate_batch = RateLimiter(), RateLimiter()

    patch.setattr(Admission, "apply", and_forgotten)


def customers_take_what_their_gateway_has_not(patch: Patch) -> None:
    patch.setattr(refusals, "is_named", lambda *_: True)


def as_many_aside_as_it_takes(patch: Patch) -> None:
    patch.setattr(preemption, "MAX_SUSPENDED", 100)
    patch.setattr(Preemption, "goes_before", lambda *_: True)


# --- 12: shares


def the_oldest_row_goes(patch: Patch) -> None:
    def first_out(self: SharedRows[str]) -> tuple[str, str]:
        oldest = {next(iter(rows)): client for client, rows in self._of_client.items()}
        row = min(oldest, key=str)
        return oldest[row], row

    patch.setattr(SharedRows, "first_out", first_out)


def customers_are_owners(patch: Patch) -> None:
    for module in (shares, rate_limit):
        patch.setattr(module, "owner_of", lambda client: client)


# --- 0: the sums


def work_not_counted_back(patch: Patch) -> None:
    remove = ClassQueue.remove

    def without_work(self: ClassQueue, job: Job) -> None:
        work_s = self.work_s
        remove(self, job)
        self.work_s = work_s

    patch.setattr(ClassQueue, "remove", without_work)


def idle_while_jobs_wait(patch: Patch) -> None:
    def first(self: Pool, *, brief: bool = False) -> Worker | None:  # noqa: ARG001
        worker = self.workers.get("w0")
        return worker if worker is not None and worker.state is WorkerState.READY else None

    patch.setattr(Pool, "free", first)
