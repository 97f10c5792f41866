"""Sends a job's events before its end (started, progress, audio, position) to the requests that want them."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import UNSET

from glmtts.protocol import events

from ..effects import Effect, JournalStart, Send
from ..jobs.job import Job, Subscriber
from ..state import State
from .forecast import Forecast

_OnTheWay: TypeAlias = events.Started | events.Progress | events.Audio | events.Queued
#: Waiting jobs that get their position when it changes: those behind wait for very long anyway.
TOLD_POSITIONS = 256
#: Seconds between two of them (docs/protocol.md).
POSITIONS_EVERY_S = 1.0


def audio_event(job: Job, seq: int) -> events.Audio:
    """The event with one piece of a stream."""
    return events.Audio(id="", job=job.id, seq=seq, format=job.format, sample_rate=job.sample_rate or 0, channels=1)


class Notifications:
    """Sends events to subscribers; completion.py sends the end of a job."""

    def __init__(self, state: State, forecast: Forecast) -> None:
        self._context, self._job_table, self._queue = state.context, state.job_table, state.queue
        self._forecast = forecast

    def tell(
        self,
        job: Job,
        event: _OnTheWay,
        body: bytes | memoryview | None = None,
        *,
        heard: bool = False,
    ) -> None:
        """Send an event to the requests that want all of them; ``heard``: and got the stream from its beginning."""
        self._context.effects.extend(_told(job, event, body, heard=heard))

    def replay(self, job: Job, subscriber: Subscriber) -> None:
        """Send a request the audio made so far, if the job still has all of it; the request then gets the rest too."""
        made = job.attempt.made
        if made and len(made) == job.attempt.chunks:
            subscriber.heard = True
            self._context.effects.extend(
                Send(subscriber.to, audio_event(job, seq), piece, subscriber.id) for seq, piece in enumerate(made)
            )

    def begun(self, job: Job, gpu: int | None) -> None:
        """A worker works on the job from now on, which the journal has to know of a durable one."""
        event = events.Started(
            id="",
            job=job.id,
            worker=job.attempt.worker or "",
            gpu=gpu,
            attempt=job.attempts,
            waited_s=round(job.waited_s, 6),
        )
        noted: list[Effect] = [JournalStart(job.id, job.attempts)] if job.durable else []
        self._context.effects.extend([*noted, *_told(job, event)])
        self.note("running", job)
        self._context.log("debug", "job started", job=job.id, worker=job.attempt.worker, attempt=job.attempts)

    def note(self, what: str, job: Job) -> None:
        """Publish what a worker does with a job."""
        if self._context.watched:
            attempt = job.attempt
            self._context.publish(
                f"job.{what}", job=job.id, worker=attempt.worker, attempt=job.attempts, label=job.label
            )

    def waits(self) -> None:
        """Have positions sent while jobs wait."""
        if ("positions", "") not in self._context.timers:
            self._context.timers.set(("positions", ""), self._context.now + POSITIONS_EVERY_S)

    def tell_positions(self) -> None:
        """Send their position to the first in the queue where it has changed."""
        size = len(self._queue)
        view = self._forecast.view()
        for position, job in enumerate(self._queue.in_order()):
            if position >= TOLD_POSITIONS:
                break
            # A stream that waits to go on gets no event.
            if job.told_position not in (-1, position) and not job.attempt.chunks:
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


def _told(job: Job, event: _OnTheWay, body: bytes | memoryview | None = None, *, heard: bool = False) -> list[Effect]:
    return [
        Send(subscriber.to, event, body, subscriber.id)
        for subscriber in job.subscribers
        if subscriber.all_events and (subscriber.heard or not heard)
    ]
