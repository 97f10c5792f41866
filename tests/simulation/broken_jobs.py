"""Cores whose jobs end wrongly: twice or never, told before it is on disk, with another's audio, aside for ever."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from glmtts.daemon.core import machine
from glmtts.daemon.core.api.recovery import Recovery
from glmtts.daemon.core.api.voice_requests import VoiceRequests
from glmtts.daemon.core.effects import Send, SettleOutput, Tell
from glmtts.daemon.core.inputs import StoredVoice
from glmtts.daemon.core.jobs.job import Attempt, Ending, Job
from glmtts.daemon.core.machine import Machine
from glmtts.daemon.core.scheduling import dispatcher, worker_messages
from glmtts.daemon.core.scheduling.completion import Completion
from glmtts.daemon.core.scheduling.dispatcher import Dispatcher
from glmtts.daemon.core.scheduling.durable import DurableJobs
from glmtts.daemon.core.scheduling.retry import Retries
from glmtts.daemon.core.scheduling.worker_messages import WorkerMessages
from glmtts.daemon.core.voices.own_voices import OwnVoices
from glmtts.daemon.core.workers import hang_check
from glmtts.daemon.core.workers.pool import Pool
from glmtts.daemon.core.workers.process import Process
from glmtts.daemon.core.workers.worker import Worker, WorkerState
from glmtts.protocol import events
from glmtts.protocol.worker import AudioChunk, Replay, ResumeJob

Patch = pytest.MonkeyPatch


# --- voices of one's own


def voices_of_anybody(patch: Patch) -> None:
    """A name is enough."""

    def find(self: OwnVoices, client: str, name: str) -> StoredVoice | None:  # noqa: ARG001 - that is the fault
        return next((voices[name] for voices in self._of.values() if name in voices), None)

    patch.setattr(OwnVoices, "find", find)


def voices_without_an_end(patch: Patch) -> None:
    patch.setattr(OwnVoices, "count", lambda *_: 0)


def voices_of_one_take_all_the_room(patch: Patch) -> None:
    patch.setattr(OwnVoices, "room", lambda self, _client, most: most - self.shares.total)


def voices_of_one_customer_take_all_of_its_gateway(patch: Patch) -> None:
    room = OwnVoices.room
    patch.setattr(OwnVoices, "room", lambda self, client, most: room(self, client.partition("/")[0], most))


def a_change_of_voices_cut_short_holds_up_the_next(patch: Patch) -> None:
    patch.setattr(VoiceRequests, "ended", lambda *_: None)


# --- 1: exactly one end


def done_twice(patch: Patch) -> None:
    end = Completion.end

    def twice(self: Completion, job: Job, ending: Ending) -> None:
        if isinstance(ending.event, events.Done):
            for subscriber in job.subscribers:
                self.send(subscriber.to, subscriber.id, ending)
        end(self, job, ending)

    patch.setattr(Completion, "end", twice)


def jobs_of_the_dead_forgotten(patch: Patch) -> None:
    patch.setattr(Retries, "decide", lambda *_, **__: None)


def never_restarted(patch: Patch) -> None:
    patch.setattr(Pool, "_back_off", lambda _, worker: worker.enter(WorkerState.BACKOFF))


def hangs_go_unnoticed(patch: Patch) -> None:
    patch.setattr(hang_check, "check", lambda *_: None)


def a_beat_that_stands_still_counts(patch: Patch) -> None:
    progressed = Process.progressed
    patch.setattr(Process, "progressed", lambda self, job, now, done=None: progressed(self, job, now))  # noqa: ARG005


def effects_lost_with_an_error(patch: Patch) -> None:
    on_input = Machine._on_input

    def and_nothing_else(self: Machine, event: Any) -> None:
        try:
            on_input(self, event)
        except Exception:
            self._context.effects.clear()
            raise

    patch.setattr(Machine, "_on_input", and_nothing_else)


def lost_by_a_bug_and_forgotten(patch: Patch) -> None:
    patch.setattr(Completion, "guarded", lambda self, _, act, *arguments: self._context.guarded(act, *arguments))
    patch.setattr(Completion, "end_lost", lambda _: None)


def workers_lost_by_a_bug_and_forgotten(patch: Patch) -> None:
    patch.setattr(Pool, "recover", lambda _: None)


def the_rest_of_a_step_lost_with_an_error(patch: Patch) -> None:
    patch.setattr(Machine, "_recover", lambda _: None)


def failed_effects_ignored(patch: Patch) -> None:
    patch.setattr(Recovery, "on_effect_failed", lambda *_: None)


def deadlines_forgotten(patch: Patch) -> None:
    patch.setattr(machine, "on_deadline", lambda *_: None)


def put_aside_and_forgotten(patch: Patch) -> None:
    patch.setattr(Dispatcher, "_fill", lambda *_: None)


def gone_on_with_and_still_aside(patch: Patch) -> None:
    def resume(self: Pool, worker: Worker, job: str) -> None:
        self._context.effects.append(Tell(worker.incarnation, ResumeJob(job=job)))

    patch.setattr(Pool, "resume", resume)


# --- 2: outputs, and what is durable


def accepted_before_it_is_on_disk(patch: Patch) -> None:
    add = DurableJobs.add

    def at_once(self: DurableJobs, job: Job, subscriber: Any) -> None:
        add(self, job, subscriber)
        if subscriber.all_events:
            event = events.Accepted(id=subscriber.id, job=job.id, position=0, queue_size=1)
            self._context.send(subscriber.to, event)

    patch.setattr(DurableJobs, "add", at_once)


def ended_before_that_is_on_disk(patch: Patch) -> None:
    end = Completion.end

    def at_once(self: Completion, job: Job, ending: Ending) -> None:
        end(self, job, ending)
        if job.durable:
            self._tell(job, ending)

    patch.setattr(Completion, "end", at_once)


def a_recovered_job_is_forgotten(patch: Patch) -> None:
    changed = DurableJobs.on_changed

    def but_the_first(self: DurableJobs, event: Any) -> list[Job]:
        return changed(self, replace(event, rows=event.rows[1:]))

    patch.setattr(DurableJobs, "on_changed", but_the_first)


def attempts_of_the_last_daemon_not_counted(patch: Patch) -> None:
    recover = DurableJobs._recover
    patch.setattr(DurableJobs, "_recover", lambda self, row, found: recover(self, replace(row, attempts=0), found))


def ended_jobs_spoken_again(patch: Patch) -> None:
    on_written = Completion.on_written

    def again(self: Completion, event: Any) -> None:
        job = self._job_table.live.get(event.job)
        if job is not None and job.ending is not None and event.job.endswith("7"):
            end, job.ending = job.ending, None
            self.end(job, end)
            return
        on_written(self, event)

    patch.setattr(Completion, "on_written", again)


def outputs_settled_too_early(patch: Patch) -> None:
    decide = Retries.decide

    def and_settled(self: Retries, worker: Worker, process: Process, noted: Any = ()) -> None:
        for job in filter(None, map(self._job_table.live.get, process.jobs)):
            if job.output_path:
                self._context.effects.append(SettleOutput(job.id, job.output_path, wanted=True))
        decide(self, worker, process, noted)

    patch.setattr(Retries, "decide", and_settled)


def output_of_another_attempt(patch: Patch) -> None:
    fail = Completion.fail

    def taken_for_done(self: Completion, job: Job, code: Any, message: str, **keys: Any) -> None:
        if code != "output_exists":
            fail(self, job, code, message, **keys)
            return
        event = events.Done(
            id="", job=job.id, format="wav", sample_rate=24_000, audio_s=1.0, waited_s=0.0, synthesis_s=0.1,
            first_audio_s=0.1, rtf=0.1, attempts=1, engine="e", voice="v", sha256="0" * 64, bytes=1,
        )  # fmt: skip
        event.path = f"/out/{job.request.output}"
        self.end(job, Ending("done", event))

    patch.setattr(Completion, "fail", taken_for_done)


# --- 3: one's own audio


def audio_of_another(patch: Patch) -> None:
    step = Machine.step
    last: list[Any] = [b""]

    def mixed(self: Machine, *arguments: Any) -> Any:
        decided = step(self, *arguments)
        for effect in decided:
            if isinstance(effect, Send) and effect.body is not None:
                effect.body, last[0] = last[0] or effect.body, effect.body
        return decided

    patch.setattr(Machine, "step", mixed)


def stream_to_whoever_waits(patch: Patch) -> None:
    on_audio = WorkerMessages.on_audio

    def to_all(self: WorkerMessages, worker: Worker, message: Any, body: Any) -> None:
        job = self._job_table.live.get(message.job)
        own = job.subscribers if job else []
        if job is not None:
            job.subscribers = [s for other in self._job_table.live.values() for s in other.subscribers if s.all_events]
        on_audio(self, worker, message, body)
        if job is not None and job.live:
            job.subscribers = own

    patch.setitem(worker_messages._HANDLERS, AudioChunk, to_all)


def results_for_everybody(patch: Patch) -> None:
    find = DurableJobs.find
    patch.setattr(DurableJobs, "find", lambda self, to, request, _: find(self, to, request, None))


def streams_go_on_whatever_makes_them(patch: Patch) -> None:
    for module in (dispatcher, worker_messages):
        patch.setattr(module, "maker", lambda _: ("any", "1", 1))


def two_bytes_of_a_stream_doubled(patch: Patch) -> None:
    patch.setattr(Attempt, "replay", property(_two_bytes_less))


def _two_bytes_less(attempt: Attempt) -> Replay | None:
    return Replay(attempt.size - 2, attempt.digest, attempt.chunks) if attempt.chunks else None
