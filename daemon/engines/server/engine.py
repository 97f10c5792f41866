"""The engine: each job is a request to a speech server, which this process starts, watches, and ends with itself."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glmtts.protocol.events import Voice

from ..base import (
    BatchEngine,
    Broken,
    Ended,
    EngineError,
    Event,
    Handle,
    Piece,
    Reference,
    SharedStepError,
    Spoken,
    Utterance,
)
from ..cloning import WARM_UP_TEXT, hum, no_voice
from ..options import ServerOptions
from ..sentences import split
from .openai import Api, Request, ServerFaultError, recording
from .process import PortTakenError, ServerError, ServerProcess, claim, free_port, with_port
from .rules import PORT

if TYPE_CHECKING:
    from .wav import Samples

#: Pauses between two questions whether the server is ready.
_PAUSE_S = 0.1
#: Free ports to start a server at, one after the other, if another program takes one before the server listens.
_PORTS = 3
#: Failures of the warm-up sentence in a row after which the server counts as broken.
_CHECKS = 2
#: Seconds that the sentence which judges a failed job waits for a busy server: a server that is busy works.
_CHECK_BUSY_S = 5.0


@dataclass(eq=False)
class _Job(Handle):
    """A job and its request; ``None`` before its next text has come."""

    body: dict[str, Any] = field(default_factory=dict)
    request: Request | None = None
    #: The progress of the requests of its earlier texts.
    done_before: int = 0
    #: The rest of its text, for further requests.
    texts: list[str] = field(default_factory=list)
    segment: int = 0
    suspended: bool = False
    #: Its request failed as those of a broken server do; the warm-up sentence shows whether the job is at fault.
    fault: ServerFaultError | None = None
    at_fault: bool = False


class ServerEngine(BatchEngine):
    """Owns the server's process, if it has started it, and one request for each job.

    The constructor starts the server, waits until it answers, and speaks the warm-up sentence, which tells the rate of
    its audio. It raises ServerError, and EngineError for a request that the server refuses.
    """

    name = "server"
    options = ServerOptions

    def __init__(self, settings: dict[str, Any], *, warmup_text: str, warn: Callable[[str], None]) -> None:
        """``settings``: the section ``[engine.server]``. ``warn`` writes a line to the daemon's log."""
        self.slots = settings["slots"]
        self.clones_voices = settings["ref_audio"]
        self._settings = settings
        self._warm_up_text = warmup_text or WARM_UP_TEXT
        self._news = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._jobs: list[_Job] = []
        self._turn_now = False
        self._check: Request | None = None
        self._checks = 0
        self._at = time.monotonic()
        file = settings["api_key_file"]
        self._key = Path(file).read_text().strip() if file else ""
        self._child: ServerProcess | None = None
        self._port_claim: socket.socket | None = None
        deadline = self._at + settings["start_timeout_s"]
        for _ in range(_PORTS - 1 if PORT in settings["url"] else 0):
            try:
                self._open(deadline, warn)
                return
            except PortTakenError as error:
                warn(f"{error}; the server is started again, at another port")
        self._open(deadline, warn)

    @property
    def voices(self) -> list[Voice]:
        """Those of the configuration, or the server's own."""
        return [Voice(name=name) for name in self._voices]

    def warm_up_reference(self) -> Reference | None:
        """A hum, for a server whose voices are those of recordings."""
        if self._voices or not self.clones_voices:
            return None
        return hum()

    def begin(self, utterance: Utterance) -> Handle:
        if utterance.reference is None and self.clones_voices and not self._voices:
            raise no_voice("the speech server")
        job = _Job(utterance, body=self._body(utterance))
        self._charge()
        self._ask(job, utterance.text)
        self._jobs.append(job)
        return job

    def advance(self) -> list[Event]:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._news)
        self._turn_now = False
        self._charge()
        self._look_at_server()
        events: list[Event] = []
        for job in [job for job in self._jobs if not job.suspended]:
            events += self._events(job)
        return events

    def idle_s(self) -> float | None:
        return 0.0 if self._turn_now else None

    def fileno(self) -> int | None:
        return self._news

    def suspend(self, handle: Handle) -> None:
        """Read no more of its answer.

        A server that streams stops when the connection's buffers are full; one that answers at the end finishes it.
        """
        self._charge()
        self._job(handle).suspended = True

    def resume(self, handle: Handle) -> None:
        self._charge()
        self._job(handle).suspended = False
        self._turn_now = True

    def cancel(self, handle: Handle) -> None:
        job = self._job(handle)
        if job.request is not None:
            job.request.cancel()
        self._forget(job)

    def close(self) -> None:
        for job in list(self._jobs):
            self.cancel(job)
        if self._child is not None:
            self._child.stop()
        if self._port_claim is not None:
            self._port_claim.close()

    # --- the start

    def _open(self, deadline: float, warn: Callable[[str], None]) -> None:
        """Start the server at a port, and wait for it. Raises PortTakenError if another program was faster there."""
        settings, port = self._settings, 0
        self._model: str = settings["model"]
        self._voices: list[str] = settings["voices"]
        try:
            if PORT in settings["url"]:
                port = free_port()
                self._port_claim = claim(port)
            url = with_port(settings["url"], port)
            self._api = Api(url, key=self._key, raw_rate=settings["pcm_rate"])
            if command := settings["command"]:
                self._child = ServerProcess([with_port(one, port) for one in command], url, self._wake)
                self._api.child = self._child
            self._start(url, deadline, warn)
        except BaseException:
            self.close()
            raise

    def _start(self, url: str, deadline: float, warn: Callable[[str], None]) -> None:
        limit_s = self._settings["start_timeout_s"]
        problem = self._until_it_answers(deadline)
        if not problem:
            self._ask_names()
            rate, problem = self._first_rate(deadline)
        if problem:
            raise ServerError(
                f"the speech server at {url} is not ready after {limit_s:g} s: {problem}. Its output is in the log. If "
                "it needs longer, raise engine.server.start_timeout_s, and workers.start_timeout_s above it"
            )
        # A server may know them only after its model is loaded.
        self._ask_names()
        if not self._voices and not self.clones_voices:
            warn("the speech server lists no voices: it speaks with its default; engine.server.voices names others")
        self.sample_rates = (rate,)
        self.version = f"{self._settings['api']} {self._model}".strip()
        if self._child is not None:
            self._child.hush()

    def _ask_names(self) -> None:
        self._model = self._model or self._api.model()
        # One that clones may list a voice that it can't speak with ("default" of vllm-omni with GLM-TTS).
        if not self.clones_voices:
            self._voices = self._voices or self._api.voices()

    def _until_it_answers(self, deadline: float) -> str:
        """Wait until the server listens and is healthy; returns the problem that is left at the deadline."""
        while True:
            self._raise_if_ended()
            try:
                status = self._api.health()
                if status < 500:
                    return ""
                problem = f"GET /health answers {status}"
            except OSError as error:
                problem = f"it does not listen there ({error.strerror or error})"
            except Exception as error:
                problem = f"the program that listens there does not speak HTTP ({type(error).__name__})"
            if time.monotonic() > deadline:
                return problem
            time.sleep(_PAUSE_S)

    def _first_rate(self, deadline: float) -> tuple[int, str]:
        """The rate of the warm-up sentence, or the problem that is left at the deadline."""
        while True:
            request = self._warm_up(max(_PAUSE_S, deadline - time.monotonic()))
            while not request.finished.wait(_PAUSE_S):
                self._raise_if_ended()
                request.take()
                if time.monotonic() > deadline:
                    request.cancel()
                    return 0, f"it has listened, and the warm-up sentence is not spoken yet ({request.done} bytes came)"
            if request.error is None:
                return request.rate, ""
            self._raise_if_ended()
            # A server may listen before its model is loaded.
            if not isinstance(request.error, ServerFaultError) or time.monotonic() > deadline:
                raise ServerError(f"the warm-up sentence failed: {request.error}") from request.error
            time.sleep(_PAUSE_S)

    def _warm_up(self, busy_s: float = 0.0) -> Request:
        reference = self.warm_up_reference()
        voice = None if reference or not self._voices else self._voices[0]
        utterance = Utterance(self._warm_up_text, voice, reference, 0, 0, ServerOptions())
        return Request(self._api, self._body(utterance) | {"input": utterance.text}, self._wake, busy_s=busy_s)

    # --- the server

    def _raise_if_ended(self) -> None:
        if self._child is not None and self._child.ended.is_set():
            raise self._child.how_it_ended()

    def _look_at_server(self) -> None:
        """Raise SharedStepError for a server that has ended, or serves no request."""
        try:
            self._raise_if_ended()
            for job in self._jobs:
                if job.request is not None and isinstance(error := job.request.error, ServerError):
                    raise error
            if self._check is not None and self._check.finished.is_set():
                self._judge(self._check)
        except ServerError as error:
            raise SharedStepError([job.utterance.job for job in self._jobs], error) from error

    def _judge(self, check: Request) -> None:
        """The server is broken if it does not speak the warm-up sentence either; else the failed jobs were at fault."""
        self._check, error = None, check.error
        if isinstance(error, ServerError):
            raise error
        if isinstance(error, ServerFaultError):
            self._checks += 1
            if self._checks >= _CHECKS:
                raise ServerError(f"the speech server fails every request, the warm-up sentence too: {error.message}")
            self._check = self._warm_up(_CHECK_BUSY_S)
            return
        self._checks = 0
        for job in self._jobs:
            job.at_fault = job.fault is not None

    # --- jobs

    def _body(self, utterance: Utterance) -> dict[str, Any]:
        """A request's JSON, without its text."""
        body: dict[str, Any] = {
            "response_format": "pcm" if self._settings["pcm_rate"] else "wav",
            "stream_format": "audio",
            "seed": utterance.seed,
        }
        if self._model:
            body["model"] = self._model
        if utterance.voice:
            body["voice"] = utterance.voice
        if utterance.reference is not None:
            body |= {"ref_audio": recording(utterance.reference), "ref_text": utterance.reference.text}
        options: ServerOptions = utterance.options
        asked = {name: getattr(options, name) for name in options.__struct_fields__}
        body |= self._settings["extra"]
        return body | {name: value for name, value in asked.items() if value}

    def _ask(self, job: _Job, text: str = "") -> None:
        """Add ``text`` to its texts, and send the first of them."""
        job.texts += parts(text, self._settings["request_chars"]) if text else []
        job.request = Request(self._api, job.body | {"input": job.texts.pop(0)}, self._wake)

    def _events(self, job: _Job) -> list[Event]:
        if job.fault is not None:
            return [self._broken(job, job.fault)] if job.at_fault else []
        if job.request is None:
            return self._next_text(job)
        request, events = job.request, list[Event]()
        # In this order, because the last samples come before the end.
        finished, samples = request.finished.is_set(), request.take()
        job.done = job.done_before + request.done
        if len(samples):
            if request.rate != self.sample_rates[0]:
                words = f"the speech server answered at {request.rate} Hz, and first at {self.sample_rates[0]} Hz"
                return [self._broken(job, EngineError("synthesis_failed", words))]
            events.append(_spoken(job, samples))
        if not finished:
            return events
        if request.error is None:
            events.append(_spoken(job, _nothing(), ends_segment=True))
            job.request, job.done_before, job.segment = None, job.done, job.segment + 1
            if job.utterance.more is None and not job.texts:
                return events + self._next_text(job)
            # In the next step: a job that is suspended here leaves nothing at the server.
            self._turn_now = True
            return events
        if isinstance(request.error, ServerFaultError):
            job.fault = request.error
            self._check = self._check or self._warm_up(_CHECK_BUSY_S)
            return events
        return [*events, self._broken(job, request.error)]

    def _next_text(self, job: _Job) -> list[Event]:
        """Go on with the next of its texts, or end the job."""
        if job.texts:
            self._ask(job)
            return []
        more = job.utterance.more
        text = more() if more is not None else None
        if text is None:
            self._forget(job)
            return [Ended(job)]
        self._turn_now = True
        if not text:
            return [_spoken(job, _nothing(), waits=True)]
        self._ask(job, text)
        return []

    def _broken(self, job: _Job, error: Exception) -> Broken:
        self.cancel(job)
        return Broken(job, error)

    def _job(self, handle: Handle) -> _Job:
        assert isinstance(handle, _Job)
        return handle

    def _forget(self, job: _Job) -> None:
        self._charge()
        self._jobs.remove(job)

    def _charge(self) -> None:
        """Share the time since the last call among the jobs that the server works for."""
        spent, self._at = time.monotonic() - self._at, time.monotonic()
        working = [job for job in self._jobs if not job.suspended and job.request is not None]
        for job in working:
            job.work_s += spent / len(working)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            os.eventfd_write(self._news, 1)


def _spoken(job: _Job, samples: Samples, *, ends_segment: bool = False, waits: bool = False) -> Spoken:
    return Spoken(job, Piece(samples, job.segment, job.segment + 1 + len(job.texts), ends_segment, waits))


def parts(text: str, longest: int) -> list[str]:
    """``text`` for requests of at most ``longest`` characters, each of whole sentences; 0: in one.

    A sentence that is longer stays whole.
    """
    if not longest or len(text) <= longest:
        return [text]
    found = [""]
    for sentence in split(text):
        joined = found[-1] + (" " if found[-1] and not sentence.has_han else "") + sentence.text
        if found[-1] and len(joined) > longest:
            found.append(sentence.text)
        else:
            found[-1] = joined
    return found


def _nothing() -> Samples:
    return np.zeros(0, np.float32)
