"""The blocking client."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import date
from typing import Any, Unpack

from glmtts.protocol.endpoints import requests_endpoint
from glmtts.protocol.events import (
    Done,
    InfoAnswer,
    JobAnswer,
    JobInfo,
    JobsAnswer,
    Pong,
    Result,
    UsageAnswer,
    UsageDay,
    Voice,
    VoicesAnswer,
)

from .blocking import BlockingConnection, uninterrupted
from .connection import read_recording
from .curve import Key
from .errors import Cancelled, GlmttsError
from .exchange import (
    MAX_TEXTS,
    Job,
    JobExchange,
    OnEvent,
    collected,
    customer_of,
    job_id,
    show,
)
from .pieces import PieceReader
from .speech import Chunk, Speech, SpeechOptions
from .voices import AddedVoice, VoiceSample, keys_of


class Client(BlockingConnection):
    """A connection to the speech daemon.

        with Client() as client:
            client.speak("今天天气不错").save("a.wav")

    A client is for one thread at a time. It can have many jobs in flight: ``submit`` them, and ``wait`` in any order.
    After a restart of the daemon it reconnects and asks for the jobs in flight again. In a forked process it makes a
    connection of its own; a :class:`Stream` stays with the process that began it.

    Args:
        endpoint: by default that of the daemon on this machine.
        timeout: seconds, the default of every call; None waits as long as it takes.
        reconnect_s: seconds that a lost daemon has to come back.
        server_key: the daemon's public key, for an encrypted ``tcp://`` endpoint: its 40 characters (Z85) or the path
            of its file; by default ``GLMTTS_SERVER_KEY``.
        secret_key: this client's own key, likewise; by default ``GLMTTS_SECRET_KEY``.

    Raises:
        DaemonNotRunning: no daemon answers; also raised by every method.
        UntrustedDaemon: another user could listen there; also raised by every method.
        ConnectionLost: the daemon went away during a call and does not know the request any more.
        Timeout: a call took longer than its timeout.
        RequestFailed: the daemon answered with an error; each error code has a subclass.
        Forbidden, HandshakeFailed: the keys do not match; raised by the first call.
        GlmttsError: the base of all of these; also for a second thread, and for a closed client.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        timeout: float | None = None,
        *,
        reconnect_s: float = 30.0,
        server_key: Key | None = None,
        secret_key: Key | None = None,
    ) -> None:
        endpoint = endpoint or requests_endpoint()
        super().__init__(endpoint, timeout, reconnect_s, server_key=server_key, secret_key=secret_key)

    def speak(
        self,
        text: str,
        *,
        timeout: float | None = None,
        on_event: OnEvent | None = None,
        **options: Unpack[SpeechOptions],
    ) -> Speech:
        """Speak ``text`` and return the whole speech. A timeout or an interruption cancels the job.

        Args:
            text: the text to speak.
            timeout: seconds until the speech is there.
            on_event: called with each event before the end: accepted, queued, started, progress.
            options: see :class:`SpeechOptions`.

        Raises:
            OSError: ``prompt`` can't be read.
            GlmttsError: see the class.
        """
        with self._in_use():
            exchange = self._synthesize(text, options)
            with self._given_up_on_error(exchange):
                return self._finish(exchange, self._deadline(timeout), on_event)

    def stream(
        self,
        text: str | Iterable[str],
        *,
        timeout: float | None = None,
        on_event: OnEvent | None = None,
        **options: Unpack[SpeechOptions],
    ) -> Stream:
        """Speak ``text`` as a stream of chunks, by default in ``pcm_s16le``. Returns when the job is accepted.

        ``text`` may come in pieces, from any iterable of strings, as a language model makes them: each sentence is
        spoken when it is whole, or as it is after the piece ``FLUSH``. A thread reads the iterable; what has come is
        sent while the stream is read. An exception of the iterable cancels the job and is raised by the stream.

        Args and errors are those of :meth:`speak`, except that ``timeout`` is for each next event, or piece.
        """
        with self._in_use():
            options = {"format": "pcm_s16le", **options}
            in_pieces = not isinstance(text, str)
            exchange = self._synthesize("" if in_pieces else str(text), options, stream=True, more=in_pieces)
            with self._given_up_on_error(exchange):
                self._until(lambda: exchange.finished or exchange.job, self._deadline(timeout), exchange)
                if exchange.job is None:
                    exchange.check()
            pieces = None if isinstance(text, str) else PieceReader(text)
            whose = options.get("on_behalf_of")
            return Stream(self, exchange, timeout, on_event, pieces=pieces, on_behalf_of=whose)

    def submit(
        self,
        text: str,
        *,
        timeout: float | None = None,
        on_event: OnEvent | None = None,
        **options: Unpack[SpeechOptions],
    ) -> Job:
        """Submit ``text`` and return when the job is accepted; :meth:`wait` returns its speech.

        Args and errors are those of :meth:`speak`, except that ``timeout`` is for the acceptance: after it the job is
        cancelled, unless it has a ``key`` under which it can be submitted again.
        """
        with self._in_use():
            exchange = self._synthesize(text, options)
            with self._given_up_on_error(exchange, cancel=options.get("key") is None):
                self._until(lambda: exchange.finished or exchange.job, self._deadline(timeout), exchange)
            if exchange.job is None:
                exchange.check()
            self._core.track(exchange)
            show(exchange, on_event)
            return Job(exchange)

    def wait(
        self,
        job: Job | str,
        *,
        timeout: float | None = None,
        on_event: OnEvent | None = None,
        on_behalf_of: str | None = None,
    ) -> Speech:
        """Wait for a job, and return its speech. A timeout or an interruption does not cancel the job."""
        with self._in_use():
            deadline = self._deadline(timeout)
            exchange = collected(job) or self._core.tracked(job_id(job), customer_of(job, on_behalf_of))
            if exchange is None:
                self._connection.check()
                exchange = self._core.wait(job_id(job), customer_of(job, on_behalf_of))
            return self._finish(exchange, deadline, on_event)

    def follow(
        self,
        job: Job | str,
        *,
        timeout: float | None = None,
        on_event: OnEvent | None = None,
        on_behalf_of: str | None = None,
    ) -> Stream:
        """The audio of a durable job from its beginning, while it is made.

        A job that was submitted with ``follow`` comes in pieces. Any other, one that has ended, and one whose pieces
        are too many to be kept come in one chunk, at the end. Closing the stream does not cancel the job.
        """
        with self._in_use():
            self._connection.check()
            exchange = self._core.wait(job_id(job), customer_of(job, on_behalf_of), track=False, follow=True)
            return Stream(self, exchange, timeout, on_event)

    def cancel(self, job: Job | str, *, timeout: float | None = None, on_behalf_of: str | None = None) -> str:
        """Cancel a job, and return its state. A call that waits for it raises Cancelled."""
        return str(
            self._ask("cancel", timeout, Result, job=job_id(job), on_behalf_of=on_behalf_of).values.get("state", "")
        )

    def job(self, job: Job | str, *, timeout: float | None = None, on_behalf_of: str | None = None) -> JobAnswer:
        """The state of a job."""
        return self._ask("job", timeout, JobAnswer, job=job_id(job), on_behalf_of=on_behalf_of)

    def jobs(
        self,
        state: str | None = None,
        limit: int | None = None,
        *,
        timeout: float | None = None,
        on_behalf_of: str | None = None,
    ) -> list[JobInfo]:
        """The newest ``limit`` jobs of this client; ``state`` is waiting, running, done, failed or cancelled."""
        return self._ask("jobs", timeout, JobsAnswer, state=state, limit=limit, on_behalf_of=on_behalf_of).jobs

    def info(self, *, timeout: float | None = None) -> InfoAnswer:
        """The daemon's engine, formats, sample rates, voices, limits and options."""
        return self._ask("info", timeout, InfoAnswer)

    def voices(self, *, timeout: float | None = None, on_behalf_of: str | None = None) -> list[Voice]:
        """The voices for ``voice``: those for all, and this client's own; ``owner`` is ``shared`` or ``own``."""
        return self._ask("voices", timeout, VoicesAnswer, on_behalf_of=on_behalf_of).voices

    def add_voice(
        self,
        name: str,
        audio: str | os.PathLike[str] | bytes,
        *,
        text: str,
        description: str = "",
        language: str = "",
        consent: bool = False,
        replace: bool = False,
        timeout: float | None = None,
        on_behalf_of: str | None = None,
    ) -> AddedVoice:
        """Keep a voice that this client alone can name, until it removes it.

        Args:
            name: 1 to 64 letters, digits, hyphens and underscores; no voice for all may have it.
            audio: the recording, 1 to 30 s: a path, or the bytes of a WAV, FLAC, OGG or MP3 file.
            text: what is said in it.
            description: for people who choose a voice.
            language: such as ``zh``.
            consent: the person who is heard agrees. Without it no voice is kept.
            replace: whether it may take the place of an own voice of that name.
            timeout: seconds until it is kept.
            on_behalf_of: as in :class:`SpeechOptions`.

        Raises:
            OSError: the recording can't be read.
            BadAudio: the daemon can't use the recording.
            Forbidden: the client may keep no voice, or no further one.
            GlmttsError: see the class.
        """
        keys = keys_of(name, text, description=description, language=language, consent=consent, replace=replace)
        body = read_recording(audio)
        return AddedVoice.of(self._ask("voice_add", timeout, Result, body=body, **keys, on_behalf_of=on_behalf_of))

    def remove_voice(self, name: str, *, timeout: float | None = None, on_behalf_of: str | None = None) -> None:
        """Remove a voice of this client's own. A job that waits to speak with it fails with VoiceNotFound."""
        self._ask("voice_remove", timeout, Result, name=name, on_behalf_of=on_behalf_of)

    def voice_sample(self, name: str, *, timeout: float | None = None, on_behalf_of: str | None = None) -> VoiceSample:
        """The recording of a voice whose ``sample`` is true in :meth:`voices`."""
        return VoiceSample.of(self._asked("voice_sample", timeout, name=name, on_behalf_of=on_behalf_of))

    def usage(
        self,
        since: str | date | float | None = None,
        *,
        timeout: float | None = None,
        on_behalf_of: str | None = None,
    ) -> list[UsageDay]:
        """What this client had spoken, the newest day first.

        Args:
            since: a day (UTC), as ``2026-11-30`` or a ``date``, or seconds since 1970; by default all that is kept.
            on_behalf_of: for gateways: one customer; without it each of them has rows of its own.
        """
        day = since.isoformat()[:10] if isinstance(since, date) else since
        return self._ask("usage", timeout, UsageAnswer, since=day, on_behalf_of=on_behalf_of).days

    def ping(self, *, timeout: float | None = None) -> Pong:
        """The daemon's version, and for how many seconds it has run."""
        return self._ask("ping", timeout, Pong)

    def _synthesize(
        self, text: str, options: SpeechOptions, *, stream: bool = False, more: bool = False
    ) -> JobExchange:
        keys: dict[str, Any] = dict(options)
        recording = read_recording(keys.pop("prompt", None))
        self._connection.check()
        return self._core.synthesize(text, stream=stream, more=more, recording=recording, **keys)

    def _finish(self, exchange: JobExchange, deadline: float, on_event: OnEvent | None) -> Speech:
        while not exchange.finished or exchange.events:
            self._until(lambda: exchange.finished or exchange.events, deadline, exchange)
            show(exchange, on_event)
        self._core.collect(exchange)
        return exchange.speech()

    @contextmanager
    def _given_up_on_error(self, exchange: JobExchange, *, cancel: bool = True) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._give_up(exchange, cancel=cancel)
            raise

    def _give_up(self, exchange: JobExchange, *, cancel: bool = True) -> None:
        self._core.abandon(exchange, Cancelled("cancelled by this client", job=exchange.job), cancel=cancel)
        self._connection.flush()


class Stream:
    """The chunks of a job, in order, as an iterator: ``for chunk in stream``.

    The end of its ``with`` block, :meth:`close` and dropping it cancel a job that has not ended. One that is
    ``durable`` goes on; one with a ``key`` as long as another request hears it. A stream that is not read holds the
    daemon back, which in the end fails the job with SlowConsumer.

    Attributes:
        job: the job's handle.
        done: the last event, after all chunks were read; None before.
    """

    def __init__(
        self,
        client: Client,
        exchange: JobExchange,
        timeout: float | None,
        on_event: OnEvent | None,
        *,
        pieces: PieceReader | None = None,
        on_behalf_of: str | None = None,
    ) -> None:
        self._pieces = pieces
        self._on_behalf_of = on_behalf_of
        self._client = client
        self._core = client._core
        self._exchange = exchange
        self._timeout = timeout
        self._on_event = on_event
        self.job = Job(exchange)
        self.done: Done | None = None

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Chunk:
        client, exchange = self._client, self._exchange
        with client._in_use(), client._given_up_on_error(exchange):
            if client._core is not self._core and not exchange.finished:
                raise GlmttsError("This stream began before the process was forked: begin one of this process's own.")
            self._send_pieces()
            while not exchange.chunks and (not exchange.finished or exchange.events):
                deadline = client._deadline(self._timeout)
                # The descriptor of pieces that can't be sent yet stays readable.
                full = exchange.texts >= MAX_TEXTS
                wakes = self._pieces.fileno() if self._pieces is not None and not full else None
                client._until(self._has_room if full else self._has_news, deadline, exchange, wakes=wakes)
                show(exchange, self._on_event)
                self._send_pieces()
        if exchange.chunks:
            return exchange.take_chunk()
        self._end_pieces()
        self.done = exchange.result(Done)
        raise StopIteration

    def _has_news(self) -> object:
        exchange, pieces = self._exchange, self._pieces
        text = pieces is not None and pieces.ready and exchange.texts < MAX_TEXTS
        return exchange.finished or exchange.events or exchange.chunks or text

    def _has_room(self) -> object:
        return self._exchange.texts < MAX_TEXTS or self._has_news()

    def _send_pieces(self) -> None:
        """Send the pieces of the text that have come."""
        while (pieces := self._pieces) is not None and pieces.ready and self._exchange.texts < MAX_TEXTS:
            text, flush, last = pieces.take()
            self._core.add_text(self._exchange, text, flush=flush, last=last, on_behalf_of=self._on_behalf_of)
            with uninterrupted():
                self._client._connection.flush()
            if last:
                self._end_pieces()

    def _end_pieces(self) -> None:
        if self._pieces is not None:
            self._pieces.close()
            self._pieces = None

    def close(self) -> None:
        """Cancel the job, unless it has ended or outlives its listener."""
        self._end_pieces()
        inherited = self._client._connection.inherited
        if not self._exchange.finished and not self._client._closed and not inherited:
            with self._client._in_use():
                self._client._give_up(self._exchange)
        self._exchange.chunks.clear()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            self.close()
        except GlmttsError:
            pass  # another thread uses the client: the job ends as a slow consumer
