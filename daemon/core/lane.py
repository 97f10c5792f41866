"""One class of the queue: its clients share it fairly, and each client's jobs are ordered by when they are due.

A job is due at its deadline; one without is due some minutes after it came, so that a client's own urgent jobs
overtake its others, but not for ever. Other clients' jobs are overtaken for a deadline only when it would be missed
otherwise, and only by a client that has not had more than its share."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator

from .fair import FairShare
from .jobs import Job

#: Seconds after its acceptance at which a job without a deadline counts as due.
DUE_AFTER_S = 300.0
#: A job that was broken off so often does not come before its client's others any more.
_OFTEN = 3
#: Entries of jobs that have left are cleared away when there are more of them than of others, and more than this.
_STALE = 64
#: Up to so many jobs of a client are looked at one by one when its share of what stands ahead is worked out.
_COUNTED = 8

#: When it is due (or has to be started), order of arrival, job.
_Entry = tuple[float, int, Job]


class _Flow:
    """The jobs of one client, the one due first in front."""

    __slots__ = ("heap", "latest_due", "waiting", "work_s")

    def __init__(self) -> None:
        self.heap: list[_Entry] = []
        self.waiting: dict[str, Job] = {}
        self.work_s = 0.0
        self.latest_due = 0.0

    def push(self, job: Job, order: int) -> None:
        job.place = order
        heapq.heappush(self.heap, (due(job), order, job))
        self.waiting[job.id] = job
        self.work_s += job.cost_s
        self.latest_due = max(self.latest_due, due(job))

    def remove(self, job: Job) -> None:
        del self.waiting[job.id]
        self.work_s = self.work_s - job.cost_s if self.waiting else 0.0
        if len(self.heap) > _STALE + 2 * len(self.waiting):
            self.heap = [entry for entry in self.heap if self.is_here(entry)]
            heapq.heapify(self.heap)

    def is_here(self, entry: _Entry) -> bool:
        """Whether the entry's job waits, and has not left and come back since."""
        _, order, job = entry
        return job.id in self.waiting and job.place == order

    def first(self) -> Job:
        while not self.is_here(self.heap[0]):
            heapq.heappop(self.heap)
        return self.heap[0][2]

    def in_order(self) -> Iterator[Job]:
        """The jobs in their order, each found when it is asked for: the heap is walked, and stays as it is."""
        heap = self.heap
        frontier = [(heap[0], 0)] if heap else []
        while frontier:
            entry, place = heapq.heappop(frontier)
            if self.is_here(entry):
                yield entry[2]
            for child in (2 * place + 1, 2 * place + 2):
                if child < len(heap):
                    heapq.heappush(frontier, (heap[child], child))


class Lane:
    """The waiting jobs of one class."""

    def __init__(self) -> None:
        self._share = FairShare()
        self._flows: dict[str, _Flow] = {}
        #: Jobs with a deadline by the latest time at which they can be started and still be done.
        self._urgent: list[tuple[float, int, Job]] = []
        self._with_deadline = 0
        self._order = 0
        self._length = 0
        #: Seconds of work that all jobs together are expected to take.
        self.work_s = 0.0

    def __len__(self) -> int:
        return self._length

    def waiting_of(self, client: str) -> int:
        """How many jobs of a client wait."""
        flow = self._flows.get(client)
        return len(flow.waiting) if flow else 0

    def clients(self) -> Iterator[tuple[str, int, float]]:
        """Every client that has jobs waiting: its key, how many, and their seconds of work."""
        return ((client, len(flow.waiting), flow.work_s) for client, flow in self._flows.items())

    def push(self, job: Job) -> None:
        """Add a job."""
        flow = self._flows.get(job.client.key)
        if flow is None:
            flow = self._flows[job.client.key] = _Flow()
        self._order += 1
        flow.push(job, self._order)
        self._share.wake(job.client.key)
        self._length += 1
        self.work_s += job.cost_s
        if job.deadline_at is not None:
            self._with_deadline += 1
            heapq.heappush(self._urgent, (job.deadline_at - job.cost_s, self._order, job))

    def remove(self, job: Job) -> None:
        """Take a job out, which is not started. Raises KeyError if it is not here."""
        client = job.client.key
        if self._leave(job) is None:
            self._share.sleep(client)

    def _leave(self, job: Job) -> _Flow | None:
        """The job waits no more; returns its client's other jobs, if there are any."""
        client = job.client.key
        flow = self._flows[client]
        flow.remove(job)
        self._length -= 1
        self.work_s = self.work_s - job.cost_s if self._length else 0.0
        if job.deadline_at is not None:
            self._with_deadline -= 1
            if len(self._urgent) > _STALE + 2 * self._with_deadline:
                self._urgent = [entry for entry in self._urgent if self._is_here(entry)]
                heapq.heapify(self._urgent)
        if flow.waiting:
            return flow
        del self._flows[client]
        return None

    def _is_here(self, entry: _Entry) -> bool:
        flow = self._flows.get(entry[2].client.key)
        return flow is not None and flow.is_here(entry)

    def next(self, now: float) -> Job | None:
        """The job whose turn it is."""
        client = self._share.next()
        if client is None:
            return None
        job = self._flows[client].first()
        urgent = self._next_urgent()
        if urgent is not None and urgent is not job:
            latest_start = (urgent.deadline_at or 0.0) - urgent.cost_s
            # Behind the other one it would come too late, and its client is not so far ahead that it has to.
            ahead_s = self._share.tag(urgent.client.key) - self._share.virtual
            if now <= latest_start < now + job.cost_s and ahead_s <= urgent.cost_s:
                return urgent
        return job

    def _next_urgent(self) -> Job | None:
        while self._urgent:
            if self._is_here(self._urgent[0]):
                return self._urgent[0][2]
            heapq.heappop(self._urgent)
        return None

    def take(self, job: Job) -> None:
        """The job is started: its client has had the time that it is expected to take."""
        more = self._leave(job) is not None
        self._share.serve(job.client.key, job.cost_s, more=more)

    def charge(self, client: str, seconds: float) -> None:
        """A client has had so much more, or less, than it was charged for."""
        self._share.charge(client, seconds)

    def tag(self, client: str) -> float:
        """When a client's next job may begin, in the lane's virtual time."""
        return self._share.tag(client)

    def had(self, client: str) -> float:
        """How far a client has been served, in the lane's virtual time."""
        return self._share.had(client)

    def rest(self) -> None:
        """Nobody waits, and nothing is being spoken."""
        self._share.rest()

    def in_order(self) -> Iterator[Job]:
        """All jobs in the order in which they would be started if no other came, deadlines of others aside."""
        heap = self._share.places()
        flows = {client: flow.in_order() for client, flow in self._flows.items()}
        order = self._order
        while heap:
            start, _, client = heap[0]
            job = next(flows[client], None)
            if job is None:
                heapq.heappop(heap)
                continue
            yield job
            order += 1
            heapq.heapreplace(heap, (start + job.cost_s, order, client))

    def ahead_of(self, job: Job) -> tuple[int, float]:
        """About how many jobs of this class are started before one of it, and their seconds of work.

        Takes time by the number of clients; clients with many jobs are counted as if all of theirs were alike.
        """
        own = self._flows[job.client.key]
        if due(job) >= own.latest_due:
            count, work_s = len(own.waiting) - 1, own.work_s - job.cost_s
        else:
            before = [other for other in own.waiting.values() if due(other) < due(job)]
            count, work_s = len(before), sum(other.cost_s for other in before)
        start = self._share.tag(job.client.key) + work_s
        for client, tag in self._share.tags():
            room_s = start - tag
            if room_s < 0.0 or client == job.client.key:
                continue
            more, more_s = _begun_within(self._flows[client], room_s)
            count += more
            work_s += more_s
        return count, work_s


def _begun_within(flow: _Flow, room_s: float) -> tuple[int, float]:
    """How many jobs of a flow begin before it has had ``room_s`` seconds, and how long they take."""
    waiting = len(flow.waiting)
    if flow.work_s <= room_s:
        return waiting, flow.work_s
    if waiting > _COUNTED:
        count = min(waiting, int(waiting * room_s / flow.work_s) + 1)
        return count, flow.work_s * count / waiting
    count, work_s = 0, 0.0
    for job in flow.in_order():
        # Of two that may begin at the same time, the one that waits for longer goes first.
        if work_s > room_s:
            break
        count += 1
        work_s += job.cost_s
    return count, work_s


def due(job: Job) -> float:
    """When a job is due, on the core's clock; one that had been started before comes before its client's others."""
    if job.attempts and job.excused < _OFTEN:
        return -math.inf
    if job.attempts:
        # Whatever breaks it off again and again is not to keep its client's other jobs from being done.
        return job.accepted_at + DUE_AFTER_S * (1 + job.excused)
    return job.deadline_at if job.deadline_at is not None else job.accepted_at + DUE_AFTER_S
