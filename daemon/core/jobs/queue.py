"""The waiting jobs: three classes that share the workers' time by weight, and in each its clients in equal parts.

They share time, not jobs: a chapter counts for as many sentences as it takes. Before all others come the few that ran
out of GPU memory and are tried once more, on a process that has had no other job, and those that run alone. Jobs that
the journal does not have yet are held: they wait, and may not be started."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator
from itertools import chain

from msgspec import Struct, field

from glmtts.protocol.requests import PRIORITIES, Priority

from ..inputs import Client
from ..settings import ClassesSettings
from .class_queue import ClassQueue
from .fair_share import FairShare
from .job import Job

_RANKS: dict[str, int] = {priority: rank for rank, priority in enumerate(PRIORITIES)}
#: Seconds, times its weight, that a class may have before the next one below it gets its share: a sentence that comes
#: in the wake of others does not wait for a chapter because the class as a whole was served before.
HEAD_START_S = 5.0
#: A job of the same class overtakes the rest of another only if it takes less than this part of it.
_MUCH_SHORTER = 0.5


class Waiting(Struct):
    """The waiting jobs of one client: their number by class, and the seconds of work of those that may be started."""

    client: Client
    jobs: dict[Priority, int] = field(default_factory=lambda: dict.fromkeys(PRIORITIES, 0))
    count: int = 0
    work_s: float = 0.0


class WaitingQueue:
    """Owns every waiting job, in one class and one client's part of it. In and out take logarithmic time."""

    def __init__(self, classes: ClassesSettings) -> None:
        self._class_queues: dict[Priority, ClassQueue] = {priority: ClassQueue() for priority in PRIORITIES}
        self._classes = FairShare(_RANKS, {priority: HEAD_START_S * rank for priority, rank in _RANKS.items()})
        #: Jobs that wait for a worker which has had no other; they come before all.
        self._for_fresh: OrderedDict[str, Job] = OrderedDict()
        #: Jobs that wait for a worker with nothing at hand; they come next.
        self._alone: OrderedDict[str, Job] = OrderedDict()
        #: Jobs that the journal does not have yet.
        self._held: dict[str, Job] = {}
        #: Jobs of whose text nothing can be spoken yet: they take no place.
        self._without_text: dict[str, Job] = {}
        #: All others; those that had been started before come first.
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._clients: dict[str, Waiting] = {}
        #: By owner: a gateway's customers all together.
        self._owners: dict[str, dict[Priority, int]] = {}
        self._lengths: dict[Priority, int] = dict.fromkeys(PRIORITIES, 0)
        #: Whether an operator has paused the queue: no job is started.
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
        return len(self._jobs) + len(self._held)

    def __bool__(self) -> bool:
        return bool(self._jobs or self._held)

    def __iter__(self) -> Iterator[Job]:
        return chain(self._jobs.values(), self._held.values(), self._without_text.values())

    def __contains__(self, job: Job) -> bool:
        return job.id in self._jobs or self.is_held(job)

    def is_held(self, job: Job) -> bool:
        """Whether a job waits for the disk or for its text, and not for a worker."""
        return job.id in self._held or job.id in self._without_text

    @property
    def without_text(self) -> int:
        """How many jobs wait for their text. They are not among those that are counted otherwise."""
        return len(self._without_text)

    def length(self, priority: Priority) -> int:
        """How many of a class wait."""
        return self._lengths[priority]

    def work_s(self, priority: Priority) -> float:
        """Seconds that the waiting jobs of a class are expected to take."""
        return self._class_queues[priority].work_s

    def waiting_of(self, client: str, priorities: Collection[Priority]) -> int:
        """How many jobs of a client wait in some classes."""
        waiting = self._clients.get(client)
        return sum(waiting.jobs[priority] for priority in priorities) if waiting else 0

    def waiting_of_owner(self, owner: str, priorities: Collection[Priority]) -> int:
        """How many jobs of an owner and all its customers wait in some classes."""
        jobs = self._owners.get(owner)
        return sum(jobs[priority] for priority in priorities) if jobs else 0

    def first_of(self, client: str, priority: Priority) -> Job | None:
        """The job of a client that is started first of a class, if it has one there that may be."""
        return self._class_queues[priority].first_of(client)

    def clients(self) -> Collection[Waiting]:
        """The waiting jobs of each client that has any."""
        return self._clients.values()

    @property
    def wants_fresh(self) -> bool:
        """Whether a job waits for a worker that has had no other."""
        return bool(self._for_fresh)

    @property
    def wants_alone(self) -> bool:
        """Whether a job waits for a worker with nothing at hand."""
        return bool(self._alone)

    def oldest(self) -> float | None:
        """When the job that has waited for longest was accepted, or nearly that; None if none may be started."""
        return next((job.accepted_at for job in self._jobs.values()), None)

    def reorder(self) -> None:
        """The times of all jobs have changed, by the same span."""
        for class_queue in self._class_queues.values():
            class_queue.reorder()

    # --- in and out

    def hold(self, job: Job) -> None:
        """Add a job that may not be started before it is pushed."""
        self._held[job.id] = job
        self._count(job)

    def keep_apart(self, job: Job) -> None:
        """Add a job that has no text yet; it takes its place when it is pushed."""
        self._without_text[job.id] = job

    def push(self, job: Job, *, front: bool = False) -> None:
        """Add a job, or release one that was held; ``front``: it had been started before."""
        self._without_text.pop(job.id, None)
        if self._held.pop(job.id, None) is None:
            self._count(job)
        self._clients[job.client.key].work_s += job.account.cost_s
        self._jobs[job.id] = job
        if front:
            self._jobs.move_to_end(job.id, last=False)
        if job.needs_fresh:
            self._for_fresh[job.id] = job
            return
        if job.alone:
            self._alone[job.id] = job
            return
        priority = job.request.priority
        self._class_queues[priority].push(job)
        self._classes.wake(priority)

    def _count(self, job: Job) -> None:
        waiting = self._clients.get(job.client.key)
        if waiting is None:
            waiting = self._clients[job.client.key] = Waiting(job.client)
        waiting.jobs[job.request.priority] += 1
        waiting.count += 1
        if job.client.owner not in self._owners:
            self._owners[job.client.owner] = dict.fromkeys(PRIORITIES, 0)
        self._owners[job.client.owner][job.request.priority] += 1
        self._lengths[job.request.priority] += 1

    def _leave(self, job: Job) -> None:
        waiting = self._clients[job.client.key]
        if self._held.pop(job.id, None) is None:
            del self._jobs[job.id]
            waiting.work_s -= job.account.cost_s
        waiting.jobs[job.request.priority] -= 1
        waiting.count -= 1
        self._lengths[job.request.priority] -= 1
        of_owner = self._owners[job.client.owner]
        of_owner[job.request.priority] -= 1
        if not waiting.count:
            del self._clients[job.client.key]
            if not any(of_owner.values()):
                del self._owners[job.client.owner]

    def remove(self, job: Job) -> None:
        """Take a job out of the queue. Raises KeyError if it is not in it."""
        if self._without_text.pop(job.id, None) is not None:
            return
        held = job.id in self._held
        self._leave(job)
        if held or (self._for_fresh.pop(job.id, None) or self._alone.pop(job.id, None)) is not None:
            return
        priority = job.request.priority
        class_queue = self._class_queues[priority]
        class_queue.remove(job)
        if not len(class_queue):
            self._classes.sleep(priority)

    def pop_for_fresh(self) -> Job | None:
        """Take the next job that waits for a worker which has had no other."""
        return self._pop(self._for_fresh)

    def pop_alone(self) -> Job | None:
        """Take the next job that waits for a worker with nothing at hand."""
        return self._pop(self._alone)

    def _pop(self, jobs: OrderedDict[str, Job]) -> Job | None:
        if not jobs:
            return None
        _, job = jobs.popitem(last=False)
        self._leave(job)
        return job

    def peek(self, now: float, without: Collection[Priority] = ()) -> Job | None:
        """The job whose turn it is, but for the classes ``without``; None if there is none."""
        priority = self._classes.next(without)
        return None if priority is None else self._class_queues[priority].next(now)  # type: ignore[index]  # the flow is a priority

    def take(self, job: Job) -> None:
        """Take out a job, which is started: its class and its client have had the time that it is expected to take."""
        priority = job.request.priority
        self._leave(job)
        self._class_queues[priority].take(job)
        self._classes.serve(priority, job.account.cost_s, more=len(self._class_queues[priority]) > 0)
        job.account.charged_s = job.account.cost_s

    def resume(self, job: Job, left_s: float) -> None:
        """A suspended job resumes: its client is charged for the remaining time."""
        job.account.charged_s += left_s
        self._classes.resume(job.request.priority, left_s)
        self._class_queues[job.request.priority].resume(job.client.key, left_s)

    def settle(self, job: Job) -> None:
        """An attempt at a job is over, or suspended: its client is charged for the time that it took."""
        work_s, settled_s = job.attempt.work_s(), job.account.settled_s
        charged_s, took_s = job.account.charged_s - settled_s, work_s - settled_s
        if charged_s or took_s:
            job.account.charged_s = job.account.settled_s = work_s
            self._classes.settle(job.request.priority, charged_s, took_s)
            self._class_queues[job.request.priority].settle(job.client.key, charged_s, took_s)

    def rest(self) -> None:
        """Nothing is being spoken; if nothing waits either, all debts are forgotten."""
        if not self:
            self._classes.rest()
            for class_queue in self._class_queues.values():
                class_queue.rest()

    # --- what goes first

    def goes_before(self, job: Job, begun: Job, left_s: float, *, unspoken_s: float) -> bool:
        """Whether a waiting job comes before the rest of one that was begun, which takes ``left_s`` more seconds.

        ``unspoken_s``: what is charged for it already and not spoken yet. A lower class never does; a higher one does
        as long as it has not had more than its weight; of the same class, another client's job does which is much
        shorter, and whose client has had less.
        """
        mine, other = job.request.priority, begun.request.priority
        if mine != other:
            return self._class_goes_before(mine, other, unspoken_s)
        if job.client.key == begun.client.key or job.account.cost_s > _MUCH_SHORTER * left_s:
            return False
        return self._behind_s(job, begun, unspoken_s) <= 0.0

    def has_turn(self, job: Job, begun: Job, *, unspoken_s: float) -> bool:
        """Whether a job comes before the rest of a begun one, if one of the two gets its text in pieces.

        As :meth:`goes_before`, whatever their lengths: how long the text gets is unknown, and its listener waits at
        each sentence. So those of one class take turns.
        """
        mine, other = job.request.priority, begun.request.priority
        if mine != other:
            return self._class_goes_before(mine, other, unspoken_s)
        return job.client.key == begun.client.key or self._behind_s(job, begun, unspoken_s) <= 0.0

    def turn(self, job: Job) -> tuple[int, float]:
        """What orders suspended jobs of a worker: the class, then how much the client has had."""
        priority = job.request.priority
        return _RANKS[priority], self._class_queues[priority].tag(job.client.key)

    def _class_goes_before(self, mine: Priority, other: Priority, unspoken_s: float) -> bool:
        if _RANKS[mine] > _RANKS[other]:
            return False
        head_start = self._classes.handicap(other) - self._classes.handicap(mine)
        had = self._classes.had(other) - unspoken_s / self._classes.weight(other)
        return self._classes.tag(mine) <= had + head_start

    def _behind_s(self, job: Job, begun: Job, unspoken_s: float) -> float:
        """How much more the client of a waiting job has had than that of one of its class that was begun."""
        class_queue = self._class_queues[job.request.priority]
        return class_queue.tag(job.client.key) - (class_queue.had(begun.client.key) - unspoken_s)

    def goes_before_in_s(self, job: Job, begun: Job, left_s: float, *, unspoken_s: float) -> float | None:
        """For how long one of the same class has to be spoken until a waiting job comes before its rest; None: never.

        While it is spoken its client gets ahead, until the other one has had less.
        """
        if job.request.priority != begun.request.priority or job.client.key == begun.client.key:
            return None
        in_s = max(0.0, self._behind_s(job, begun, unspoken_s))
        return None if job.account.cost_s > _MUCH_SHORTER * (left_s - in_s) else in_s

    def in_order(self) -> Iterator[Job]:
        """All jobs that may be started, in the order in which they would be if no other came."""
        yield from self._for_fresh.values()
        yield from self._alone.values()
        turns = self._classes.turns()
        class_queues = {priority: class_queue.in_order() for priority, class_queue in self._class_queues.items()}
        while (priority := turns.next()) is not None:
            job = next(class_queues[priority], None)  # type: ignore[index]  # as above
            if job is None:
                turns.leave()
            else:
                yield job
                turns.serve(job.account.cost_s)

    def ahead_of(self, job: Job) -> tuple[int, float]:
        """About how many jobs are started before one that waits, and their seconds of work, all classes together.

        Takes time by the number of clients in its class, up to some.
        """
        if job.id in self._for_fresh or job.id in self._alone:
            return 0, 0.0
        first = [*self._for_fresh.values(), *self._alone.values()]
        first_s = sum(other.account.cost_s for other in first)
        priority = job.request.priority
        count, work_s = self._class_queues[priority].ahead_of(job)
        start = self._classes.tag(priority) + work_s / self._classes.weight(priority)
        start += self._classes.handicap(priority)
        total, total_s = count + len(first), work_s + first_s
        for other, tag in self._classes.tags():
            class_queue = self._class_queues[other]  # type: ignore[index]  # as above
            room_s = (start - tag - self._classes.handicap(other)) * self._classes.weight(other)
            before = room_s > 0.0 or (room_s == 0.0 and _RANKS[other] < _RANKS[priority])
            if other == priority or not before:
                continue
            if class_queue.work_s <= room_s:
                total, total_s = total + len(class_queue), total_s + class_queue.work_s
            else:
                # One that may begin now, and those that fit behind it.
                some = min(len(class_queue), int(len(class_queue) * room_s / class_queue.work_s) + 1)
                total, total_s = total + some, total_s + class_queue.work_s * some / len(class_queue)
        return total, total_s
