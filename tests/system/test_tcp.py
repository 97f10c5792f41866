"""TCP over minutes and from another language: a vanished client is noticed, a slow reader is not mistaken for one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from glmtts.client import Client

from ..process.conftest import Start
from ..support.tcp import Lock, by_tcp

#: The client of README.md, with the keys from the environment.
NODE_CLIENT = """
import { Dealer } from "zeromq"
import { encode, decode } from "@msgpack/msgpack"
import { writeFileSync } from "node:fs"

const socket = new Dealer({
  curveServerKey: process.env.SERVER_KEY,
  curvePublicKey: process.env.PUBLIC_KEY,
  curveSecretKey: process.env.SECRET_KEY,
})
socket.connect(process.env.ENDPOINT)
await socket.send(encode({ v: 1, op: "synthesize", id: "a1", text: "hello" }))
for await (const [header, audio] of socket) {
  const event = decode(header)
  if (event.event === "error") throw new Error(event.message)
  if (event.event === "done") { writeFileSync("a.wav", audio); break }
}
socket.close()
"""

STOPS_ITSELF = """
import os, signal, sys
from glmtts.client import Client
client = Client(sys.argv[1], timeout=20)
client.submit("goes on without its client", options={"seconds": 0.2})
with client.stream("is cancelled without its client", options={"seconds": 600.0, "rtf": 1.0}) as stream:
    next(stream)
    os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.fixture
def lock(tmp_path: Path) -> Lock:
    made = Lock(tmp_path)
    made.admit("alice", "node")
    return made


@pytest.mark.timeout(150)
def test_a_client_that_vanishes_without_a_word_is_noticed_within_a_minute(start: Start, lock: Lock) -> None:
    daemon = start(tcp=lock.tcp)
    endpoint = by_tcp(daemon)
    environment = os.environ | {"GLMTTS_SERVER_KEY": lock.server_key, "GLMTTS_SECRET_KEY": lock.key("alice")}
    # Stopped, it is as silent as a host without power, and its side of the connection stays open.
    process = subprocess.Popen([sys.executable, "-c", STOPS_ITSELF, endpoint], env=environment)
    try:
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        assert daemon.status()["tcp"]["connections"] == 1
        daemon.until(lambda: daemon.status()["tcp"]["connections"] == 0, "it is noticed", patience_s=60.0)
        daemon.until(lambda: not daemon.control("jobs", state="running")["jobs"], "its stream is cancelled")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.timeout(200)
def test_a_client_that_reads_at_the_speed_of_speech_gets_the_whole_stream(start: Start, lock: Lock) -> None:
    daemon = start(tcp=lock.tcp)
    with Client(by_tcp(daemon), 20, **lock.of("alice")) as client:
        # Made at once, in pieces of half a second; read so slowly that it takes longer than silence may last.
        with client.stream("long", options={"seconds": 15.0}) as stream:
            read = 0
            for _ in stream:
                read += 1
                time.sleep(3.0)
        assert read == 30 and stream.done is not None
        assert client.jobs()[0].state == "done"


@pytest.mark.timeout(300)
def test_a_program_in_node_speaks_with_curve(start: Start, lock: Lock, tmp_path: Path) -> None:
    if not shutil.which("npm") or not shutil.which("node"):
        pytest.skip("there is no npm here, which fetches Node's zeromq")
    folder = tmp_path / "node"
    folder.mkdir()
    npm = ["npm", "install", "--no-audit", "--no-fund", "zeromq@6", "@msgpack/msgpack@3"]
    fetched = subprocess.run(npm, cwd=folder, capture_output=True, text=True, timeout=180, check=False)
    if fetched.returncode:
        pytest.skip(f"npm can't fetch Node's zeromq: {fetched.stderr.strip()[-200:]}")
    daemon = start(engine={"name": "espeak"}, tcp=lock.tcp)
    (folder / "speak.mjs").write_text(NODE_CLIENT)
    public, secret = lock.pairs["node"]
    more = {"ENDPOINT": by_tcp(daemon), "SERVER_KEY": lock.server_key, "PUBLIC_KEY": public, "SECRET_KEY": secret}
    command = ["node", "speak.mjs"]
    spoken = subprocess.run(
        command, cwd=folder, env=os.environ | more, capture_output=True, text=True, timeout=60, check=False
    )
    assert spoken.returncode == 0, spoken.stderr
    assert (folder / "a.wav").read_bytes()[:4] == b"RIFF"
    assert daemon.control("jobs")["jobs"][0]["client"].startswith("curve:")
