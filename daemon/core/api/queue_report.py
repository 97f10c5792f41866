"""The queue and the limits as operators see them: waiting clients, their waits, and their use of each limit."""

from __future__ import annotations

import heapq
from collections import Counter
from itertools import islice
from operator import attrgetter
from typing import Any

from msgspec import UNSET

from glmtts.protocol import control, events
from glmtts.protocol.requests import PRIORITIES

from ..inputs import Client, Controlled
from ..jobs.job import Job
from ..jobs.queue import Waiting
from ..scheduling.admission import is_named
from ..scheduling.scheduler import Scheduler
from ..state import State

#: Clients that one answer shows at most: those with the most to do.
_SHOWN_CLIENTS = 200
#: Clients that ``limits`` shows for each table though they have sent no job lately: those that hold most.
_MOST = 3


class QueueReport:
    """Answers ``queue`` and ``limits``; it changes nothing."""

    def __init__(self, state: State, scheduler: Scheduler) -> None:
        self._context, self._job_table = state.context, state.job_table
        self._queue, self._pool = state.queue, state.pool
        self._forecast, self._admission = scheduler.forecast, scheduler.admission

    def queue(self, event: Controlled, request: control.Queue) -> None:
        """What waits, by class and by client, and the first jobs in their order."""
        live = self._job_table.live
        running = [live[id] for worker in self._pool for id in worker.jobs if id in live]
        classes = {
            priority: {
                "waiting": self._queue.length(priority),
                "running": sum(job.request.priority == priority and not job.attempt.suspended for job in running),
                "suspended": sum(job.request.priority == priority and job.attempt.suspended for job in running),
                "work_s": round(self._queue.work_s(priority), 3),
                "weight": int(self._queue.weight(priority)),
            }
            for priority in PRIORITIES
        }
        values = {
            "paused": self._queue.paused,
            "classes": classes,
            "clients": self._clients(running),
            "jobs": self._jobs(request.limit),
        }
        values["more"] = max(0, len(self._queue) - len(values["jobs"]))  # type: ignore[arg-type]
        self._context.send(event.to, events.Result(id=request.id, values=values))

    def _clients(self, running: list[Job]) -> list[dict[str, Any]]:
        busy = Counter(job.client.key for job in running)
        found = {waiting.client.key: waiting for waiting in self._queue.clients()}
        for job in running:
            found.setdefault(job.client.key, Waiting(job.client))

        most = heapq.nlargest(_SHOWN_CLIENTS, found.values(), key=attrgetter("count"))
        most.sort(key=lambda waiting: (-waiting.count, -busy[waiting.client.key], waiting.client.key))
        return [
            {
                "client": waiting.client.key,
                "user": waiting.client.user,
                "waiting": waiting.count,
                "running": busy[waiting.client.key],
                "work_s": round(waiting.work_s, 3),
            }
            for waiting in most
        ]

    def _jobs(self, limit: int) -> list[dict[str, Any]]:
        view, now = self._forecast.view(), self._context.now
        jobs = []
        for position, job in enumerate(islice(self._queue.in_order(), limit)):
            jobs.append(
                {
                    "job": job.id,
                    "client": job.client.key,
                    "user": job.client.user,
                    "priority": job.request.priority,
                    "position": position,
                    "estimated_wait_s": view.starts_in_s(job),
                    "text_length": len(job.request.text),
                    "created": job.created,
                    "waited_s": round(now - job.accepted_at, 3),
                    "deadline_in_s": None if job.deadline_at is None else round(job.deadline_at - now, 3),
                    "durable": job.durable,
                    "label": job.label,
                }
            )
            view.place(job)
        return jobs

    def limits(self, event: Controlled, request: control.GetLimits) -> None:
        """The limits, and what each client that was here lately has used of them."""
        clients = self._admission.known_clients()
        if request.client is not UNSET:
            wanted = request.client
            clients = [client for client in clients if client.key == wanted or is_named(client, [wanted])]
            key = wanted if ":" in wanted else f"user:{wanted}"
            clients = clients or [Client.of(key, wanted.partition("/")[0])]
        clients = clients[-_SHOWN_CLIENTS:]
        if request.client is UNSET:
            # A client that sends no job may still hold most of something.
            known = {client.key for client in clients}
            most = {
                key
                for table in event.facts.values()
                for key in heapq.nlargest(_MOST, table["owners"], table["owners"].get)
            }
            clients = [*(Client.of(key, key) for key in sorted(most - known)), *clients]
        shown = [self._admission.describe(client) for client in clients]
        tables = self._admission.describe_tables()
        # What the journal's thread counts comes with the request.
        for name, table in event.facts.items():
            tables[name] = {key: value for key, value in table.items() if key != "owners"}
            for row in shown:
                if "/" not in row["client"]:
                    row["held"][name] = table["owners"].get(row["client"], 0)
        values = {"limits": self._admission.describe_general(), "clients": shown, "tables": tables}
        self._context.send(event.to, events.Result(id=request.id, values=values))
