"""The waiting jobs: three classes that share the workers' time by weight, and in each its clients in equal parts.

Time is what is shared, not jobs: a chapter counts for as many sentences as it takes. Before all others come the few
that ran out of GPU memory and are tried once more, on a process that has had no other job. Beside them are those that
are accepted, but may not be started before the journal has them."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Collection, Iterator

from glmtts.protocol.requests import PRIORITIES, Priority

from .fair import FairShare
from .jobs import Job
from .lane import Lane
from .settings import ClassesSettings

_RANKS: dict[str, int] = {priority: rank for rank, priority in enumerate(PRIORITIES)}
#: A job of the same class overtakes the rest of another only if it takes less than this part of it.
_MUCH_SHORTER = 0.5


class WaitingQueue:
    """Takes jobs in, and gives the next one out, in time by the logarithm of its length."""

    def __init__(self, classes: ClassesSettings) -> None:
        self._lanes: dict[Priority, Lane] = {priority: Lane() for priority in PRIORITIES}
        self._classes = FairShare(_RANKS)
        #: Jobs that wait for a worker which has had no other; they come before all.
        self._for_fresh: OrderedDict[str, Job] = OrderedDict()
        #: Jobs that the journal does not have yet.
        self._held: dict[str, Job] = {}
        #: All of them, and how many of each class; those that had been started before come first.
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._lengths: dict[Priority, int] = dict.fromkeys(PRIORITIES, 0)
        #: Whether none is to be started for now.
        self.paused = False
        self.set_weights(classes)

    def set_weights(self, classes: ClassesSettings) -> None:
        """Share out by these weights from now on."""
        self._classes.set_weights({priority: getattr(classes, priority).weight for priority in PRIORITIES})

    def weight(self, priority: Priority) -> float:
        """The weight of a class."""
        return self._classes.weight(priority)

    # --- what waits

    def __len__(self) -> int:
        return len(self._jobs)

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs.values())

    def __contains__(self, job: Job) -> bool:
        return job.id in self._jobs

    def length(self, priority: Priority) -> int:
        """How many of a class wait."""
        return self._lengths[priority]

    def work_s(self, priority: Priority) -> float:
        """Seconds that the waiting jobs of a class are expected to take."""
        return self._lanes[priority].work_s

    def waiting_of(self, client: str, priorities: Collection[Priority]) -> int:
        """How many jobs of a client wait in some classes."""
        others = [*self._for_fresh.values(), *self._held.values()]
        apart = sum(job.client.key == client and job.request.priority in priorities for job in others)
        return apart + sum(self._lanes[priority].waiting_of(client) for priority in priorities)

    def clients(self, priority: Priority) -> Iterator[tuple[str, int, float]]:
        """Every client that has jobs of a class waiting: its key, how many, and their seconds of work."""
        return self._lanes[priority].clients()

    @property
    def wants_fresh(self) -> bool:
        """Whether a job waits for a worker that has had no other."""
        return bool(self._for_fresh)

    def oldest(self) -> float | None:
        """When the job that has waited for longest was accepted, or nearly that; None if none may be started."""
        for job in self._jobs.values():
            if job.id not in self._held:
                return job.accepted_at
        return None

    # --- in and out

    def hold(self, job: Job) -> None:
        """Add a job that may not be started before it is pushed."""
        self._held[job.id] = job
        self._enter(job)

    def holds(self, job: Job) -> bool:
        """Whether a job is held back."""
        return job.id in self._held

    def push(self, job: Job, *, front: bool = False) -> None:
        """Add a job, or let one go that was held; ``front``: it had been started before."""
        if self._held.pop(job.id, None) is None:
            self._enter(job)
        if front:
            self._jobs.move_to_end(job.id, last=False)
        if job.needs_fresh:
            self._for_fresh[job.id] = job
            return
        priority = job.request.priority
        self._lanes[priority].push(job)
        self._classes.wake(priority)

    def _enter(self, job: Job) -> None:
        self._jobs[job.id] = job
        self._lengths[job.request.priority] += 1

    def _leave(self, job: Job) -> None:
        del self._jobs[job.id]
        self._lengths[job.request.priority] -= 1

    def remove(self, job: Job) -> None:
        """Take a job out of the queue. Raises KeyError if it is not in it."""
        self._leave(job)
        if self._held.pop(job.id, None) or self._for_fresh.pop(job.id, None):
            return
        priority = job.request.priority
        lane = self._lanes[priority]
        lane.remove(job)
        if not len(lane):
            self._classes.sleep(priority)

    def pop_for_fresh(self) -> Job | None:
        """Take the next job that waits for a worker which has had no other."""
        if not self._for_fresh:
            return None
        _, job = self._for_fresh.popitem(last=False)
        self._leave(job)
        return job

    def peek(self, now: float, without: Collection[Priority] = ()) -> Job | None:
        """The job whose turn it is, but for the classes ``without``; None if there is none."""
        priority = self._classes.next(without)
        return None if priority is None else self._lanes[priority].next(now)  # type: ignore[index]

    def take(self, job: Job) -> None:
        """Take out a job, which is started: its class and its client have had the time that it is expected to take."""
        priority = job.request.priority
        self._leave(job)
        self._lanes[priority].take(job)
        self._classes.serve(priority, job.cost_s, more=len(self._lanes[priority]) > 0)
        job.charged_s = job.cost_s

    def charge(self, job: Job, seconds: float) -> None:
        """A job that was started takes so much more, or less, than was thought when it was."""
        job.charged_s += seconds
        self._classes.charge(job.request.priority, seconds)
        self._lanes[job.request.priority].charge(job.client.key, seconds)

    def rest(self) -> None:
        """Nothing is being spoken; if nothing waits either, nobody owes anybody anything any more."""
        if not self._jobs:
            self._classes.rest()
            for lane in self._lanes.values():
                lane.rest()

    # --- who goes before whom

    def goes_before(self, job: Job, begun: Job, left_s: float, *, spoken_s: float) -> bool:
        """Whether a waiting job comes before the rest of one that was begun, which takes ``left_s`` more seconds.

        ``spoken_s``: how long it has taken until now, which is what counts, whatever it is charged for. A lower class
        never does; a higher one does as long as it has not had more than its weight; of the same class, another
        client's job does which is much shorter, and whose client has had less.
        """
        mine, other = job.request.priority, begun.request.priority
        if _RANKS[mine] > _RANKS[other]:
            return False
        back_s = begun.charged_s - spoken_s
        if mine != other:
            had = self._classes.had(other) - back_s / self._classes.weight(other)
            return self._classes.tag(mine) <= had
        if job.client.key == begun.client.key or job.cost_s > _MUCH_SHORTER * left_s:
            return False
        lane = self._lanes[mine]
        return lane.tag(job.client.key) <= lane.had(begun.client.key) - back_s

    def in_order(self) -> Iterator[Job]:
        """All jobs that may be started, in the order in which they would be if no other came."""
        yield from self._for_fresh.values()
        heap = self._classes.places()
        lanes = {priority: lane.in_order() for priority, lane in self._lanes.items()}
        while heap:
            start, rank, priority = heap[0]
            job = next(lanes[priority], None)  # type: ignore[index]
            if job is None:
                heapq.heappop(heap)
                continue
            yield job
            heapq.heapreplace(heap, (start + job.cost_s / self._classes.weight(priority), rank, priority))

    def ahead_of(self, job: Job) -> tuple[int, float]:
        """About how many jobs are started before one that waits, and their seconds of work, all classes together.

        Takes time by the number of clients in its class.
        """
        fresh = len(self._for_fresh)
        fresh_s = sum(other.cost_s for other in self._for_fresh.values())
        if job.id in self._for_fresh:
            return 0, 0.0
        priority = job.request.priority
        count, work_s = self._lanes[priority].ahead_of(job)
        start = self._classes.tag(priority) + work_s / self._classes.weight(priority)
        total, total_s = count + fresh, work_s + fresh_s
        for other, tag in self._classes.tags():
            lane = self._lanes[other]  # type: ignore[index]
            room_s = (start - tag) * self._classes.weight(other)
            before = room_s > 0.0 or (room_s == 0.0 and _RANKS[other] < _RANKS[priority])
            if other == priority or not before:
                continue
            if lane.work_s <= room_s:
                total, total_s = total + len(lane), total_s + lane.work_s
            else:
                # One that may begin now, and those that fit behind it.
                some = min(len(lane), int(len(lane) * room_s / lane.work_s) + 1)
                total, total_s = total + some, total_s + lane.work_s * some / len(lane)
        return total, total_s
