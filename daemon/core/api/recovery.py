"""Recovery from exceptions in handlers and effects: every request is answered, and every job ends."""

from __future__ import annotations

from collections.abc import Callable

from glmtts.protocol import worker as wire
from glmtts.protocol.errors import ErrorCode

from .. import inputs
from ..context import INTERNAL_ERROR, request_of
from ..effects import JournalAdd, JournalEnd, JournalFind, ReadRecorder, Send, Signal, Spawn, StoreVoice, Tell
from ..scheduling.scheduler import Scheduler
from ..state import State
from .client_requests import ClientRequests
from .health import Health
from .lifecycle import Lifecycle, Phase
from .voice_requests import VoiceRequests

#: The message to a client that was not sent an event because of an internal error.
_EVENT_LOST = "an internal error of the daemon, which is in its log: an event was not sent; a durable job goes on"


class Recovery:
    """Answers, ends or repeats what an exception has cut short. ``handle`` is the handler of all inputs."""

    def __init__(
        self,
        state: State,
        scheduler: Scheduler,
        *,
        client_requests: ClientRequests,
        voice_requests: VoiceRequests,
        health: Health,
        lifecycle: Lifecycle,
        handle: Callable[[inputs.Input], None],
    ) -> None:
        self._context, self._job_table, self._pool = state.context, state.job_table, state.pool
        self._completion, self._worker_messages = scheduler.completion, scheduler.worker_messages
        self._durable_jobs = scheduler.durable_jobs
        self._client_requests = client_requests
        self._voice_requests = voice_requests
        self._health = health
        self._lifecycle = lifecycle
        self._waiting_for = (self._job_table, health, lifecycle, voice_requests)
        self._handle = handle

    def on_input_failed(self, event: inputs.Input) -> None:
        """The handler of an input raised an exception: answer its request, end its job, or call the handler again."""
        match event:
            case inputs.Requested(to=to, request=request) | inputs.Controlled(to=to, request=request):
                self._answer(to, request.id)
            case inputs.JournalFound(to=to, request=request):
                self._durable_jobs.looked_up(to, request.id)
                self._answer(to, request.id)
            case inputs.VoiceStored(to=to, id=id):
                self._voice_requests.ended(to, id)
                self._answer(to, id)
            case inputs.StoredLost(to=to, id=id) | inputs.SettingsRead(to=inputs.ReplyTo() as to, id=id):
                self._answer(to, id)
            case inputs.WorkerSaid(incarnation=incarnation, message=message):
                worker = self._pool.by_incarnation(incarnation)
                if worker is not None and isinstance(message, wire.Finished | wire.Failed):
                    self._worker_messages.is_through(worker, message.job)
                self._end_job(getattr(message, "job", ""))
            case inputs.JournalAdded(job=job):
                self._end_job(job)
            case inputs.StopAsked() if self._lifecycle.phase is not Phase.STOPPING:
                self._handle(event)
            case (
                inputs.ConnectionClosed()
                | inputs.ConnectionOverrun()
                | inputs.SpawnFailed()
                | inputs.ProcessEnded()
                | inputs.RecorderRead()
                | inputs.JournalChanged()
                | inputs.JournalEnded()
            ):
                # This input does not come again. Its handler can be repeated: steps that are done are not done twice.
                self._handle(event)
            case _:
                pass

    def _answer(self, to: inputs.ReplyTo, id: str) -> None:
        awaited = any(part.awaits(to, id) for part in self._waiting_for)
        if not awaited and not self._context.answers(to, id):
            self._context.refuse(to, id, ErrorCode.UNAVAILABLE, INTERNAL_ERROR)

    def _end_job(self, id: str) -> None:
        if (job := self._job_table.live.get(id)) is not None:
            self._completion.fail(job, ErrorCode.UNAVAILABLE, INTERNAL_ERROR)

    def on_effect_failed(self, event: inputs.EffectFailed) -> None:
        """An effect was not carried out: answer the request, job or worker that waits for it."""
        effect = event.effect
        # If even this error can't be sent, there is nothing left to send.
        hopeless = isinstance(effect, Send) and getattr(effect.event, "message", "") == INTERNAL_ERROR
        if not hopeless and (request := request_of(effect)) is not None:
            self._context.refuse(*request, ErrorCode.UNAVAILABLE, INTERNAL_ERROR)
        match effect:
            case Send(to=to, event=said) if not said.final:
                if (missed := self._job_table.live.get(getattr(said, "job", ""))) is not None:
                    self._client_requests.cut_off(to.connection, missed, ErrorCode.UNAVAILABLE, _EVENT_LOST)
            case Spawn(incarnation=incarnation):
                # The process may exist all the same.
                self._context.effects.append(Signal(incarnation, "kill"))
                self._pool.on_spawn_failed(incarnation, event.problem)
            case Tell(incarnation=incarnation, message=message):
                if (worker := self._pool.by_incarnation(incarnation)) is not None:
                    self._worker_messages.on_not_told(worker, message)
                if isinstance(message, wire.SuspendJob):
                    # A later step asks again. This step would repeat the same failure without end.
                    self._context.jobs_dirty = self._context.workers_dirty = False
            case ReadRecorder(incarnation=incarnation):
                self._worker_messages.on_recorder_read(inputs.RecorderRead(incarnation))
            case JournalAdd(row=row):
                self._client_requests.on_journal_added(inputs.JournalAdded(row.job, event.problem))
            case StoreVoice(to=to, request=asked) if effect.owner:
                self._voice_requests.ended(to, asked.id)
            case JournalFind():
                self._durable_jobs.looked_up(effect.to, effect.request.id)
            case JournalEnd(job=id):
                self._completion.on_written(inputs.JournalEnded(id, event.problem))
            case _:
                pass  # nothing waits for it, or a timer does
