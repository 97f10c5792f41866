"""Requests of clients: jobs are accepted or refused, and questions about the daemon and their own jobs answered."""

from __future__ import annotations

from itertools import islice

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from glmtts.protocol import VERSION, events, requests
from glmtts.protocol.audio_formats import FORMATS, PCM_FORMATS, AudioFormat, nearest_rate
from glmtts.protocol.errors import ErrorCode, RequestError

from ...engines import options as engine_options
from ..effects import Send
from ..inputs import Client, ConnectionClosed, ConnectionOverrun, JournalAdded, JournalChanged, ReplyTo, Requested
from ..jobs.job import Ended, Ending, Job, Pieces, Subscriber
from ..jobs.job_table import content_digest
from ..monitoring.problems import Problems
from ..scheduling.deadlines import enqueue
from ..scheduling.durable import NEW_KEY, key_taken, no_such_job, removed_early
from ..scheduling.forecast import Outlook
from ..scheduling.retry import blamed, quarantine_message
from ..scheduling.scheduler import Scheduler
from ..state import State
from . import refusals

#: Additions within the protocol's version, as ``info`` names them.
FEATURES = ["follow", "label", "leave", "on_behalf_of", "own_voices", "streams", "text_in_pieces", "usage"]
#: The one that the workers have, or not.
SPEED = "speed"

#: The error that a client gets whose unread events had to be thrown away.
TOO_SLOW = "the client does not read, and the buffer for what it leaves unread is full ([limits] send_buffer_mib)"


class ClientRequests:
    """Answers every request of a client. A client sees and cancels its own jobs only."""

    def __init__(self, state: State, scheduler: Scheduler, problems: Problems) -> None:
        self._state = state
        self._context, self._job_table = state.context, state.job_table
        self._queue, self._pool = state.queue, state.pool
        self._installation = state.installation
        self._dispatcher, self._admission = scheduler.dispatcher, scheduler.admission
        self._durable_jobs, self._completion = scheduler.durable_jobs, scheduler.completion
        self._retries, self._forecast = scheduler.retries, scheduler.forecast
        self._text_pieces, self._notifications = scheduler.text_pieces, scheduler.notifications
        self._problems = problems
        #: Why no job is accepted at all, or ``""``.
        self.closed = ""

    # --- synthesize

    def synthesize(self, event: Requested, request: requests.Synthesize) -> None:
        """Accept the job, or refuse it with what its client can do about it."""
        try:
            self._admit(event, request)
        except RequestError as error:
            self._context.counters.refuse(error.code)
            self._context.log(
                "debug", "request refused", client=event.client.key, code=error.code.value, reason=error.message
            )
            self._context.refuse(event.to, request.id, error.code, error.message, retry_after_s=error.retry_after_s)

    def _admit(self, event: Requested, request: requests.Synthesize) -> None:
        context, settings = self._context, self._context.settings
        client = refusals.acting_for(self._state, event.client, request)
        # A REQ client, or one that wants the last event only, can't take a stream: it gets the file whole.
        hears_all = request.events == "all" and not event.to.envelope
        subscriber = Subscriber(event.to, request.id, hears_all, audio=not request.follow)
        content = ""
        if request.key is not UNSET:
            content = content_digest(request, event.body)
            if known := self._job_table.with_key(client.key, request.key, context.now):
                self._join(request, known, content, subscriber, client.key)
                return
        refusals.check_open(self._state, self.closed)
        refusals.check_allowed(self._state, event.client, request)
        refusals.check_speakable(self._state, client, request)
        voice = self._state.voices.recording_of(client.key, request)
        own_voice = voice is not None and bool(voice.owner)
        refusals.check_more(request, event.to)
        durable = request.priority == "batch" and not request.more if request.durable is UNSET else request.durable
        refusals.check_follow(request, durable=durable)
        if durable:
            self._durable_jobs.check()
        if self._retries.quarantine or durable:
            content = content or content_digest(request, event.body)
            if deaths := self._retries.deaths_of(blamed(content, client.key if own_voice else "")):
                raise RequestError(ErrorCode.QUARANTINED, quarantine_message(deaths))
        audio_format: AudioFormat = request.resolved_format
        if request.named_format is None and not request.stream:
            audio_format = settings.audio.default_format
            refusals.check_rate_of_default(request, audio_format)
        sample_rate = None if request.sample_rate is UNSET else request.sample_rate
        if sample_rate is None and (request.stream or request.follow or audio_format in PCM_FORMATS):
            sample_rate = nearest_rate(audio_format, settings.audio.sample_rate)
        deadline_s = settings.queue.default_deadline_s if request.deadline_s is UNSET else request.deadline_s
        job = Job(
            id=f"{self._installation.boot}-{self._context.counters.created + 1}",
            client=client,
            request=request,
            recording=event.body,
            content=content,
            format=audio_format,
            sample_rate=sample_rate,
            streams=(request.stream and hears_all) or request.follow,
            durable=durable,
            output_path=self._output_path(request),
            cloned=voice is not None,
            own_voice=own_voice,
            accepted_at=context.now,
            created=round(context.wall, 3),
            deadline_at=context.now + deadline_s if deadline_s else None,
            subscribers=[subscriber],
            pieces=Pieces(request.text) if request.more else None,
        )
        refusals.check_deadline(self._state, job, deadline_s)
        # Last, because it takes a token of the client's rate.
        self._admission.check(client, request, event.body)
        self._context.counters.created += 1
        self._job_table.add(job)
        # From here on the end of the job is the answer to the request.
        if durable:
            self._completion.guarded(job, self._durable_jobs.add, job, subscriber)
        else:
            self._completion.guarded(job, self._accept, job, [subscriber])

    def _accept(self, job: Job, subscribers: list[Subscriber]) -> None:
        """The job is in the queue from now on."""
        context = self._context
        if job.pieces is None:
            enqueue(self._state, job)
        else:
            self._text_pieces.open(job)
        hearing = [subscriber for subscriber in subscribers if subscriber.all_events]
        if hearing:
            self._say_accepted(job, hearing)
        context.log("debug", "job accepted", job=job.id, client=job.client.key, priority=job.request.priority)
        if context.watched:
            context.publish(
                "job.waiting", job=job.id, client=job.client.key, priority=job.request.priority, label=job.label
            )

    def text(self, event: Requested, request: requests.Text) -> None:
        """Add a piece to the text of a job."""
        job = self._own(event.to, request, event.client)
        if job is None:
            return
        try:
            self._text_pieces.add(job, request)
        except RequestError as error:
            self._context.refuse(event.to, request.id, error.code, error.message)
            return
        length = len(job.request.text) if isinstance(job, Job) else 0
        values = {"job": request.job, "state": job.state, "text_length": length}
        self._context.send(event.to, events.Result(id=request.id, values=values))

    def on_journal_changed(self, event: JournalChanged) -> None:
        """The journal can be used now, or can't any more; jobs of an earlier daemon are queued again."""
        for job in self._durable_jobs.on_changed(event):
            self._completion.guarded(job, self._recovered, job)

    def _recovered(self, job: Job) -> None:
        voice = self._state.voices.recording_of(job.client.key, job.request)
        job.cloned, job.own_voice = voice is not None, voice is not None and bool(voice.owner)
        job.output_path = self._output_path(job.request)
        self._accept(job, [])

    def on_journal_added(self, event: JournalAdded) -> None:
        """A durable job is on disk, or can't be."""
        added = self._durable_jobs.on_added(event)
        if added is not None:
            self._completion.guarded(added[0], self._accept, *added)

    def _output_path(self, request: requests.Synthesize) -> str:
        return "" if request.output is UNSET else f"{self._installation.outputs_folder}/{request.output}"

    def _say_accepted(self, job: Job, subscribers: list[Subscriber]) -> None:
        free = self._dispatcher.starts_at_once(job)
        # Mostly no other job waits, and there is nothing to forecast.
        outlook = Outlook(0, 0.0) if free and len(self._queue) == 1 else self._forecast.of(job)
        wait_s = 0.0 if free and not outlook.position else outlook.wait_s
        job.estimated_wait_s = wait_s
        job.told_position = outlook.position
        event = events.Accepted(
            id="",
            job=job.id,
            position=outlook.position,
            queue_size=len(self._queue),
            estimated_wait_s=UNSET if wait_s is None else wait_s,
        )
        warnings = []
        waiting = outlook.position + (0 if free else 1)
        if waiting > self._context.settings.queue.warn_waiting:
            warnings.append(f"the queue is long: {outlook.position} jobs wait before this one")
        if self._queue.paused:
            warnings.append("the queue is paused by an operator: the job waits until it is resumed")
        if warnings:
            event.warning = "; ".join(warnings)
        self._context.effects.extend(Send(s.to, event, None, s.id) for s in subscribers)

    def _join(
        self,
        request: requests.Synthesize,
        known: tuple[str, str],
        content: str,
        subscriber: Subscriber,
        owner: str,
    ) -> None:
        """The same key again: the same job, never a second synthesis."""
        id, first_content = known
        if content != first_content:
            raise RequestError(ErrorCode.BAD_REQUEST, key_taken(id))
        if job := self._job_table.live.get(id):
            refusals.check_audience(job)
            if subscriber.all_events and subscriber.audio:
                refusals.check_beginning(job)
            if subscriber.all_events and not self._durable_jobs.hears_when_written(job, subscriber):
                position = self._forecast.of(job).position if job in self._queue else 0
                self._context.send(
                    subscriber.to,
                    events.Accepted(id=request.id, job=id, position=position, queue_size=len(self._queue)),
                )
            self._job_table.subscribe(job, subscriber)
            return
        if subscriber.all_events and self._job_table.ended(id):
            self._context.send(
                subscriber.to, events.Accepted(id=request.id, job=id, position=0, queue_size=len(self._queue))
            )
        ended = self._job_table.ended(id)
        if ended is not None and isinstance(failed := ended.ending.event, events.Error) and failed.retryable:
            # Sent again and again with the same key, it would fail in the same way for a day.
            error = msgspec.structs.replace(failed, message=f"{failed.message} (this job has ended{NEW_KEY})")
            self._completion.send(subscriber.to, subscriber.id, Ending(ended.ending.state, error))
            return
        self._replay(id, subscriber, owner)

    # --- the other requests

    def ping(self, event: Requested, request: requests.Ping) -> None:
        """Say that the daemon is there."""
        uptime_s = round(self._context.now - self._context.started_at, 3)
        version = self._installation.version
        self._context.send(event.to, events.Pong(id=request.id, version=version, protocol=VERSION, uptime_s=uptime_s))

    def info(self, event: Requested, request: requests.Info) -> None:
        """Say what this daemon can do."""
        settings, engine = self._context.settings, self._pool.engine
        limits = settings.limits
        name = settings.engine.name
        default_voice = settings.voices.default or (engine.default_voice if engine else "")
        answer = events.InfoAnswer(
            id=request.id,
            version=self._installation.version,
            protocol=VERSION,
            engine=name,
            sample_rate=settings.audio.sample_rate,
            sample_rates=engine.sample_rates if engine else [],
            formats=list(FORMATS),
            voices=self._state.voices.all_of(event.client.key),
            default_voice=default_voice,
            clones_voices=self._pool.engine is not None and self._pool.engine.clones_voices,
            limits={
                "text_chars": limits.text_chars,
                "text_timeout_s": limits.text_timeout_s,
                "open_texts": limits.open_texts,
                "header_bytes": limits.header_kib << 10,
                "body_bytes": limits.body_mib << 20,
                "body_frames": 1,
                "recording_min_s": limits.recording_min_s,
                "recording_max_s": limits.recording_max_s,
                "rate": limits.rate,
                "rate_batch": limits.rate_batch,
                "max_waiting": settings.queue.max_waiting,
                "max_waiting_batch": settings.queue.max_waiting_batch,
                "max_per_client": settings.queue.max_per_client,
                "max_share": settings.queue.max_share,
                "usage_days": limits.usage_days,
                "own_voices": self._admission.allowance(event.client).own_voices,
                "own_voices_mib": limits.own_voices_mib,
                "durable": not self._durable_jobs.problem,
            },
            features=[*FEATURES, SPEED] if engine and engine.speeds else FEATURES,
            options=engine_options.schema(name),
            ready=self._pool.serving > 0 and not self.closed and not self._queue.paused,
        )
        self._context.send(event.to, answer)

    def cancel(self, to: ReplyTo, request: requests.Cancel, client: Client | None) -> None:
        """End a job; ``client`` is None for an operator, who may end any."""
        job = self._own(to, request, client)
        if job is None:
            return
        if isinstance(job, Job):
            who = "an operator" if client is None else "its client"
            self._completion.fail(job, ErrorCode.CANCELLED, f"cancelled by {who}")
        state = job.ending.state if job.ending is not None else job.state
        self._context.send(to, events.Result(id=request.id, values={"state": state, "job": request.job}))

    def job(self, to: ReplyTo, request: requests.GetJob, client: Client | None) -> None:
        """Say how a job stands."""
        job = self._own(to, request, client)
        if job is not None:
            info = self._describe(job, with_client=client is None)
            self._context.send(to, events.JobAnswer(id=request.id, **msgspec.structs.asdict(info)))

    def jobs(self, to: ReplyTo, request: requests.ListJobs, client: Client | None) -> None:
        """List a client's jobs, or for an operator all."""
        try:
            asker = client and refusals.acting_for(self._state, client, request)
        except RequestError as error:
            self._context.refuse(to, request.id, error.code, error.message)
            return
        found = (
            job
            for job in self._job_table.newest()
            if (asker is None or asker.may_see(job.client)) and request.state in (UNSET, job.state)
        )
        infos = [self._describe(job, with_client=client is None, exact=False) for job in islice(found, request.limit)]
        infos.sort(key=lambda info: info.created, reverse=True)
        self._context.send(to, events.JobsAnswer(id=request.id, jobs=infos))

    def _describe(self, job: Job | Ended, *, with_client: bool, exact: bool = True) -> events.JobInfo:
        if isinstance(job, Ended):
            info = job.describe(with_client=with_client)
            keep = self._context.settings.queue
            if job.body_dropped and keep.keep_results_mib:
                info = replace(info, note=removed_early(keep.keep_results_mib, "keep_results_mib"))
            return info
        position = wait = None
        if job.state == "waiting":
            # Counting is worth it for one job; in a list the position that was last sent is near enough.
            position = max(0, job.told_position)
            if exact and job in self._queue:
                position, wait = self._forecast.of(job)
        return job.describe(position, wait, with_client=with_client)

    def wait(self, event: Requested, request: requests.Wait) -> None:
        """Send the rest of a job's events under the id of this request."""
        job = self._own(event.to, request, event.client)
        if job is None:
            return
        subscriber = Subscriber(event.to, request.id, request.events == "all" and not event.to.envelope)
        if isinstance(job, Job):
            subscriber.audio = request.follow or not job.request.follow
        if isinstance(job, Ended):
            self._replay(request.job, subscriber, event.client.owner)
            return
        try:
            refusals.check_audience(job)
        except RequestError as error:
            self._context.refuse(event.to, request.id, error.code, error.message, retry_after_s=error.retry_after_s)
        else:
            self._job_table.subscribe(job, subscriber)
            if request.follow and subscriber.all_events and job.streams:
                self._notifications.replay(job, subscriber)

    def leave(self, event: Requested, request: requests.Leave) -> None:
        """Send no more of a job's events to one request, as if its connection had ended."""
        job = self._job_table.live.get(request.job)
        found = (
            []
            if job is None
            else [s for s in job.subscribers if s.to.connection == event.to.connection and s.id == request.request]
        )
        self._context.send(event.to, events.Result(id=request.id, values={"job": request.job, "left": bool(found)}))
        if job is not None and found:
            for subscriber in found:
                self._job_table.remove_subscriber(job, subscriber)
            self._end_unheard(job)

    def _replay(self, id: str, subscriber: Subscriber, owner: str) -> None:
        """The last event of a job that has ended, with its result as long as that is kept."""
        ended = self._job_table.ended(id)
        if ended is not None and not ended.body_dropped:
            self._completion.send(subscriber.to, subscriber.id, ended.ending)
            return
        if ended is None and self._durable_jobs.find(subscriber.to, subscriber.wait_for(id), owner):
            return
        keep = self._context.settings.queue
        by_key = NEW_KEY if ended is None or ended.info.key is not UNSET else ""
        if ended is not None and keep.keep_results_mib:
            message = f"job {id} has ended, and {removed_early(keep.keep_results_mib, 'keep_results_mib')}"
        else:
            message = (
                f"job {id} has ended, and its result is not kept any more: results are kept for "
                f"{keep.keep_results_s:g} s, {keep.keep_results_mib} MiB of them in all"
            )
        self._context.refuse(subscriber.to, subscriber.id, ErrorCode.JOB_NOT_FOUND, message + by_key)

    # --- connections

    def on_connection_closed(self, event: ConnectionClosed) -> None:
        """End streams that lose their listener; any other job stays, for a ``wait`` after a reconnect."""
        for job in self._job_table.drop_connection(event.connection):
            self._end_unheard(job)

    def _end_unheard(self, job: Job) -> None:
        if job.request.stream and not job.durable and not job.subscribers:
            self._completion.guarded(job, self._completion.fail, job, ErrorCode.CANCELLED, "its client went away")

    def on_overrun(self, event: ConnectionOverrun) -> None:
        """A client does not read the audio of a job: it gets no more of that."""
        if (job := self._job_table.live.get(event.job)) is not None:
            self.cut_off(event.connection, job, ErrorCode.SLOW_CONSUMER, TOO_SLOW)
            self._problems.does_not_read(job.client.key)

    def cut_off(self, connection: int, job: Job, code: ErrorCode, message: str) -> None:
        """A connection missed some of a job's events: end its subscription with an error."""
        if job.ending is not None and isinstance(job.ending.event, events.Error):
            return
        # A durable job stays, to be fetched when it is done; so does one that other connections hear.
        if job.durable or any(s.to.connection != connection for s in job.subscribers):
            error = events.Error.of("", code, message, job=job.id)
            gone = self._job_table.unsubscribe(job, connection)
            self._context.effects.extend(Send(s.to, error, None, s.id) for s in gone)
        else:
            self._completion.fail(job, code, message)

    # --- whose job it is

    def _own(
        self,
        to: ReplyTo,
        request: requests.Text | requests.Cancel | requests.GetJob | requests.Wait,
        client: Client | None,
    ) -> Job | Ended | None:
        """The job, if this client may know of it; the answer is the same for no job and for another client's.

        One that is not in memory is looked up in the journal, and answered from there.
        """
        try:
            asker = client and refusals.acting_for(self._state, client, request)
        except RequestError as error:
            self._context.refuse(to, request.id, error.code, error.message)
            return None
        job = self._job_table.find(request.job)
        if job is not None and (asker is None or asker.may_see(job.client)):
            return job
        # No durable job takes a piece of text.
        if (
            job is not None
            or isinstance(request, requests.Text)
            or not self._durable_jobs.find(to, request, asker.key if asker else None)
        ):
            message = no_such_job(request.job, self._context.settings.queue)
            message += self._state.removals.words(asker.key) if asker else ""
            self._context.refuse(to, request.id, ErrorCode.JOB_NOT_FOUND, message)
        return None
