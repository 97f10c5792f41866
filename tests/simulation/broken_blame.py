"""Cores that blame wrongly where a process with several jobs dies."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pytest

from glmtts.daemon.core.jobs.job import Job
from glmtts.daemon.core.scheduling import retry
from glmtts.daemon.core.scheduling.retry import Retries
from glmtts.daemon.core.scheduling.worker_messages import WorkerMessages
from glmtts.daemon.core.workers.pool import Pool
from glmtts.daemon.core.workers.process import Process
from glmtts.daemon.core.workers.worker import Worker, WorkerState
from glmtts.daemon.core.workers.worker_table import WorkerTable

Patch = pytest.MonkeyPatch


def all_are_blamed(patch: Patch) -> None:
    decide = Retries.decide

    def all_of_them(self: Retries, worker: Worker, process: Process, noted: Collection[str] = ()) -> None:
        jobs = [job for id in process.begun if (job := self._job_table.live.get(id)) is not None]
        if len(jobs) > 1 and process.exit_reason is not None:
            self._blame(jobs, process.exit_reason)
        decide(self, worker, process, noted)

    patch.setattr(Retries, "decide", all_of_them)


def none_is_blamed(patch: Patch) -> None:
    patch.setattr(Retries, "_blame", lambda *_: None)


def the_first_of_a_note_is_blamed(patch: Patch) -> None:
    verdict = retry._verdict

    def first(process: Process, noted: Sequence[str]) -> tuple[str, Sequence[str]]:
        return verdict(process, noted[:1])

    patch.setattr(retry, "_verdict", first)


def a_note_is_not_read(patch: Patch) -> None:
    verdict = retry._verdict
    patch.setattr(retry, "_verdict", lambda process, _: verdict(process, ()))


def suspects_are_not_excused(patch: Patch) -> None:
    after = Retries._after_death

    def counted(self: Retries, job: Job, death: Any, own: bool) -> None:
        job.excused -= not own
        after(self, job, death, own)

    patch.setattr(Retries, "_after_death", counted)


def suspects_stay_together(patch: Patch) -> None:
    after = Retries._after_death

    def together(self: Retries, job: Job, death: Any, own: bool) -> None:
        job.alone = False
        after(self, job, death, own)

    patch.setattr(Retries, "_after_death", together)


def alone_is_not_honoured(patch: Patch) -> None:
    take = Pool.take
    patch.setattr(Pool, "take", lambda self, worker, job, **_: take(self, worker, job))


def notes_are_never_heard_of(patch: Patch) -> None:
    patch.setattr(WorkerMessages, "on_recorder_read", lambda *_: None)


def slots_stay_empty(patch: Patch) -> None:
    """A worker gets a job when it has none."""

    def free(self: WorkerTable, *, brief: bool = False) -> Worker | None:  # noqa: ARG001 - as the core calls it
        return next((worker for worker in self if worker.state is WorkerState.READY), None)

    patch.setattr(WorkerTable, "free", free)
