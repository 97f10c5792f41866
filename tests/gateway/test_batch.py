"""Batches against a scripted daemon."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from glmtts.client import AsyncClient
from glmtts.gateway.batch import BatchRequest, _Batch
from glmtts.gateway.customers import Customer
from glmtts.gateway.settings import Settings
from glmtts.protocol import codec
from glmtts.protocol.requests import Cancel, Synthesize

from ..client.scripted_daemon import ScriptedDaemon, accept_only


def test_a_batch_that_is_left_keeps_nothing_of_its_jobs(tmp_path: Path) -> None:
    daemon = ScriptedDaemon(tmp_path / "glmtts.sock", codec.decode_request)
    daemon.script = accept_only
    values: dict[str, Any] = {"items": [{"input": "a"}, {"input": "b"}]}

    async def use() -> None:
        async with AsyncClient(daemon.endpoint, timeout=10.0) as client:
            state = SimpleNamespace(client=client, settings=Settings())
            request = cast(Any, SimpleNamespace(app=SimpleNamespace(state=state), headers={}))
            batch = _Batch(request, Customer("anna", ("interactive",), False), values, BatchRequest(**values))
            answer = batch.told()
            await anext(answer)
            waiting = asyncio.ensure_future(anext(answer))
            for _ in values["items"]:
                await asyncio.to_thread(daemon.next_of, Synthesize)
            waiting.cancel()
            await asyncio.wait([waiting])
            for _ in values["items"]:
                await asyncio.to_thread(daemon.next_of, Cancel)
            while tasks := asyncio.all_tasks() - {cast(Any, asyncio.current_task())}:
                await asyncio.wait(tasks)
            assert client._made is not None
            assert not client._made.core.in_flight() and not client._made.core._by_job

    with contextlib.closing(daemon):
        asyncio.run(use())
