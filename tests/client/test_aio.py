"""The asyncio client against a scripted daemon on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from glmtts.client import AsyncClient, ConnectionLost, GlmttsError, SlowConsumer, Timeout
from glmtts.client import exchange as exchange_module
from glmtts.protocol import events
from glmtts.protocol.errors import ErrorCode
from glmtts.protocol.requests import Cancel, Leave, Request, Synthesize, Wait

from .scripted_daemon import R, ScriptedDaemon, accept_only, accepted, audio, done, speak_at_once

PATIENCE_S = 10.0


def run(endpoint: str, use: Callable[[AsyncClient], Awaitable[None]], reconnect_s: float = 30.0) -> None:
    async def main() -> None:
        async with AsyncClient(endpoint, timeout=PATIENCE_S, reconnect_s=reconnect_s) as client:
            await use(client)

    asyncio.run(main())


async def asked(daemon: ScriptedDaemon, kind: type[R]) -> R:
    return await asyncio.to_thread(daemon.next_of, kind)


def test_many_requests_at_once_each_get_their_own_answer(daemon: ScriptedDaemon) -> None:
    async def use(client: AsyncClient) -> None:
        texts = [f"text {n}" for n in range(100)]
        pinging = asyncio.create_task(client.ping())
        speeches = await asyncio.gather(*(client.speak(text) for text in texts))
        assert [speech.audio.decode() for speech in speeches] == texts
        assert (await pinging).protocol == 1

    run(daemon.endpoint, use)


def test_streams_side_by_side_do_not_mix(daemon: ScriptedDaemon) -> None:
    async def read(client: AsyncClient, text: str) -> str:
        stream = client.stream(text)
        heard = "".join([chunk.samples.decode("utf-16-le") async for chunk in stream])
        assert stream.done is not None
        assert stream.done.chunks == len(text)
        return heard

    async def use(client: AsyncClient) -> None:
        texts = [str(n) * 200 for n in range(5)]
        assert await asyncio.gather(*(read(client, text) for text in texts)) == texts

    run(daemon.endpoint, use)


def test_events_are_shown_and_jobs_waited_for(daemon: ScriptedDaemon) -> None:
    async def use(client: AsyncClient) -> None:
        seen: list[Any] = []
        assert (await client.speak("hello", on_event=seen.append)).audio == b"hello"
        assert [type(event).__name__ for event in seen] == ["Accepted", "Started"]
        job = await client.submit("later")
        first, second = await asyncio.gather(client.wait(job), client.wait(job))
        assert first.audio == second.audio == b"later"
        assert await client.jobs() == []
        assert await client.cancel(job) == "cancelled"

    run(daemon.endpoint, use)


def test_a_task_that_is_cancelled_cancels_its_job(daemon: ScriptedDaemon) -> None:
    daemon.script = accept_only

    async def use(client: AsyncClient) -> None:
        accepted = asyncio.Event()
        task = asyncio.create_task(client.speak("long", on_event=lambda _: accepted.set()))
        await asyncio.wait_for(accepted.wait(), PATIENCE_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await asked(daemon, Cancel)).job == "j1"

    run(daemon.endpoint, use)


def test_a_timeout_cancels_the_job(daemon: ScriptedDaemon) -> None:
    daemon.script = accept_only

    async def use(client: AsyncClient) -> None:
        with pytest.raises(Timeout):
            await client.speak("long", timeout=0.1)
        assert (await asked(daemon, Cancel)).job == "j1"

    run(daemon.endpoint, use)


def endless(daemon: ScriptedDaemon, peer: bytes, request: Request, body: bytes) -> None:
    if isinstance(request, Synthesize) and request.stream:
        daemon.send(peer, accepted("j1", request.id))
        for seq in range(3):
            daemon.send(peer, audio("j1", request.id, seq), bytes(9_600))
    else:
        speak_at_once(daemon, peer, request, body)


@pytest.mark.parametrize("leave", ["break", "with"])
def test_a_stream_left_early_is_cancelled(daemon: ScriptedDaemon, leave: str) -> None:
    daemon.script = endless

    async def use(client: AsyncClient) -> None:
        if leave == "break":
            async for _ in client.stream("long"):
                break
        else:
            async with client.stream("long") as stream:
                assert stream.job is not None
                assert len((await anext(stream)).samples) == 9_600
        assert (await asked(daemon, Cancel)).job == "j1"

    run(daemon.endpoint, use)


def test_a_stream_left_before_its_acceptance_is_cancelled_though_no_other_call_follows(daemon: ScriptedDaemon) -> None:
    peers: list[tuple[bytes, str]] = []
    daemon.script = lambda _, peer, request, __: peers.append((peer, request.id))

    async def use(client: AsyncClient) -> None:
        task = asyncio.create_task(anext(client.stream("long")))
        await asked(daemon, Synthesize)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        ((peer, id),) = peers
        daemon.send(peer, accepted("j1", id))
        assert (await asked(daemon, Cancel)).job == "j1"

    run(daemon.endpoint, use)


def test_a_wait_that_is_left_is_left_at_the_daemon_too(daemon: ScriptedDaemon) -> None:
    daemon.script = accept_only

    async def use(client: AsyncClient) -> None:
        task = asyncio.create_task(client.wait("j1", on_behalf_of="anna"))
        wait = await asked(daemon, Wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        client.leave("j1", on_behalf_of="anna")
        assert (await asked(daemon, Leave)).request == wait.id

    run(daemon.endpoint, use)


def test_an_unread_stream_does_not_fill_the_memory_while_other_requests_go_on(
    daemon: ScriptedDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange_module, "MAX_UNREAD_BYTES", 20_000)
    daemon.script = endless

    async def use(client: AsyncClient) -> None:
        async with client.stream("long") as stream:
            assert (await client.speak("hi")).audio == b"hi"
            with pytest.raises(SlowConsumer):
                async for _ in stream:
                    pass
        assert (await asked(daemon, Cancel)).job == "j1"

    run(daemon.endpoint, use)


def test_jobs_go_on_over_a_restart_of_the_daemon(daemon: ScriptedDaemon) -> None:
    daemon.script = accept_only

    def second_life(daemon: ScriptedDaemon, peer: bytes, request: Request, _: bytes) -> None:
        if isinstance(request, Wait) and request.job == "j1":
            daemon.send(peer, done("j1", request.id), b"survived")
        else:
            daemon.send(peer, events.Error.of(request.id, ErrorCode.JOB_NOT_FOUND, "no such job"))

    async def use(client: AsyncClient) -> None:
        known, unknown = await client.submit("a"), await client.submit("b")
        waiting = [asyncio.create_task(client.wait(job)) for job in (known, unknown)]
        await asyncio.to_thread(daemon.stop)
        daemon.script = second_life
        await asyncio.to_thread(daemon.start)
        speech, lost = await asyncio.gather(*waiting, return_exceptions=True)
        assert speech.audio == b"survived"  # type: ignore[union-attr]
        assert isinstance(lost, ConnectionLost)

    run(daemon.endpoint, use)


def test_closing_ends_what_is_still_waited_for(daemon: ScriptedDaemon) -> None:
    daemon.script = accept_only

    async def use(client: AsyncClient) -> None:
        task = asyncio.create_task(client.speak("long"))
        await asked(daemon, Synthesize)
        await client.close()
        with pytest.raises(GlmttsError, match="closed"):
            await task
        with pytest.raises(GlmttsError, match="closed"):
            await client.ping()

    run(daemon.endpoint, use)
