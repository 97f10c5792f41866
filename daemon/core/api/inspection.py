"""What operators see of the queue and of limits: who waits, how long, and how much of his limits each has used."""

from __future__ import annotations

import heapq
from collections import Counter
from itertools import islice
from operator import attrgetter
from typing import Any

from msgspec import UNSET

from glmtts.protocol import control, events
from glmtts.protocol.requests import PRIORITIES

from ..context import Context
from ..inputs import Client, Controlled
from ..jobs.job import Job
from ..jobs.job_table import JobTable
from ..jobs.queue import Waiting, WaitingQueue
from ..scheduling.admission import Admission, is_named
from ..scheduling.forecast import Forecast
from ..workers.pool import Pool

#: Clients that one answer shows at most: those with the most to do.
_SHOWN_CLIENTS = 200


class Inspection:
    """Answers ``queue`` and ``limits``."""

    def __init__(
        self,
        context: Context,
        job_table: JobTable,
        queue: WaitingQueue,
        pool: Pool,
        *,
        forecast: Forecast,
        admission: Admission,
    ) -> None:
        self._context = context
        self._job_table = job_table
        self._queue = queue
        self._pool = pool
        self._forecast = forecast
        self._admission = admission

    def queue(self, event: Controlled, request: control.Queue) -> None:
        """What waits, by class and by client, and the first jobs in their order."""
        live = self._job_table.live
        running = [live[id] for worker in self._pool for id in worker.jobs if id in live]
        classes = {
            priority: {
                "waiting": self._queue.length(priority),
                "running": sum(job.request.priority == priority and not job.suspended for job in running),
                "suspended": sum(job.request.priority == priority and job.suspended for job in running),
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
                    "deadline_in_s": None if job.deadline_at is None else round(job.deadline_at - now, 3),
                    "durable": job.durable,
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
            user = wanted.partition("/")[0]
            clients = clients or [Client(wanted if ":" in wanted else f"user:{wanted}", user)]
        values = {
            "limits": self._admission.describe_general(),
            "clients": [self._admission.describe(client) for client in clients[-_SHOWN_CLIENTS:]],
        }
        self._context.send(event.to, events.Result(id=request.id, values=values))
