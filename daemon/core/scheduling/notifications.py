"""What is said of a job on its way to those who hear all of it, each under the id of his own request."""

from __future__ import annotations

from msgspec import UNSET

from glmtts.protocol import events

from ..jobs.job import Job
from ..state import State
from .forecast import Forecast

#: How many of the waiting hear of a change of their position: the others would wait for very long anyhow.
TOLD_POSITIONS = 256
#: At most so often, in seconds (docs/protocol.md).
POSITIONS_EVERY_S = 1.0


class Notifications:
    """Tells subscribers; the end of a job is told by endings.py."""

    def __init__(self, state: State, forecast: Forecast) -> None:
        self._context, self._job_table, self._queue = state.context, state.job_table, state.queue
        self._forecast = forecast

    def tell(
        self,
        job: Job,
        event: events.Started | events.Progress | events.Audio | events.Queued,
        body: bytes | memoryview | None = None,
        *,
        heard: bool = False,
    ) -> None:
        """Send an event on a job's way to everybody who hears more than its end; ``heard``: and all until now."""
        for subscriber in job.subscribers:
            if subscriber.all_events and (subscriber.heard or not heard):
                self._context.send(subscriber.to, event, body, id=subscriber.id)

    def begun(self, job: Job, gpu: int | None) -> None:
        """A worker works on the job from now on."""
        event = events.Started(
            id="",
            job=job.id,
            worker=job.attempt.worker or "",
            gpu=gpu,
            attempt=job.attempts,
            waited_s=round(job.waited_s, 6),
        )
        self.tell(job, event)
        self.note("running", job)
        self._context.log("debug", "job started", job=job.id, worker=job.attempt.worker, attempt=job.attempts)

    def note(self, what: str, job: Job) -> None:
        """Tell whoever watches what has become of a job that has a worker."""
        if self._context.watched:
            self._context.publish(f"job.{what}", job=job.id, worker=job.attempt.worker, attempt=job.attempts)

    def waits(self) -> None:
        """A job waits that may hear of its position later."""
        if ("positions", "") not in self._context.timers:
            self._context.timers.set(("positions", ""), self._context.now + POSITIONS_EVERY_S)

    def tell_positions(self) -> None:
        """Tell the first in the queue whose position has changed."""
        size = len(self._queue)
        view = self._forecast.view()
        for position, job in enumerate(self._queue.in_order()):
            if position >= TOLD_POSITIONS:
                break
            if job.told_position not in (-1, position):
                wait_s = view.starts_in_s(job)
                event = events.Queued(
                    id="",
                    job=job.id,
                    position=position,
                    queue_size=size,
                    estimated_wait_s=UNSET if wait_s is None else wait_s,
                )
                self.tell(job, event)
            job.told_position = position
            view.place(job)
        if size:
            self._context.timers.set(("positions", ""), self._context.now + POSITIONS_EVERY_S)
            self._context.publish("queue", waiting=size, running=len(self._job_table.live) - size)
