"""The client for ordinary programs: every call returns when it is done."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Unpack

from glmtts.protocol.endpoints import requests_endpoint
from glmtts.protocol.events import Done, InfoAnswer, JobAnswer, JobInfo, JobsAnswer, Pong, Result, Voice, VoicesAnswer

from .connection import Connection, read_recording
from .curve import Key
from .errors import Cancelled, GlmttsError
from .exchange import Exchange, Job, JobExchange, OnEvent, collected, job_id, show, timed_out
from .speech import Chunk, Speech, SpeechOptions

#: Messages taken in between two looks at whether the caller has what it waits for. A stream that nobody reads stays
#: with the daemon, but for these.
_MESSAGES_A_STEP = 32


class BlockingConnection:
    """A connection, and waiting on it: the part that :class:`Client` and :class:`~.control.Control` share."""

    def __init__(
        self,
        endpoint: str,
        timeout: float | None,
        reconnect_s: float,
        *,
        server_key: Key | None = None,
        secret_key: Key | None = None,
    ) -> None:
        self._timeout = timeout
        # One user at a time, who may come back in from a callback; a second thread is told instead of being queued,
        # because it would wait for as long as somebody else's speech takes.
        self._user = threading.RLock()
        self._connection = Connection(endpoint, reconnect_s=reconnect_s, server_key=server_key, secret_key=secret_key)
        self._core = self._connection.core
        self._closed = False

    @property
    def endpoint(self) -> str:
        """Where this client is connected to."""
        return self._connection.endpoint

    def close(self) -> None:
        """Close the connection. The daemon cancels its streams and finishes its other jobs. Closing twice is fine."""
        if self._closed:
            return
        with self._in_use():
            self._closed = True
            self._connection.close()

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        if not self._user.acquire(blocking=False):
            raise GlmttsError(
                "This client is in use by another thread. A client is for one thread at a time: make one for each."
            )
        try:
            if self._closed:
                raise GlmttsError("This client is closed.")
            yield
        finally:
            self._user.release()

    def _deadline(self, timeout: float | None) -> float:
        timeout = self._timeout if timeout is None else timeout
        return math.inf if timeout is None else time.monotonic() + timeout

    def _until(self, ready: Callable[[], object], deadline: float, exchange: Exchange) -> None:
        """Keep the connection going until ``ready()``. Raises Timeout at ``deadline``."""
        connection, core = self._connection, self._core
        with _uninterrupted():
            connection.flush()
        while not ready():
            wait = min(deadline, core.give_up_at or math.inf) - time.monotonic()
            connection.poll(wait)
            with _uninterrupted():
                connection.step(_MESSAGES_A_STEP)
            if time.monotonic() >= deadline and not ready():
                raise timed_out(exchange)

    def _ask(self, op: str, timeout: float | None, *expected: type[Any], body: bytes | None = None, **keys: Any) -> Any:
        """A request that has one answer."""
        with self._in_use():
            self._connection.check()
            deadline = self._deadline(timeout)
            exchange = self._core.call(op, body, **keys)
            try:
                self._until(lambda: exchange.finished, deadline, exchange)
            except BaseException:
                self._core.abandon(exchange, GlmttsError("given up"))
                raise
            return exchange.result(*expected)


class Client(BlockingConnection):
    """A connection to the speech daemon at ``endpoint``, by default the one that runs on this machine.

    ``timeout`` in seconds is the default of every call (None: wait as long as it takes). When the daemon goes away, it
    has ``reconnect_s`` seconds to come back; jobs in flight are then asked for again.

    By ``tcp://`` a daemon that encrypts needs ``server_key``, its public key, and ``secret_key``, this client's own,
    each as its 40 characters (Z85) or as the path of the file that holds it; by default ``GLMTTS_SERVER_KEY`` and
    ``GLMTTS_SECRET_KEY``. Keys that do not fit raise Forbidden or HandshakeFailed at the first call.

    A client is for one thread at a time; from a second one it raises GlmttsError. It can have many jobs in flight:
    ``submit`` them, and ``wait`` in any order. Every method raises RequestFailed, by the class of the daemon's error
    code, Timeout, DaemonNotRunning and ConnectionLost, all of them a GlmttsError.

        with Client() as client:
            client.speak("今天天气不错").save("a.wav")
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

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def speak(
        self,
        text: str,
        *,
        timeout: float | None = None,
        on_event: OnEvent | None = None,
        **options: Unpack[SpeechOptions],
    ) -> Speech:
        """Speak ``text`` and return the whole of it.

        ``on_event`` is called with each event before the last (accepted, queued, started, progress). After ``timeout``
        seconds, and when it is interrupted, the job is cancelled.
        """
        with self._in_use():
            exchange = self._synthesize(text, options)
            try:
                return self._finish(exchange, self._deadline(timeout), on_event)
            except BaseException:
                self._give_up(exchange)
                raise

    def stream(
        self,
        text: str,
        *,
        timeout: float | None = None,
        on_event: OnEvent | None = None,
        **options: Unpack[SpeechOptions],
    ) -> Stream:
        """Speak ``text`` and return its chunks while it is spoken; ``format`` is ``pcm_s16le`` unless given.

        Returns when the daemon has accepted the job. ``timeout`` is the longest wait for the next news of it.
        """
        with self._in_use():
            exchange = self._synthesize(text, {"format": "pcm_s16le", **options}, stream=True)
            try:
                self._until(lambda: exchange.finished or exchange.job, self._deadline(timeout), exchange)
                if exchange.job is None:
                    exchange.result()
            except BaseException:
                self._give_up(exchange)
                raise
            return Stream(self, exchange, timeout, on_event)

    def submit(
        self,
        text: str,
        *,
        timeout: float | None = None,
        on_event: OnEvent | None = None,
        **options: Unpack[SpeechOptions],
    ) -> Job:
        """Have ``text`` spoken, and return as soon as the daemon has accepted the job.

        Its speech waits in this client until :meth:`wait` collects it. A job that is not accepted within ``timeout``
        seconds is cancelled, unless it has a ``key``, under which it can be submitted again.
        """
        with self._in_use():
            exchange = self._synthesize(text, options)
            try:
                self._until(lambda: exchange.finished or exchange.job, self._deadline(timeout), exchange)
            except BaseException:
                self._give_up(exchange, cancel=options.get("key") is None)
                raise
            if exchange.job is None:
                exchange.result()
            self._core.track(exchange)
            show(exchange, on_event)
            return Job(exchange)

    def wait(self, job: Job | str, *, timeout: float | None = None, on_event: OnEvent | None = None) -> Speech:
        """The speech of a job, when it is done. A timeout or an interruption leaves the job as it is."""
        with self._in_use():
            deadline = self._deadline(timeout)
            exchange = collected(job) or self._core.tracked(job_id(job))
            if exchange is None:
                self._connection.check()
                exchange = self._core.wait(job_id(job))
            return self._finish(exchange, deadline, on_event)

    def cancel(self, job: Job | str, *, timeout: float | None = None) -> str:
        """End a job; returns its state. Whoever waits for it gets Cancelled."""
        answer: Result = self._ask("cancel", timeout, Result, job=job_id(job))
        return str(answer.values.get("state", ""))

    def job(self, job: Job | str, *, timeout: float | None = None) -> JobAnswer:
        """How a job stands."""
        answer: JobAnswer = self._ask("job", timeout, JobAnswer, job=job_id(job))
        return answer

    def jobs(
        self, state: str | None = None, limit: int | None = None, *, timeout: float | None = None
    ) -> list[JobInfo]:
        """This client's own jobs, the newest first; ``state``: waiting, running, done, failed or cancelled."""
        answer: JobsAnswer = self._ask("jobs", timeout, JobsAnswer, state=state, limit=limit)
        return answer.jobs

    def info(self, *, timeout: float | None = None) -> InfoAnswer:
        """What the daemon can do: engine, formats, sample rates, voices, limits, options."""
        answer: InfoAnswer = self._ask("info", timeout, InfoAnswer)
        return answer

    def voices(self, *, timeout: float | None = None) -> list[Voice]:
        """The voices that can be named."""
        answer: VoicesAnswer = self._ask("voices", timeout, VoicesAnswer)
        return answer.voices

    def ping(self, *, timeout: float | None = None) -> Pong:
        """Whether the daemon is there, its version, and for how many seconds it has run."""
        answer: Pong = self._ask("ping", timeout, Pong)
        return answer

    # --- inside

    def _synthesize(self, text: str, options: SpeechOptions, *, stream: bool = False) -> JobExchange:
        keys: dict[str, Any] = dict(options)
        recording = read_recording(keys.pop("prompt", None))
        self._connection.check()
        return self._core.synthesize(text, stream=stream, recording=recording, **keys)

    def _finish(self, exchange: JobExchange, deadline: float, on_event: OnEvent | None) -> Speech:
        while not exchange.finished or exchange.events:
            self._until(lambda: exchange.finished or exchange.events, deadline, exchange)
            show(exchange, on_event)
        self._core.collect(exchange)
        return exchange.speech()

    def _give_up(self, exchange: JobExchange, *, cancel: bool = True) -> None:
        self._core.abandon(exchange, Cancelled("cancelled by this client", job=exchange.job), cancel=cancel)
        self._connection.flush()


class Stream:
    """The chunks of a job, in order, as an iterator: ``for chunk in stream``.

    Closing it before its end, by ``with`` or :meth:`close`, cancels the job; so does dropping it. ``job`` is the job's
    handle, ``done`` the last event when all chunks were read, else None. While nobody reads, the daemon is held back;
    it ends the job with SlowConsumer when that takes too long.
    """

    def __init__(self, client: Client, exchange: JobExchange, timeout: float | None, on_event: OnEvent | None) -> None:
        self._client = client
        self._exchange = exchange
        self._timeout = timeout
        self._on_event = on_event
        self.job = Job(exchange)
        self.done: Done | None = None

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Chunk:
        client, exchange = self._client, self._exchange
        with client._in_use():
            try:
                while not exchange.chunks and not self._at_end():
                    client._until(
                        lambda: exchange.finished or exchange.events or exchange.chunks,
                        client._deadline(self._timeout),
                        exchange,
                    )
                    show(exchange, self._on_event)
            except BaseException:
                client._give_up(exchange)
                raise
        if exchange.chunks:
            return exchange.take_chunk()
        self.done = exchange.result(Done)
        raise StopIteration

    def _at_end(self) -> bool:
        return self._exchange.finished and not self._exchange.events

    def close(self) -> None:
        """Cancel the job, unless it has ended."""
        if not self._exchange.finished and not self._client._closed:
            with self._client._in_use():
                self._client._give_up(self._exchange)
        self._exchange.chunks.clear()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            self.close()
        except GlmttsError:
            pass  # another thread has the client: the job ends as a slow consumer


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back for some microseconds: a message half sent, or received and not looked at, would be lost."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread gets it
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
