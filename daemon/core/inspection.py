"""What operators see of the queue and of limits: who waits, how long, and how much of his limits each has used."""

from __future__ import annotations

from itertools import islice
from typing import Any

from msgspec import UNSET

from glmtts.protocol import control, events
from glmtts.protocol.requests import PRIORITIES

from .admission import Admission, is_named
from .context import Context
from .forecast import Forecast
from .inputs import Client, Controlled
from .jobs import Job
from .ledger import Ledger
from .queue import WaitingQueue

#: Clients that one answer shows at most: those with the most to do.
_SHOWN_CLIENTS = 200


class Inspection:
    """Answers ``queue`` and ``limits``."""

    def __init__(
        self, context: Context, ledger: Ledger, queue: WaitingQueue, forecast: Forecast, admission: Admission
    ) -> None:
        self._context = context
        self._ledger = ledger
        self._queue = queue
        self._forecast = forecast
        self._admission = admission

    def queue(self, event: Controlled, request: control.Queue) -> None:
        """What waits, by class and by client, and the first jobs in their order."""
        running = [job for job in self._ledger.live.values() if job.state == "running"]
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
        found: dict[str, dict[str, Any]] = {}

        def entry(client: Client) -> dict[str, Any]:
            empty = {"client": client.key, "user": client.user, "waiting": 0, "running": 0, "work_s": 0.0}
            return found.setdefault(client.key, empty)

        for job in self._queue:
            who = entry(job.client)
            who["waiting"] += 1
            who["work_s"] = round(who["work_s"] + job.cost_s, 3)
        for job in running:
            entry(job.client)["running"] += 1
        most = sorted(found.values(), key=lambda who: (-who["waiting"], -who["running"], who["client"]))
        return most[:_SHOWN_CLIENTS]

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

    def limits(self, event: Controlled, request: control.Limits) -> None:
        """The limits, and what each client that was here lately has used of them."""
        clients = self._admission.known_clients()
        if request.client is not UNSET:
            wanted = request.client
            clients = [client for client in clients if client.key == wanted or is_named(client, [wanted])]
            clients = clients or [Client(wanted if ":" in wanted else f"user:{wanted}", wanted)]
        values = {
            "limits": self._admission.describe_general(),
            "clients": [self._admission.describe(client) for client in clients[-_SHOWN_CLIENTS:]],
        }
        self._context.send(event.to, events.Result(id=request.id, values=values))
