"""The client for asyncio: the same calls as coroutines, any number of them at once on one connection."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncIterable, Callable, Iterable
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

from .aio_connection import AsyncConnection
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
from .pieces import FLUSH, each
from .speech import Chunk, Speech, SpeechOptions
from .voices import AddedVoice, VoiceSample, keys_of


class AsyncClient(AsyncConnection):
    """A connection to the speech daemon, for one event loop; it connects at its first use.

        async with AsyncClient() as client:
            async for chunk in client.stream("今天天气不错"):
                play(chunk.samples)

    Its arguments, methods and errors are those of :class:`~.sync.Client`. In a forked process it belongs to the event
    loop that uses it there first.
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

    async def speak(
        self,
        text: str,
        *,
        timeout: float | None = None,
        on_event: OnEvent | None = None,
        **options: Unpack[SpeechOptions],
    ) -> Speech:
        """Speak ``text`` and return the whole speech; see :meth:`.sync.Client.speak`.

        Cancelling the task cancels the job.
        """
        deadline = self._deadline(timeout)
        exchange = await self._synthesize(text, options)
        with self._given_up_on_error(exchange):
            return await self._finish(exchange, deadline, on_event)

    def stream(
        self,
        text: str | Iterable[str] | AsyncIterable[str],
        *,
        timeout: float | None = None,
        on_event: OnEvent | None = None,
        **options: Unpack[SpeechOptions],
    ) -> AsyncStream:
        """Speak ``text``, whole or in pieces, as a stream of chunks; see :meth:`.sync.Client.stream`.

        Pieces may come from an async iterable too, and are sent as they come. The request is sent at the beginning of
        the iteration, or of its ``async with``.
        """
        return AsyncStream(self, text, {"format": "pcm_s16le", **options}, timeout, on_event)

    async def submit(
        self,
        text: str,
        *,
        timeout: float | None = None,
        on_event: OnEvent | None = None,
        **options: Unpack[SpeechOptions],
    ) -> Job:
        """Submit ``text`` and return when the job is accepted; see :meth:`.sync.Client.submit`."""
        deadline = self._deadline(timeout)
        exchange = await self._synthesize(text, options)
        with self._given_up_on_error(exchange, cancel=options.get("key") is None):
            await self._until(lambda: exchange.finished or exchange.job, deadline, exchange)
        if exchange.job is None:
            exchange.check()
        if self._made is not None:
            self._made.core.track(exchange)
        show(exchange, on_event)
        return Job(exchange)

    def leave(self, job: Job | str, *, on_behalf_of: str | None = None) -> None:
        """Stop following a submitted job, which goes on; ``wait`` with its id fetches it later.

        No effect on an id for which another call waits.
        """
        if self._made is None:
            return
        core, customer = self._made.core, customer_of(job, on_behalf_of)
        exchange = job._exchange if isinstance(job, Job) else core.tracked(job, customer)
        if exchange is not None and (isinstance(job, Job) or not exchange.watchers):
            core.collect(exchange)
            core.abandon(exchange, Cancelled("left by this client", job=job_id(job)), cancel=False)
            self._flush()

    async def wait(
        self,
        job: Job | str,
        *,
        timeout: float | None = None,
        on_event: OnEvent | None = None,
        on_behalf_of: str | None = None,
    ) -> Speech:
        """Wait for a job, and return its speech. A timeout or an interruption does not cancel the job."""
        deadline, customer = self._deadline(timeout), customer_of(job, on_behalf_of)
        if on_event is not None and customer is not None and not isinstance(job, Job):
            # Several of a customer's programs may watch one job: each has to get all events.
            exchange = (await self._connection()).core.wait(job, customer, track=False)
            with self._given_up_on_error(exchange, cancel=False):
                return await self._finish(exchange, deadline, on_event)
        found = collected(job)
        if found is None and self._made is not None and not self._made.inherited:
            found = self._made.core.tracked(job_id(job), customer)
        if found is None:
            found = (await self._connection()).core.wait(job_id(job), customer)
        return await self._finish(found, deadline, on_event)

    def follow(
        self,
        job: Job | str,
        *,
        timeout: float | None = None,
        on_event: OnEvent | None = None,
        on_behalf_of: str | None = None,
    ) -> AsyncStream:
        """The audio of a durable job from its beginning, while it is made; see :meth:`.sync.Client.follow`."""
        options: SpeechOptions = {"on_behalf_of": customer_of(job, on_behalf_of)}
        return AsyncStream(self, "", options, timeout, on_event, follows=job_id(job))

    async def cancel(self, job: Job | str, *, timeout: float | None = None, on_behalf_of: str | None = None) -> str:
        """Cancel a job, and return its state. A call that waits for it raises Cancelled."""
        return str(
            (await self._ask("cancel", timeout, Result, job=job_id(job), on_behalf_of=on_behalf_of)).values.get(
                "state", ""
            )
        )

    async def job(self, job: Job | str, *, timeout: float | None = None, on_behalf_of: str | None = None) -> JobAnswer:
        """The state of a job."""
        return await self._ask("job", timeout, JobAnswer, job=job_id(job), on_behalf_of=on_behalf_of)

    async def jobs(
        self,
        state: str | None = None,
        limit: int | None = None,
        *,
        timeout: float | None = None,
        on_behalf_of: str | None = None,
    ) -> list[JobInfo]:
        """The newest ``limit`` jobs of this client; ``state`` is waiting, running, done, failed or cancelled."""
        return (await self._ask("jobs", timeout, JobsAnswer, state=state, limit=limit, on_behalf_of=on_behalf_of)).jobs

    async def info(self, *, timeout: float | None = None) -> InfoAnswer:
        """The daemon's engine, formats, sample rates, voices, limits and options."""
        return await self._ask("info", timeout, InfoAnswer)

    async def voices(self, *, timeout: float | None = None, on_behalf_of: str | None = None) -> list[Voice]:
        """The voices for ``voice``: those for all, and this client's own; ``owner`` is ``shared`` or ``own``."""
        return (await self._ask("voices", timeout, VoicesAnswer, on_behalf_of=on_behalf_of)).voices

    async def add_voice(
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
        """Keep a voice that this client alone can name; see :meth:`.sync.Client.add_voice`."""
        keys = keys_of(name, text, description=description, language=language, consent=consent, replace=replace)
        body = await _recording(audio)
        answer = await self._ask("voice_add", timeout, Result, body=body, **keys, on_behalf_of=on_behalf_of)
        return AddedVoice.of(answer)

    async def remove_voice(self, name: str, *, timeout: float | None = None, on_behalf_of: str | None = None) -> None:
        """Remove a voice of this client's own; see :meth:`.sync.Client.remove_voice`."""
        await self._ask("voice_remove", timeout, Result, name=name, on_behalf_of=on_behalf_of)

    async def voice_sample(
        self, name: str, *, timeout: float | None = None, on_behalf_of: str | None = None
    ) -> VoiceSample:
        """The recording of a voice whose ``sample`` is true in :meth:`voices`."""
        return VoiceSample.of(await self._asked("voice_sample", timeout, name=name, on_behalf_of=on_behalf_of))

    async def usage(
        self,
        since: str | date | float | None = None,
        *,
        timeout: float | None = None,
        on_behalf_of: str | None = None,
    ) -> list[UsageDay]:
        """What this client had spoken; see :meth:`.sync.Client.usage`."""
        day = since.isoformat()[:10] if isinstance(since, date) else since
        return (await self._ask("usage", timeout, UsageAnswer, since=day, on_behalf_of=on_behalf_of)).days

    async def ping(self, *, timeout: float | None = None) -> Pong:
        """The daemon's version, and for how many seconds it has run."""
        return await self._ask("ping", timeout, Pong)

    async def _synthesize(
        self, text: str, options: SpeechOptions, *, stream: bool = False, more: bool = False
    ) -> JobExchange:
        keys: dict[str, Any] = dict(options)
        recording = await _recording(keys.pop("prompt", None))
        core = (await self._connection()).core
        return core.synthesize(text, stream=stream, more=more, recording=recording, **keys)

    async def _finish(self, exchange: JobExchange, deadline: float, on_event: OnEvent | None) -> Speech:
        while not exchange.finished or exchange.events:
            await self._until(lambda: exchange.finished or exchange.events, deadline, exchange)
            show(exchange, on_event)
        if self._made is not None:
            self._made.core.collect(exchange)
        return exchange.speech()

    async def _feed(
        self, exchange: JobExchange, pieces: Iterable[str] | AsyncIterable[str], on_behalf_of: str | None
    ) -> BaseException | None:
        """Send the pieces of a job's text as they come. Returns what the iterable has raised, which ends the job."""
        try:
            async for piece in each(pieces):
                self._add_text(exchange, piece, on_behalf_of)
                if exchange.texts >= MAX_TEXTS:
                    await self._until(lambda: exchange.texts < MAX_TEXTS or exchange.finished, math.inf, exchange)
                if exchange.finished:
                    return None
            self._add_text(exchange, "", on_behalf_of, last=True)
        except Exception as error:
            self._give_up(exchange)
            return error
        return None

    def _add_text(self, exchange: JobExchange, text: str, on_behalf_of: str | None, *, last: bool = False) -> None:
        if self._made is not None:
            flush = text is FLUSH
            self._made.core.add_text(exchange, text, flush=flush, last=last, on_behalf_of=on_behalf_of)
            self._flush()


async def _recording(source: str | os.PathLike[str] | bytes | None) -> bytes | None:
    a_path = isinstance(source, str | os.PathLike)
    return await asyncio.to_thread(read_recording, source) if a_path else read_recording(source)


class AsyncStream:
    """The chunks of a job, in order: ``async for chunk in stream``.

    The end of its ``async with`` block, :meth:`close` and dropping it cancel a job that has not ended, unless the
    stream only follows it. One that is ``durable`` goes on; one with a ``key`` as long as another request hears it. A
    stream that is not read holds the daemon back, which in the end fails the job with SlowConsumer.

    Attributes:
        job: the job's handle, after the beginning of the iteration; None before.
        done: the last event, after all chunks were read; None before.
    """

    def __init__(
        self,
        client: AsyncClient,
        text: str | Iterable[str] | AsyncIterable[str],
        options: SpeechOptions,
        timeout: float | None,
        on_event: OnEvent | None,
        *,
        follows: str | None = None,
    ) -> None:
        self._client = client
        self._text = text
        #: The id of a job that is there already; its end is not this stream's business.
        self._follows = follows
        self._options = options
        self._timeout = timeout
        self._on_event = on_event
        self._exchange: JobExchange | None = None
        #: Sends the pieces of the text.
        self._feeding: asyncio.Task[BaseException | None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        self.job: Job | None = None
        self.done: Done | None = None

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Chunk:
        exchange = await self._begin()
        with self._client._given_up_on_error(exchange):
            while not exchange.chunks and (not exchange.finished or exchange.events):
                await self._news(exchange, lambda: exchange.finished or exchange.events or exchange.chunks)
        if exchange.chunks:
            return exchange.take_chunk()
        feeding, self._feeding = self._feeding, None
        if feeding is not None:
            if feeding.done() and (problem := feeding.result()) is not None:
                raise problem
            feeding.cancel()
        self.done = exchange.result(Done)
        raise StopAsyncIteration

    async def _begin(self) -> JobExchange:
        """Send the request, if it is not sent yet, and wait for its acceptance."""
        if self._exchange is None:
            self._loop, self._pid = asyncio.get_running_loop(), os.getpid()
            whole = self._text if isinstance(self._text, str) else ""
            in_pieces = not isinstance(self._text, str)
            if self._follows is not None:
                core, customer = (await self._client._connection()).core, self._options.get("on_behalf_of")
                self._exchange = core.wait(self._follows, customer, track=False, follow=True)
            else:
                self._exchange = await self._client._synthesize(whole, self._options, stream=True, more=in_pieces)
            self._options.pop("prompt", None)
        exchange = self._exchange
        if self._pid != os.getpid() and not exchange.finished:
            raise GlmttsError("This stream began before the process was forked: begin one of this process's own.")
        if self.job is None:
            with self._client._given_up_on_error(exchange):
                await self._news(exchange, lambda: exchange.finished or exchange.job)
            if exchange.job is None:
                exchange.check()
            self.job = Job(exchange)
            if not isinstance(self._text, str):
                # Not a method of this stream, which may be dropped.
                feed = self._client._feed(exchange, self._text, self._options.get("on_behalf_of"))
                self._feeding = asyncio.create_task(feed)
        return exchange

    async def _news(self, exchange: JobExchange, ready: Callable[[], object]) -> None:
        await self._client._until(ready, self._client._deadline(self._timeout), exchange)
        show(exchange, self._on_event)

    async def close(self) -> None:
        """Cancel the job, unless it has ended or outlives its listener."""
        if self._feeding is not None:
            self._feeding.cancel()
        if self._exchange is not None:
            self._client._give_up(self._exchange)
            self._exchange.chunks.clear()

    async def __aenter__(self) -> AsyncStream:
        await self._begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __del__(self) -> None:
        exchange, loop = self._exchange, self._loop
        of_parent = self._client._made is None or self._client._made.inherited
        if exchange is not None and loop is not None and not (exchange.finished or loop.is_closed() or of_parent):
            loop.call_soon_threadsafe(self._client._give_up, exchange)
            if self._feeding is not None:
                loop.call_soon_threadsafe(self._feeding.cancel)
