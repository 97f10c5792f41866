"""The waiting jobs: three classes, first come first served within a class, shared out between classes by weight.

Before them come the few that ran out of GPU memory and are tried once more, on a process that has had no other job.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from glmtts.protocol.requests import PRIORITIES, Priority

from .jobs import Job
from .settings import ClassesSettings


class WaitingQueue:
    """Takes jobs in, gives the next one out; every operation but :meth:`position` takes constant time."""

    def __init__(self, classes: ClassesSettings) -> None:
        self._lanes: dict[Priority, OrderedDict[str, Job]] = {priority: OrderedDict() for priority in PRIORITIES}
        self._credit: dict[Priority, int] = dict.fromkeys(PRIORITIES, 0)
        self._weights: dict[Priority, int] = {}
        #: Jobs that wait for a worker which has had no other; they come before all.
        self._for_fresh: OrderedDict[str, Job] = OrderedDict()
        #: Characters that wait, by class: what waiting time is estimated from.
        self.characters: dict[Priority, int] = dict.fromkeys(PRIORITIES, 0)
        self.set_weights(classes)

    def set_weights(self, classes: ClassesSettings) -> None:
        """Share out by these weights from now on."""
        weights = {priority: getattr(classes, priority).weight for priority in PRIORITIES}
        if weights != self._weights:
            # Credit is measured in the old weights: a class deep in debt by them could starve by the new ones.
            self._credit = dict.fromkeys(PRIORITIES, 0)
            self._weights = weights

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values())) + len(self._for_fresh)

    def __bool__(self) -> bool:
        return bool(self._for_fresh) or any(self._lanes.values())

    def __iter__(self) -> Iterator[Job]:
        yield from self._for_fresh.values()
        for lane in self._lanes.values():
            yield from lane.values()

    def length(self, priority: Priority) -> int:
        """How many of a class wait."""
        held = sum(job.request.priority == priority for job in self._for_fresh.values()) if self._for_fresh else 0
        return len(self._lanes[priority]) + held

    @property
    def wants_fresh(self) -> bool:
        """Whether a job waits for a worker that has had no other."""
        return bool(self._for_fresh)

    def oldest(self) -> float | None:
        """When the job that has waited for longest was accepted; None if none waits."""
        heads = [next(iter(lane.values())).accepted_at for lane in self._lanes.values() if lane]
        return min(heads, default=None)

    def ahead(self, priority: Priority) -> int:
        """How many wait that a new job of this class comes behind: its own class and those above it."""
        total = len(self._for_fresh)
        for name, lane in self._lanes.items():
            total += len(lane)
            if name == priority:
                break
        return total

    def characters_ahead(self, priority: Priority) -> int:
        """Characters of the jobs that a new job of this class comes behind."""
        total = 0
        for name, characters in self.characters.items():
            total += characters
            if name == priority:
                break
        return total

    def push(self, job: Job, *, front: bool = False) -> None:
        """Add a job at the end of its class, or in front of it: a job that had been running before."""
        lane = self._for_fresh if job.needs_fresh else self._lanes[job.request.priority]
        lane[job.id] = job
        if front:
            lane.move_to_end(job.id, last=False)
        self.characters[job.request.priority] += len(job.request.text)

    def pop_for_fresh(self) -> Job | None:
        """Take the next job that waits for a worker which has had no other."""
        if not self._for_fresh:
            return None
        _, job = self._for_fresh.popitem(last=False)
        self.characters[job.request.priority] -= len(job.request.text)
        return job

    def pop(self) -> Job | None:
        """Take the next job, by smooth weighted round robin over the classes in which any waits."""
        waiting = [priority for priority, lane in self._lanes.items() if lane]
        if not waiting:
            return None
        if len(waiting) == 1:
            chosen = waiting[0]
        else:
            for priority in waiting:
                self._credit[priority] += self._weights[priority]
            chosen = max(waiting, key=self._credit.__getitem__)
            self._credit[chosen] -= sum(self._weights[priority] for priority in waiting)
        _, job = self._lanes[chosen].popitem(last=False)
        self.characters[chosen] -= len(job.request.text)
        return job

    def remove(self, job: Job) -> None:
        """Take a job out of the queue. Raises KeyError if it is not in it."""
        lane = self._for_fresh if job.needs_fresh else self._lanes[job.request.priority]
        del lane[job.id]
        self.characters[job.request.priority] -= len(job.request.text)

    def position(self, job: Job) -> tuple[int, int]:
        """How many jobs are before this one, 0 for the next, and their characters. Takes time by the queue's length.

        Raises KeyError if it is not in the queue.
        """
        before = characters = 0
        for held in self._for_fresh.values():
            if held.id == job.id:
                return before, characters
            before += 1
        for priority, lane in self._lanes.items():
            if priority == job.request.priority:
                for id, other in lane.items():
                    if id == job.id:
                        return before, characters
                    before += 1
                    characters += len(other.request.text)
            before += len(lane)
            characters += self.characters[priority]
        raise KeyError(job.id)

    def first(self, count: int) -> Iterator[tuple[int, Job]]:
        """The first jobs of the queue with their positions."""
        for position, job in enumerate(self):
            if position >= count:
                return
            yield position, job
