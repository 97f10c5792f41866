"""From the queue to the workers: which waiting job is given to which worker, and which suspended one resumes."""

from __future__ import annotations

from collections.abc import Collection

from msgspec import UNSET

from glmtts.protocol.errors import ErrorCode
from glmtts.protocol.requests import Priority
from glmtts.protocol.worker import AddText, SpeakJob

from ..effects import Tell
from ..jobs.estimates import BRIEF_S
from ..jobs.job import Attempt, Job, Pieces
from ..state import State
from ..workers.worker import Worker, WorkerState, maker
from .completion import Completion
from .forecast import Forecast
from .notifications import Notifications
from .output_shares import OutputShares
from .preemption import Preemption
from .retry import Retries

#: States of a worker whose next process is under way.
_COMING = (WorkerState.STARTING, WorkerState.STOPPING, WorkerState.FAILED)
_NO_BATCH: tuple[Priority, ...] = ("batch",)
#: Seconds that jobs which run alone wait for a process that is being replaced; then a worker takes no other jobs.
_ALONE_WAITS_S = 30.0


class Dispatcher:
    """Gives jobs to workers. After :meth:`reconcile` no worker is free while a job waits that it may have."""

    def __init__(
        self,
        state: State,
        *,
        completion: Completion,
        retries: Retries,
        forecast: Forecast,
        notifications: Notifications,
        output_shares: OutputShares,
    ) -> None:
        self._state = state
        self._context, self._job_table, self._queue = state.context, state.job_table, state.queue
        self._pool, self._estimator = state.pool, state.estimator
        self._completion = completion
        self._retries = retries
        self._notifications = notifications
        self._output_shares = output_shares
        self.preemption = Preemption(state, forecast)
        #: Since when jobs that run alone wait and none was started; None while none waits.
        self._alone_since: float | None = None

    def starts_at_once(self, job: Job) -> bool:
        """Whether there is a free worker for the next job."""
        if self._queue.paused or self._pool.free() is None:
            return False
        return job.request.priority != "batch" or self._batch_may_start()

    def reconcile(self) -> None:
        """Give waiting jobs to free workers, and let open workers resume what they have suspended."""
        self._pool.reserved = ""
        if self._alone_since is not None and not self._queue.wants_alone:
            self._alone_since = None
        if self._queue and not self._queue.paused:
            while self._queue.wants_fresh and (worker := self._pool.fresh()):
                self._take(self._queue.pop_for_fresh(), worker)
            if self._queue.wants_alone:
                self._start_alone()
            self._start_next()
        if resuming := self._pool.may_resume():
            for worker in resuming:
                while self._fill(worker):
                    pass
            # A worker that was kept for a job alone, and resumes one whose text has come, is free for others again.
            self._start_next()
        if not self._queue:
            if not self._job_table.live:
                self._queue.rest()
        elif not self._queue.paused:
            self._look_for_room()
            self._notifications.waits()
        if self._job_table.open_texts.total:
            self.preemption.look_at_turns()

    def _start_next(self) -> None:
        """Give waiting jobs to free workers, one after the other."""
        brief = self._brief()
        while self._queue and not self._queue.paused and (worker := self._pool.free(brief=brief)):
            job = self._next()
            if job is None:
                break
            self._queue.take(job)
            self._take(job, worker)
            brief = brief and job.account.cost_s < BRIEF_S

    def _start_alone(self) -> None:
        """Start jobs that run alone on workers with nothing at hand. Without such a worker, one comes to have nothing.

        A process that is being replaced has nothing at hand either: for a while it is waited for, so that no slot stays
        empty.
        """
        pool, now = self._pool, self._context.now
        while self._queue.wants_alone and (worker := pool.vacant()):
            self._take(self._queue.pop_alone(), worker)
            self._alone_since = None
        if not self._queue.wants_alone:
            return
        self._alone_since = now if self._alone_since is None else self._alone_since
        coming = any(worker.state in _COMING and not worker.process.stuck for worker in pool.workers.values())
        late = now >= self._alone_since + _ALONE_WAITS_S
        if (late or not coming) and (soonest := pool.soonest_vacant(late=late)):
            pool.reserved = soonest.name

    def _next(self, *, batch: bool | None = None) -> Job | None:
        """The job whose turn it is; no batch job while the workers that may have one are busy."""
        batch = self._batch_may_start() if batch is None else batch
        return self._queue.peek(self._context.now, () if batch else _NO_BATCH)

    def _batch_may_start(self) -> bool:
        return not self._queue.length("batch") or self._has_room_for_batch()

    def _has_room_for_batch(self, *, for_suspended: bool = False) -> bool:
        """Whether a slot is free that is not kept for others; ``for_suspended``: for a job that has been begun."""
        serving = [worker for worker in self._pool.workers.values() if worker.serving]
        slots = sum(worker.process.slots for worker in serving)
        kept_free = self._pool.kept_free(slots)
        if not kept_free:
            return True
        jobs = ((worker, worker.process.at_hand if for_suspended else worker.jobs) for worker in serving)
        return sum(self._batch_slots(worker, ids) for worker, ids in jobs) < slots - kept_free

    def _batch_slots(self, worker: Worker, ids: Collection[str]) -> int:
        """How many slots of a worker these jobs take as batch jobs, suspended ones too: they will resume."""
        found = (job for id in ids if (job := self._job_table.live.get(id)) is not None)
        batch = sum(job.request.priority == "batch" and not job.attempt.waits_for_text for job in found)
        return min(worker.process.slots, batch)

    def _look_for_room(self) -> None:
        """No worker is free: one may suspend its job for the next, a batch job for another one of its class."""
        # Nearly every step comes here: look for the next job only where a running one could be suspended.
        if not self.preemption.possible:
            return
        first = self._next(batch=True)
        self.preemption.look(first)
        if first is not None and first.request.priority == "batch":
            self.preemption.look(self._next(batch=False))

    def _brief(self) -> bool:
        """Whether a worker mostly waits for the next job: then some may lie ready in the only worker."""
        if not self._estimator.brief:
            return False
        live = self._job_table.live
        at_hand = [live[id] for worker in self._pool.workers.values() for id in worker.jobs if id in live]
        return all(job.account.cost_s < BRIEF_S for job in at_hand)

    def _fill(self, worker: Worker) -> bool:
        """Give a worker that has suspended a job another one, or let it resume.

        Returns whether there is more to do: the job that it was to get was refused, or it has another slot.
        """
        process = worker.process
        takes_jobs = worker.state is WorkerState.BUSY and not process.replace_reason and not self._queue.paused
        takes_jobs = takes_jobs and worker.name != self._pool.reserved
        # A free slot may be kept for others; a worker that has nothing else to do keeps none.
        batch = not (takes_jobs and process.at_hand) or self._has_room_for_batch(for_suspended=True)
        suspended = self.preemption.next_suspended(worker, batch=batch)
        # In the slot of a suspended batch job it may have another one.
        has_batch = batch and self._batch_slots(worker, process.suspended) > 0
        job = self._next(batch=has_batch or (None if batch else False)) if takes_jobs else None
        # Without ``suspended``, its suspended jobs were cancelled, and it is about to report that.
        if job is not None and (suspended is None or self.preemption.goes_before(job, suspended)):
            self._queue.take(job)
            return not self._take(job, worker) or worker.process.may_resume
        if suspended is not None and suspended.alone and worker.process.at_hand:
            # It gets the worker to itself: what is at hand ends first.
            return False
        if suspended is not None:
            self._completion.guarded(suspended, self._resume, suspended, worker)
            return suspended.id not in worker.process.suspended and worker.process.may_resume
        return False

    def _resume(self, job: Job, worker: Worker) -> None:
        self.preemption.resumed(job)
        job.attempt.resume(self._context.now)
        self._pool.resume(worker, job.id)
        self._notifications.note("resumed", job)

    def _take(self, job: Job | None, worker: Worker) -> bool:
        """Start a job, unless jobs of the same content killed workers since it was accepted; returns whether it did."""
        if job is None:
            return False
        self._completion.guarded(job, self._start, job, worker)
        return job.id in worker.jobs

    def _start(self, job: Job, worker: Worker) -> None:
        if self._retries.refuse_quarantined(job) or self._refuse_without_voice(job) or self._refuse_output(job):
            return
        if job.attempt.chunks and self._refuse_other_engine(job, worker):
            return
        # No code that can raise stands between a job's state and the message that sends it.
        text, texts = (job.request.text, []) if job.pieces is None else self._texts(job, job.pieces)
        tells = [Tell(worker.incarnation, self._message(job, text), job.recording)]
        if texts:
            tells += [Tell(worker.incarnation, message) for message in texts]
        job.enter("running")  # waiting -> running
        job.attempt.worker = worker.name
        begins = self._pool.take(worker, job.id, alone=job.alone)
        self._context.effects += tells
        if begins:
            self.begin(job, worker)

    @staticmethod
    def _texts(job: Job, pieces: Pieces) -> tuple[str, list[AddText]]:
        """The text for the worker, in pieces: of a stream that goes on, the same ones again, and what came since."""
        attempt = job.attempt
        rest = job.request.text[attempt.sent : pieces.ready]
        given = [*attempt.given, rest] if rest or not attempt.given else attempt.given
        texts = [AddText(job=job.id, text=text) for text in given[1:]]
        if pieces.complete:
            texts.append(AddText(job=job.id, text="", last=True))
        attempt.sent, attempt.texts = sum(map(len, given)), len(texts)
        attempt.given = given if job.streams else []
        return given[0], texts

    def _refuse_other_engine(self, job: Job, worker: Worker) -> bool:
        """End a job whose stream can't go on in this worker; one that is followed begins anew there."""
        if job.attempt.made_by == maker(worker):
            return False
        why = "the worker failed, and the one in its place does not repeat the same audio"
        if job.request.follow:
            self._retries.leave_followers(job, why)
            job.attempt = Attempt()
            return False
        message = f"{why}; part of it had been sent, so the job was not retried"
        self._completion.fail_withdrawn(job, ErrorCode.WORKER_CRASHED, message)
        return True

    def _refuse_output(self, job: Job) -> bool:
        """End a job that was taken out of the queue if there is no room for its output any more."""
        # An earlier attempt may have written it.
        if not job.output_path or job.attempts or not (problem := self._output_shares.problem(job.client)):
            return False
        self._completion.fail_withdrawn(job, ErrorCode.OUTPUT_FAILED, problem)
        return True

    def _refuse_without_voice(self, job: Job) -> bool:
        """End a job that was taken out of the queue if its voice is gone: it speaks with the voice as it is now."""
        voice, stored = self._voice(job), self._state.voices.recording_of(job.client.key, job.request)
        if job.own_voice:
            # One of the same name that is for all is another person's.
            there = stored is not None and bool(stored.owner)
        else:
            there = stored is not None or voice in self._pool.engine_voices
        if voice is None or there:
            return False
        gone = "was removed while the job waited" if job.cloned else "is unknown, or was removed while the job waited"
        message = f"voice: {voice!r} {gone}; {self._state.voices.in_words(job.client.key)}"
        self._completion.fail_withdrawn(job, ErrorCode.VOICE_NOT_FOUND, message)
        return True

    def _voice(self, job: Job) -> str | None:
        request = job.request
        voice = request.voice if request.voice is not UNSET else None
        if voice is None and request.prompt is UNSET:
            voice = self._context.settings.voices.default or None
        return voice

    def _message(self, job: Job, text: str) -> SpeakJob:
        request = job.request
        voice = self._voice(job)
        stored = self._state.voices.recording_of(job.client.key, request)
        prompt_text = stored.text if stored else None
        if request.prompt is not UNSET:
            prompt_text = request.prompt.text
        return SpeakJob(
            job=job.id,
            text=text,
            voice=voice,
            format=job.format,
            sample_rate=job.sample_rate,
            stream=job.streams,
            seed=request.seed,
            options=request.options,
            speed=request.speed,
            prompt_text=prompt_text,
            recording=stored.path if stored else None,
            output=job.output_path or None,
            output_room=self._output_shares.room(job.client) if job.output_path else None,
            keep_free=self._context.settings.limits.disk_reserve_mib << 20,
            result=self.result_path(job),
            whole=request.follow,
            more=job.pieces is not None,
            replay=job.attempt.replay,
            batch=request.priority == "batch",
        )

    def result_path(self, job: Job) -> str | None:
        """The file for the result of a durable job that has no output of its own."""
        folder = self._state.installation.results_folder
        return f"{folder}/{job.id}" if job.durable and not job.output_path and folder else None

    def begin(self, job: Job, worker: Worker) -> None:
        """The worker works on the job from now on."""
        now = self._context.now
        job.attempt.begun = True
        job.attempt.slots = worker.process.slots
        job.attempts += 1
        job.attempt.resume(now)
        job.waited_s = now - job.accepted_at
        if job.deadline_at is not None:
            self._context.timers.set(("deadline", job.id), job.deadline_at)
        self._notifications.begun(job, worker.gpu)
        self._context.counters.begun(job)
        if job.attempts == 1 and job.estimated_wait_s is not None:
            self._estimator.judge(job.estimated_wait_s, job.waited_s)
            self._context.counters.estimated(job.estimated_wait_s, job.waited_s)
