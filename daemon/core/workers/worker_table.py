"""All workers, and what others ask about them."""

from __future__ import annotations

from collections.abc import Iterator

from .worker import WORKING, Worker, WorkerState

#: Jobs that may lie ready in the only worker behind the begun ones, while jobs are brief.
AHEAD = 3


class WorkerTable:
    """Owns the workers by name, and which of them has the process of each incarnation."""

    def __init__(self) -> None:
        self.workers: dict[str, Worker] = {}
        self._by_incarnation: dict[int, Worker] = {}
        #: The worker that takes no job before it has nothing at hand: then it gets one that runs alone. Mostly none.
        self.reserved = ""

    def __iter__(self) -> Iterator[Worker]:
        return iter(list(self.workers.values()))

    def by_incarnation(self, incarnation: int) -> Worker | None:
        """The worker that has this process; None for a process that has failed or ended."""
        worker = self._by_incarnation.get(incarnation)
        return worker if worker is not None and worker.state is not WorkerState.FAILED else None

    def failed(self, incarnation: int) -> Worker | None:
        """The worker whose process of this incarnation has failed, and has not ended yet."""
        worker = self._by_incarnation.get(incarnation)
        return worker if worker is not None and worker.state is WorkerState.FAILED else None

    def free(self, *, brief: bool = False) -> Worker | None:
        """A worker that can take a job now; of several ready ones, the one whose GPU has the least to do.

        A worker with a suspended job and a free slot is not free: the dispatcher decides whether that job resumes.

        Args:
            brief: Jobs take no longer than handing them over does. Then jobs may lie ready in the only worker, if it
                has one slot, so that it need not wait for each: no other worker could begin them earlier.
        """
        if len(self.workers) == 1:
            (worker,) = self.workers.values()
            if worker.name == self.reserved:
                return None
            if worker.state is WorkerState.READY:
                return worker
            process = worker.process
            if worker.state is not WorkerState.BUSY or process.may_resume:
                return None
            ahead = brief and not (process.suspended or process.to_suspend or process.alone or process.shares)
            room = process.slots + (AHEAD if ahead else 0)
            return worker if len(process.jobs) - len(process.suspended) < room else None
        found = None
        for worker in self.workers.values():
            process = worker.process
            if worker.name == self.reserved:
                continue
            if worker.serving and not process.may_resume and len(process.jobs) - len(process.suspended) < process.slots:
                # One that is about to be replaced is taken when no other is there.
                ready = worker.state is WorkerState.READY
                if ready and not process.replace_reason and not self._is_busy(worker.gpu):
                    return worker
                if found is None or (ready and found.state is WorkerState.BUSY):
                    found = worker
        return found

    def _is_busy(self, gpu: int | None) -> bool:
        return gpu is not None and any(w.gpu == gpu and w.state is WorkerState.BUSY for w in self.workers.values())

    def may_resume(self) -> list[Worker]:
        """Workers with a suspended job and a slot for that job or another."""
        return [worker for worker in self.workers.values() if worker.process.may_resume and worker.state in WORKING]

    def vacant(self) -> Worker | None:
        """A worker that has nothing at hand, and nothing to resume; one that is about to be replaced comes last."""
        found = [w for w in self.workers.values() if w.serving and not w.process.at_hand and not w.process.may_resume]
        return min(found, key=lambda worker: worker.process.replace_reason is not None, default=None)

    def soonest_vacant(self, *, late: bool) -> Worker | None:
        """The worker that would have nothing at hand first, if it took no more jobs: the one with the fewest.

        Not one in which a job runs alone: that ends before the worker takes another. Nor one with suspended jobs,
        before it is ``late``: they take turns with others there.
        """
        found = [worker for worker in self.workers.values() if worker.serving and not worker.process.runs_alone]
        found = [w for w in found if late or len(w.process.suspended) == len(w.process.without_text)]
        return min(found, key=lambda worker: len(worker.process.at_hand), default=None)

    def fresh(self) -> Worker | None:
        """A ready worker whose process has had no job yet."""
        return next((worker for worker in self.workers.values() if worker.fresh), None)

    @property
    def serving(self) -> int:
        """The number of workers that can speak, now or after their present job."""
        return sum(worker.serving for worker in self.workers.values())

    @property
    def empty(self) -> bool:
        """Whether no process is left, except those that can't be ended."""
        return not any(worker.has_process and not worker.process.stuck for worker in self.workers.values())

    def spare_of(self, worker: Worker) -> Worker | None:
        """The spare that is loaded in the place of this worker."""
        return next((other for other in self.workers.values() if other.replaces == worker.name), None)

    def counts(self) -> dict[str, int]:
        """The number of workers by state."""
        states = [worker.state for worker in self.workers.values()]
        return {"total": len(states)} | {state.value: states.count(state) for state in WorkerState if state in states}
