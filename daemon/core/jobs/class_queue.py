"""One class of the queue: its clients share it fairly, and each client's jobs are ordered by when they are due.

A job is due at its deadline; one without is due some minutes after it came, so that a client's own urgent jobs
overtake its others, but not for ever. Other clients' jobs are overtaken for a deadline only where it would be missed
otherwise, and only by a client that has not had more than its share."""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import islice

from .fair_share import FairShare
from .job import Job

#: Seconds after its acceptance at which a job without a deadline counts as due.
DUE_AFTER_S = 300.0
#: After this many broken attempts a job does not come before its client's others any more.
_OFTEN = 3
#: Entries of jobs that have left are cleared away when there are more of them than of others, and more than this.
_STALE = 64
#: Jobs of another client, and of its own, that count one by one for the work ahead of a job; more count as if they were
#: alike.
_COUNTED, _COUNTED_OWN = 8, 64
#: Clients, roughly, that count for the work ahead of a job.
_CLIENTS = 128

#: When it is due (or has to be started), order of arrival, job.
_Entry = tuple[float, int, Job]


class _Flow:
    """The jobs of one client, the one due first in front.

    A sorted list: with the ten thousand that may wait, moving them all in memory takes a few microseconds."""

    __slots__ = ("jobs", "work_s")

    def __init__(self) -> None:
        self.jobs: list[_Entry] = []
        self.work_s = 0.0

    def push(self, job: Job, order: int) -> None:
        job.account.place = order
        insort(self.jobs, (due(job), order, job))
        self.work_s += job.account.cost_s

    def place(self, job: Job) -> int:
        """How many of the client's own jobs come before this one."""
        return bisect_left(self.jobs, (due(job), job.account.place))

    def remove(self, job: Job) -> None:
        del self.jobs[self.place(job)]
        self.work_s = self.work_s - job.account.cost_s if self.jobs else 0.0

    def work_before_s(self, place: int) -> float:
        """Seconds of work of the jobs before a place, roughly."""
        if place == len(self.jobs) - 1:
            return self.work_s - self.jobs[place][2].account.cost_s
        if place > _COUNTED_OWN:
            return self.work_s * place / len(self.jobs)
        return sum(job.account.cost_s for _, _, job in islice(self.jobs, place))


class ClassQueue:
    """Owns the waiting jobs of one class: a sorted part for each client, and the clients' shares."""

    def __init__(self) -> None:
        self._share = FairShare()
        self._flows: dict[str, _Flow] = {}
        #: Jobs with a deadline by the latest time at which they can be started and still be done.
        self._urgent: list[_Entry] = []
        #: Those of them that still wait, by their order.
        self._with_deadline: set[int] = set()
        self._order = 0
        self._length = 0
        #: Seconds of work that all jobs together are expected to take.
        self.work_s = 0.0

    def __len__(self) -> int:
        return self._length

    def first_of(self, client: str) -> Job | None:
        """The job of a client that is started first."""
        flow = self._flows.get(client)
        return flow.jobs[0][2] if flow else None

    def push(self, job: Job) -> None:
        """Add a job."""
        flow = self._flows.get(job.client.key)
        if flow is None:
            flow = self._flows[job.client.key] = _Flow()
        self._order += 1
        flow.push(job, self._order)
        self._share.wake(job.client.key)
        self._length += 1
        self.work_s += job.account.cost_s
        if job.deadline_at is not None:
            self._with_deadline.add(self._order)
            heapq.heappush(self._urgent, (job.deadline_at - job.account.latency_s, self._order, job))

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
        self.work_s = self.work_s - job.account.cost_s if self._length else 0.0
        if job.deadline_at is not None:
            self._with_deadline.discard(job.account.place)
            if len(self._urgent) > _STALE + 2 * len(self._with_deadline):
                self._urgent = [entry for entry in self._urgent if entry[1] in self._with_deadline]
                heapq.heapify(self._urgent)
        if flow.jobs:
            return flow
        del self._flows[client]
        return None

    def next(self, now: float) -> Job | None:
        """The job whose turn it is."""
        client = self._share.next()
        if client is None:
            return None
        job = self._flows[client].jobs[0][2]
        urgent = self._next_urgent(now)
        if urgent is not None and urgent is not job:
            latest_start = (urgent.deadline_at or 0.0) - urgent.account.latency_s
            # Behind the other one it would come too late, and its client is not so far ahead that it has to.
            ahead_s = self._share.tag(urgent.client.key) - self._share.virtual
            if latest_start < now + job.account.latency_s and ahead_s <= urgent.account.cost_s:
                return urgent
        return job

    def _next_urgent(self, now: float) -> Job | None:
        """The job that has to be started soonest, but for those that would be late anyway."""
        while self._urgent:
            latest_start, order, job = self._urgent[0]
            if latest_start >= now and order in self._with_deadline:
                return job
            heapq.heappop(self._urgent)
        return None

    def reorder(self) -> None:
        """The times of all jobs have changed, by the same span."""
        for flow in self._flows.values():
            flow.jobs = sorted((due(job), order, job) for _, order, job in flow.jobs)
        self._urgent = [
            ((job.deadline_at or 0.0) - job.account.latency_s, order, job)
            for _, order, job in self._urgent
            if order in self._with_deadline
        ]
        heapq.heapify(self._urgent)

    def take(self, job: Job) -> None:
        """The job is started: its client has had the time that it is expected to take."""
        more = self._leave(job) is not None
        self._share.serve(job.client.key, job.account.cost_s, more=more)

    def resume(self, client: str, seconds: float) -> None:
        """A client's suspended job resumes, and takes ``seconds`` more."""
        self._share.resume(client, seconds)

    def settle(self, client: str, charged_s: float, took_s: float) -> None:
        """A client's job is done or suspended: its client pays ``took_s`` in place of ``charged_s``."""
        self._share.settle(client, charged_s, took_s)
        self._share.elapse(took_s)

    def tag(self, client: str) -> float:
        """When a client's next job may begin, in the virtual time of the class."""
        return self._share.tag(client)

    def had(self, client: str) -> float:
        """How far a client has been served, in the virtual time of the class."""
        return self._share.had(client)

    def rest(self) -> None:
        """No job waits, and none is being spoken."""
        self._share.rest()

    def in_order(self) -> Iterator[Job]:
        """All jobs in the order in which they would be started if no other came, but for urgent deadlines."""
        turns = self._share.turns()
        flows: dict[str, Iterator[_Entry]] = {}
        while (client := turns.next()) is not None:
            if client not in flows:
                flows[client] = iter(self._flows[client].jobs)
            entry = next(flows[client], None)
            if entry is None:
                turns.leave()
            else:
                yield entry[2]
                turns.serve(entry[2].account.cost_s)

    def ahead_of(self, job: Job) -> tuple[int, float]:
        """About how many jobs of this class are started before one of it, and their seconds of work.

        Takes time by the number of clients, up to some: of very many clients a sample counts. The jobs of a client that
        has many count as if they were alike.
        """
        own = self._flows[job.client.key]
        own_count = own.place(job)
        own_s = own.work_before_s(own_count)
        start, order = self._share.place(job.client.key)
        start += own_s
        count, work_s, seen = 0, 0.0, 0
        for client, tag, place in self._share.some_places(_CLIENTS):
            seen += 1
            room_s = start - tag
            # Of two that may begin at the same time, the one that waits for longer goes first.
            behind = room_s < 0.0 or (room_s == 0.0 and not own_count and place > order)
            if behind or client == job.client.key:
                continue
            more, more_s = _begun_within(self._flows[client], room_s)
            count += more
            work_s += more_s
        scale = len(self._share) / seen if seen else 1.0
        others, others_s = self._length - len(own.jobs), self.work_s - own.work_s
        return own_count + min(others, round(count * scale)), own_s + min(others_s, work_s * scale)


def _begun_within(flow: _Flow, room_s: float) -> tuple[int, float]:
    """How many jobs of a flow begin before it has had ``room_s`` seconds, and how long they take."""
    waiting = len(flow.jobs)
    if flow.work_s <= room_s:
        return waiting, flow.work_s
    if waiting > _COUNTED:
        count = min(waiting, int(waiting * room_s / flow.work_s) + 1)
        return count, flow.work_s * count / waiting
    count, work_s = 0, 0.0
    for _, _, job in flow.jobs:
        if work_s > room_s:
            break
        count += 1
        work_s += job.account.cost_s
    return count, work_s


def due(job: Job) -> float:
    """When a job is due, on the core's clock; one that had been started before comes before its client's others."""
    if job.attempts and job.interrupted < _OFTEN:
        return -math.inf
    if job.attempts:
        # Whatever breaks it off again and again is not to keep its client's other jobs from being done.
        return job.accepted_at + DUE_AFTER_S * (1 + job.interrupted)
    return job.deadline_at if job.deadline_at is not None else job.accepted_at + DUE_AFTER_S
