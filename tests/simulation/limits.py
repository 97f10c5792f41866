"""What one client may have, counted beside the core by who he is: whatever connection, id or name he comes with."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from msgspec import UNSET

from glmtts.daemon.core import inputs
from glmtts.daemon.core.jobs.class_queue import DUE_AFTER_S
from glmtts.daemon.core.jobs.job import Job
from glmtts.daemon.core.scheduling.rate_limit import parse_rate
from glmtts.daemon.core.settings import ClientLimits
from glmtts.protocol import requests

from .rules import Rule, must

if TYPE_CHECKING:
    from .world import World

#: The first jobs after the breaks of others: a token more than exact, for rounding.
_ROUNDING = 1e-3


class Limits:
    """Counts what was taken."""

    def __init__(self, world: World, machine: Any) -> None:
        self._world = world
        self._machine = machine
        self._queue = machine.state.queue
        self._live = machine.state.job_table.live
        #: By client, and whether it is batch: tokens that are left, and when that was so.
        self._tokens: dict[tuple[str, bool], tuple[float, float]] = {}

    def admitted(self, client: inputs.Client, request: requests.Synthesize) -> None:
        """The core has taken a job of this client."""
        key = client.key
        if request.on_behalf_of is not UNSET:
            key = f"{key}/{request.on_behalf_of}"
            gateways = self._machine.settings.limits.gateways
            must(Rule.BOUNDED, client.user in gateways, client.key, "speaks for others, and is no gateway")
        settings = self._machine.settings
        own = settings.limits.clients.get(key) or settings.limits.clients.get(client.user) or ClientLimits()
        if "/" in key:
            own = settings.limits.clients.get(key) or ClientLimits()
        batch = request.priority == "batch"
        general = settings.limits.rate_batch if batch else settings.limits.rate
        given = own.rate_batch if batch else own.rate
        self._take(key, batch, parse_rate(general if given is None else given))
        jobs = [job for job in self._live.values() if job.client.key == key]
        most = settings.queue.max_per_client
        recovered = self._machine.scheduler.durable_jobs.recovered
        must(Rule.BOUNDED, len(jobs) <= most + recovered, key, "has", len(jobs), "jobs, and may have", most)
        places = settings.queue.max_waiting_batch if batch else settings.queue.max_waiting
        share = math.ceil((settings.queue.max_share if own.max_share is None else own.max_share) * places)
        waiting = [job for job in jobs if job in self._queue and (job.request.priority == "batch") == batch]
        # Those that come back from dead workers are not counted against anybody.
        # Nor those whose text has come since they were taken.
        new = sum(not job.attempts and job.pieces is None for job in waiting)
        # One more may be on its way to a worker that is free.
        must(Rule.BOUNDED, new <= share + 1 + recovered, key, "has", new, "jobs waiting, and may have", share)

    def _take(self, key: str, batch: bool, rate: tuple[int, float] | None) -> None:
        if rate is None:
            return
        count, seconds = rate
        now = self._world.now
        tokens, since = self._tokens.get((key, batch), (float(count), now))
        tokens = min(float(count), tokens + (now - since) * count / seconds)
        must(Rule.BOUNDED, tokens >= 1 - _ROUNDING, key, "is faster than", count, "in", seconds, "s")
        self._tokens[key, batch] = (tokens - 1, now)

    def started(self, id: str, event: inputs.Input) -> None:
        """A job is started: its client's others that are due earlier were started before it."""
        job = self._live.get(id)
        # One that has a deadline may be started early because it takes long.
        if job is None or job.attempts > job.attempt.begun or job.needs_fresh or job.alone:
            return
        if job.deadline_at is not None:
            return
        due = job.accepted_at + DUE_AFTER_S
        handed_over = {row.job for row in event.rows} if isinstance(event, inputs.JournalChanged) else set()
        for other in self._queue:
            if other.client.key != job.client.key or other.request.priority != job.request.priority:
                continue
            apart = self._queue.is_held(other) or other.id in self._queue._for_fresh or other.alone
            # What came back, or came anew, in this very step was not there yet.
            new = other.attempts > 0 or other.accepted_at >= self._world.clocks.core_now or other.id in handed_over
            earlier = not (apart or new) and _due(other) < due - 1e-6
            must(Rule.FAIR, not earlier, id, "is started before", other.id, "of the same client, which is due earlier")


def _due(job: Job) -> float:
    if job.interrupted >= 3:
        # What is broken off again and again lets others pass.
        return math.inf
    return job.deadline_at if job.deadline_at is not None else job.accepted_at + DUE_AFTER_S
