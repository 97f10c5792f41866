"""A client that was stopped over its timeout, as by a suspend or ``docker pause``, still gets what came meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from glmtts.protocol.requests import Synthesize

from .scripted_daemon import DEADLINE_S, ScriptedDaemon, accept_only, done

SYNC = """
import sys
from glmtts.client import Client
with Client(sys.argv[1]) as client:
    print(client.speak("hello", timeout=1.0).audio.decode())
"""
ASYNC = """
import asyncio, sys
from glmtts.client import AsyncClient
async def main():
    async with AsyncClient(sys.argv[1]) as client:
        print((await client.speak("hello", timeout=1.0)).audio.decode())
asyncio.run(main())
"""


@pytest.mark.parametrize("code", [SYNC, ASYNC], ids=["sync", "async"])
def test_an_answer_that_came_while_the_client_was_stopped_is_no_timeout(daemon: ScriptedDaemon, code: str) -> None:
    daemon.script = accept_only
    client = subprocess.Popen([sys.executable, "-c", code, daemon.endpoint], stdout=subprocess.PIPE, text=True)
    peer, request, _ = daemon.next()
    assert isinstance(request, Synthesize)
    os.kill(client.pid, signal.SIGSTOP)
    daemon.send(peer, done("j1", request.id, b"came meanwhile"), b"came meanwhile")
    time.sleep(1.7)
    os.kill(client.pid, signal.SIGCONT)
    assert client.communicate(timeout=DEADLINE_S)[0].strip() == "came meanwhile"
