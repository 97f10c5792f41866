"""Why a request for speech is refused, and what its client can do about it. Each check raises RequestError.

Refusals for lack of room (rate, share, full queue) are in scheduling/admission.py; those for the form of a message are
the codec's, and transport/zap.py refuses the keys of TCP clients.
"""

from __future__ import annotations

from msgspec import UNSET

from glmtts.protocol import requests
from glmtts.protocol.audio_formats import ENCODER_RATES, AudioFormat
from glmtts.protocol.errors import ErrorCode, RequestError

from ...engines import options as engine_options
from ..inputs import Client, ReplyTo
from ..jobs.job import MAX_SUBSCRIBERS, Job
from ..scheduling.admission import is_named
from ..state import State


def acting_for(
    state: State,
    client: Client,
    request: requests.Synthesize
    | requests.Voices
    | requests.VoiceAdd
    | requests.VoiceRemove
    | requests.VoiceSample
    | requests.Text
    | requests.Cancel
    | requests.GetJob
    | requests.Wait
    | requests.ListJobs
    | requests.Usage,
) -> Client:
    """The client whose job it is, or who asks for it: itself, or the customer that a gateway names.

    An operator may do what every client may, and so act for any.
    """
    if request.on_behalf_of is UNSET:
        return client
    if not client.operator and not is_named(client, state.context.settings.limits.gateways):
        raise RequestError(ErrorCode.FORBIDDEN, f"on_behalf_of: user {client.user} is not one of [limits] gateways")
    return Client(client.owner, client.user, on_behalf_of=request.on_behalf_of)


def check_open(state: State, closed: str) -> None:
    """Refuse every job while the daemon drains or stops (``closed`` says so), or no worker can be had."""
    if closed:
        raise RequestError(ErrorCode.SHUTTING_DOWN, closed)
    if unavailable := state.pool.unavailable():
        reason, retry_after_s = unavailable
        raise RequestError(ErrorCode.UNAVAILABLE, reason, retry_after_s=retry_after_s)


def check_allowed(state: State, client: Client, request: requests.Synthesize) -> None:
    """Refuse a priority that is for other users."""
    users = getattr(state.context.settings.queue.classes, request.priority).users
    if users and not client.operator and not is_named(client, users):
        where = f"[queue.classes.{request.priority}] users"
        message = f"priority: user {client.user} may not use {request.priority}, which is for {where}"
        raise RequestError(ErrorCode.FORBIDDEN, message)


def check_more(request: requests.Synthesize, to: ReplyTo) -> None:
    """Refuse a text in pieces from a client that can't send them."""
    if request.more and to.envelope:
        raise RequestError(
            ErrorCode.BAD_REQUEST,
            "more: a REQ socket can't send the rest of the text before it has the answer; use a DEALER",
        )


def check_follow(request: requests.Synthesize, *, durable: bool) -> None:
    """Refuse to keep the audio of a job while it is made where no later request could follow it."""
    if not request.follow:
        return
    for key, wrong in (("stream", request.stream), ("output", request.output is not UNSET), ("more", request.more)):
        if wrong:
            raise RequestError(ErrorCode.BAD_REQUEST, f"follow: it excludes {key}; leave one of them out")
    if not durable:
        raise RequestError(ErrorCode.BAD_REQUEST, 'follow: it is for durable jobs; send "durable": true with it')


def check_speakable(state: State, client: Client, request: requests.Synthesize) -> None:
    """Refuse options and voices that the engine does not know, and an output that another job writes."""
    if problem := engine_options.check(state.context.settings.engine.name, request.options):
        raise RequestError(ErrorCode.BAD_REQUEST, problem)
    if request.speed != 1.0 and state.pool.engine and not state.pool.engine.speeds:
        raise RequestError(
            ErrorCode.BAD_REQUEST,
            "speed: this daemon's workers lack the package for it and speak at speed 1 only; leave it out, or have "
            "libsonic installed where they run",
        )
    if request.prompt is UNSET and state.pool.engine:
        _check_voice(state, client, request)
    if request.output is not UNSET and request.output in state.job_table.outputs:
        raise RequestError(ErrorCode.OUTPUT_EXISTS, f"output: another job writes {request.output}; choose another name")


def _check_voice(state: State, client: Client, request: requests.Synthesize) -> None:
    """Refuse a voice that is unknown or not for this engine, or missing where the engine has none of its own."""
    settings, pool = state.context.settings, state.pool
    name = settings.voices.default if request.voice is UNSET else request.voice
    voice = state.voices.recording_of(client.key, request)
    if voice is None and name in pool.engine_voices:
        return
    if not name:
        if not pool.engine_voices:
            raise RequestError(
                ErrorCode.BAD_REQUEST,
                f"voice: the engine {settings.engine.name} needs the voice of a recording: name one, or send a "
                f"prompt; {state.voices.in_words(client.key)}",
            )
        return
    if voice is None:
        of_default = " ([voices] default)" if request.voice is UNSET else ""
        message = f"voice: {name!r}{of_default} is unknown; {state.voices.in_words(client.key)}"
        raise RequestError(ErrorCode.VOICE_NOT_FOUND, message)
    if not (pool.engine and pool.engine.clones_voices):
        raise RequestError(
            ErrorCode.BAD_REQUEST,
            f"voice: {name!r} is a registered recording, and the engine {settings.engine.name} does not clone voices; "
            "name one of its own",
        )


def check_rate_of_default(request: requests.Synthesize, audio_format: AudioFormat) -> None:
    """Refuse a sample rate that the default format does not support."""
    rates = ENCODER_RATES.get(audio_format)
    if rates and request.sample_rate is not UNSET and request.sample_rate not in rates:
        raise RequestError(
            ErrorCode.BAD_REQUEST,
            f"sample_rate: {audio_format}, the default format here, supports only {', '.join(map(str, rates))} Hz",
        )


def check_deadline(state: State, job: Job, deadline_s: float) -> None:
    """Refuse a job that could not be done in time if it were started now."""
    if deadline_s and (least_s := state.estimator.least_s(job)) > deadline_s:
        raise RequestError(
            ErrorCode.DEADLINE_EXCEEDED,
            f"deadline_s: {deadline_s:g} s are not enough; a text of this length takes at least {least_s:.1f} s",
        )


def check_beginning(job: Job) -> None:
    """Refuse a repeated key for a stream of which a part was sent: the rest alone is of no use to the request."""
    if job.request.stream and not job.durable and job.attempt.chunks:
        raise RequestError(
            ErrorCode.BAD_REQUEST,
            f"key: a part of the stream of job {job.id} was sent to an earlier request with this key; read it there, "
            "use a new key, or have streams that are asked for again made with durable",
        )


def check_audience(job: Job) -> None:
    """Refuse one more request for the events of the same job."""
    if len(job.subscribers) >= MAX_SUBSCRIBERS:
        raise RequestError(
            ErrorCode.QUEUE_FULL,
            f"job: {MAX_SUBSCRIBERS} requests wait for the events of {job.id} already, which is the limit",
            retry_after_s=1.0,
        )
