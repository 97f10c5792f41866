"""Clients by TCP: their identity, their rights, and the errors that explain a refused connection."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from glmtts.client import AsyncClient, Client, Forbidden, HandshakeFailed
from glmtts.protocol import keys

from ..support.tcp import LOOPBACK, Lock, by_tcp
from .conftest import Daemon, Peer, Start
from .glmttsctl import ctl, told

SLOW: dict[str, Any] = {"seconds": 20.0, "rtf": 1.0}


@pytest.fixture
def lock(tmp_path: Path) -> Lock:
    return Lock(tmp_path)


@contextlib.contextmanager
def peer(daemon: Daemon, **options: Any) -> Iterator[Peer]:
    """A socket of a client that knows ZeroMQ alone, at the TCP endpoint."""
    local = daemon.endpoint
    daemon.endpoint = by_tcp(daemon)
    try:
        made = daemon.client(**options)
    finally:
        daemon.endpoint = local
    with contextlib.closing(made):
        yield made


# --- speech


@pytest.fixture(scope="module")
def shared_lock(tmp_path_factory: pytest.TempPathFactory) -> Lock:
    lock = Lock(tmp_path_factory.mktemp("keys"))
    lock.admit("alice", "bob", "root", "gate")
    return lock


@pytest.fixture(scope="module")
def daemon(start_shared: Start, shared_lock: Lock) -> Daemon:
    return start_shared(
        tcp=shared_lock.tcp,
        limits={"gateways": ["key:gate", "root"], "send_buffer_mib": 4},
        queue={"classes": {"vip": {"users": ["root", "0", "key:alice"]}}},
    )


def test_speech_is_the_same_from_afar_whole_and_streamed(daemon: Daemon, shared_lock: Lock) -> None:
    with Client(daemon.endpoint, timeout=20) as near, Client(by_tcp(daemon), 20, **shared_lock.of("alice")) as far:
        whole = far.speak("one and the same")
        assert whole.sha256 == near.speak("one and the same").sha256 and whole.audio[:4] == b"RIFF"
        with far.stream("one and the same", options={"seconds": 3.0}) as stream:
            chunks = list(stream)
        assert len(chunks) > 1 and stream.done is not None
        assert stream.done.sha256 == near.speak("one and the same", options={"seconds": 3.0}, format="pcm_s16le").sha256


def test_asyncio_programs_speak_from_afar_with_keys_in_files(daemon: Daemon, shared_lock: Lock, tmp_path: Path) -> None:
    keys.write(tmp_path / "alice.key", shared_lock.key("alice"), mode=0o600, replace=False)
    (tmp_path / "server.pub").write_text(f"# the daemon's\n{shared_lock.server_key}\n")

    async def speak() -> bytes:
        files: dict[str, Any] = {"server_key": tmp_path / "server.pub", "secret_key": tmp_path / "alice.key"}
        async with AsyncClient(by_tcp(daemon), 20, **files) as client:
            return (await client.speak("hello")).audio

    assert asyncio.run(speak())[:4] == b"RIFF"


def test_a_recording_of_the_largest_size_arrives(daemon: Daemon, shared_lock: Lock, tmp_path: Path) -> None:
    import numpy
    import soundfile

    noise = numpy.random.default_rng(1).integers(-9000, 9000, (48_000 * 29, 2), dtype=numpy.int16)
    soundfile.write(tmp_path / "noise.wav", noise, 48_000, subtype="PCM_24")
    recording = (tmp_path / "noise.wav").read_bytes()
    assert len(recording) > 8_000_000
    with Client(by_tcp(daemon), 30, **shared_lock.of("alice")) as client:
        speech = client.speak("hello", prompt=recording, prompt_text="noise")
        assert speech.sha256 != client.speak("hello").sha256


def test_glmttsctl_speaks_with_keys_from_the_environment(daemon: Daemon, shared_lock: Lock, tmp_path: Path) -> None:
    server = {"GLMTTS_ENDPOINT": by_tcp(daemon), "GLMTTS_SERVER_KEY": shared_lock.server_key}
    done = ctl(daemon, "say", "hello", "-o", tmp_path / "a.wav", **server, GLMTTS_SECRET_KEY=shared_lock.key("alice"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.wav").read_bytes()[:4] == b"RIFF"
    done = ctl(daemon, "ping", **server)
    assert done.returncode == 1 and "GLMTTS_SECRET_KEY" in done.stderr


# --- identities and rights


def test_a_key_does_not_see_or_end_the_jobs_of_another_key(daemon: Daemon, shared_lock: Lock) -> None:
    with peer(daemon, **shared_lock.curve("alice")) as alice, peer(daemon, **shared_lock.curve("bob")) as bob:
        job = alice.until(alice.send("synthesize", text="mine", options=SLOW), "started")["job"]
        for op in ("job", "cancel", "wait"):
            assert bob.refused(op, job=job)["code"] == "job_not_found"
        assert bob.ask("jobs")["jobs"] == []
        with peer(daemon, **shared_lock.curve("alice")) as again:
            assert [j["job"] for j in again.ask("jobs", state="running")["jobs"]] == [job]
            assert again.ask("cancel", job=job)["state"] == "cancelled"


def test_a_key_that_is_called_root_has_none_of_its_rights(daemon: Daemon, shared_lock: Lock) -> None:
    with peer(daemon, **shared_lock.curve("root")) as client:
        assert client.refused("synthesize", text="hello", priority="vip")["code"] == "forbidden"
        assert client.refused("synthesize", text="hello", on_behalf_of="anna")["code"] == "forbidden"


def test_keys_that_the_configuration_names_have_their_rights(daemon: Daemon, shared_lock: Lock) -> None:
    with peer(daemon, **shared_lock.curve("alice")) as alice, peer(daemon, **shared_lock.curve("gate")) as gate:
        alice.speak(priority="vip")
        gate.speak(on_behalf_of="anna")
        assert gate.refused("synthesize", text="hello", priority="vip")["code"] == "forbidden"
        assert alice.refused("synthesize", text="hello", on_behalf_of="anna")["code"] == "forbidden"
        found = daemon.control("jobs")["jobs"]
        assert any(re.fullmatch(r"curve:[0-9a-f]{64}/anna", job["client"]) for job in found)


def test_operators_requests_are_not_for_those_from_afar(daemon: Daemon, shared_lock: Lock) -> None:
    local = daemon.client()
    with peer(daemon, **shared_lock.curve("alice")) as far:
        for op in ("status", "workers", "stop", "reload", "recycle", "drain", "quarantine", "voice_remove"):
            answers = [{k: v for k, v in p.refused(op).items() if k != "id"} for p in (far, local)]
            assert answers[0] == answers[1] and answers[0]["code"] in ("bad_request", "forbidden"), op
    assert daemon.process.poll() is None


def test_a_key_has_one_rate_over_all_connections_and_identities(start: Start, lock: Lock) -> None:
    lock.admit("alice", "bob")
    daemon = start(tcp=lock.tcp, limits={"rate": "3/hour"})
    with peer(daemon, **lock.curve("alice")) as first, peer(daemon, **lock.curve("alice")) as second:
        first.speak()
        second.speak()
    with peer(daemon, ROUTING_ID=b"one", **lock.curve("alice")) as third:
        third.speak()
        assert third.refused("synthesize", text="once more")["code"] == "rate_limited"
    with peer(daemon, ROUTING_ID=b"another", **lock.curve("alice")) as fourth:
        assert fourth.refused("synthesize", text="once more")["code"] == "rate_limited"
    # The daemon may not have noticed yet that "one" is free.
    with peer(daemon, ROUTING_ID=b"third", **lock.curve("bob")) as bob:
        bob.speak()


# --- the door


def soon(seconds: float = 20.0) -> Any:
    """The block takes no longer than this: no client waits for a connection that is refused."""

    @contextlib.contextmanager
    def clock() -> Iterator[None]:
        began = time.monotonic()
        yield
        assert time.monotonic() - began < seconds

    return clock()


def test_a_refused_client_learns_the_reason_soon(daemon: Daemon, shared_lock: Lock) -> None:
    endpoint = by_tcp(daemon)
    with soon(), Client(endpoint, **shared_lock.of("mallory")) as client:
        with pytest.raises(Forbidden, match=f"key add NAME '{re.escape(shared_lock.pairs['mallory'][0])}'"):
            client.ping()
        with pytest.raises(Forbidden):  # not only the first time
            client.ping()
    wrong: dict[str, Any] = {"server_key": keys.generate()[0], "secret_key": shared_lock.key("alice")}
    with soon(), Client(endpoint, **wrong) as client, pytest.raises(HandshakeFailed, match="GLMTTS_SERVER_KEY"):
        client.ping()
    with soon(), Client(endpoint) as client, pytest.raises(HandshakeFailed, match=r"encrypted.*GLMTTS_SECRET_KEY"):
        client.ping()

    async def asynchronous() -> None:
        async with AsyncClient(endpoint, **shared_lock.of("mallory")) as client:
            await client.speak("hello")

    with soon(), pytest.raises(Forbidden):
        asyncio.run(asynchronous())


@pytest.mark.parametrize(
    "options",
    [{}, {"PLAIN_USERNAME": b"root", "PLAIN_PASSWORD": b"root"}, "unknown", "wrong server"],
    ids=str,
)
def test_a_connection_without_a_good_key_is_refused(daemon: Daemon, shared_lock: Lock, options: Any) -> None:
    if isinstance(options, str):
        kind, options = options, shared_lock.curve("mallory" if options == "unknown" else "alice")
        if kind == "wrong server":
            options["CURVE_SERVERKEY"] = keys.generate()[0].encode()
    stranger: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    with contextlib.closing(stranger):
        stranger.linger = 0
        for name, value in options.items():
            stranger.set(getattr(zmq, name), value)
        # Before it connects: some are turned away once, and do not try again.
        monitor = stranger.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_AUTH
        )
        with contextlib.closing(monitor):
            stranger.connect(by_tcp(daemon))
            assert monitor.poll(20_000), "neither in nor out"
            event = int.from_bytes(monitor.recv_multipart()[0][:2], sys.byteorder)
            assert event != zmq.EVENT_HANDSHAKE_SUCCEEDED
            stranger.disable_monitor()
    with Client(by_tcp(daemon), 20, **shared_lock.of("alice")) as client:
        client.speak("still here")


def test_a_flood_of_strangers_does_not_fill_the_log(start: Start, lock: Lock) -> None:
    lock.admit("alice")
    daemon = start(tcp=lock.tcp)
    before = daemon.status()["tcp"]["keys_refused"]
    with contextlib.ExitStack() as stack:
        for number in range(40):
            stack.enter_context(peer(daemon, **lock.curve(f"stranger-{number}")))
        daemon.until(lambda: daemon.status()["tcp"]["keys_refused"] >= before + 40, "all were refused")
    assert daemon.log().count("client refused") < 5
    with Client(by_tcp(daemon), 20, **lock.of("alice")) as client:
        client.speak("still here")


# --- keys that come and go


def test_a_key_that_is_removed_is_out_at_the_reload_and_one_that_is_added_is_in(start: Start, lock: Lock) -> None:
    lock.admit("alice", "bob")
    daemon = start(tcp=lock.tcp)
    endpoint = by_tcp(daemon)
    with (
        Client(endpoint, 20, **lock.of("alice")) as alice,
        Client(endpoint, 20, **lock.of("bob")) as bob,
        peer(daemon, **lock.curve("alice")) as silent,
    ):
        job = alice.submit("long", options={"seconds": 1.0, "rtf": 1.0})
        kept = bob.submit("after it")
        lock.admit("bob", "carol")
        assert daemon.control("reload")["event"] == "result"
        with soon(), pytest.raises(Forbidden):
            alice.wait(job)
        silent.send("synthesize", text="not heard")
        daemon.until(lambda: daemon.status()["tcp"]["keys_refused"] >= 2, "both were refused")
        with Client(endpoint, 20, **lock.of("carol")) as carol:
            carol.speak("new", timeout=60)
        assert bob.wait(kept, timeout=60).audio
        assert not any(j["state"] == "waiting" for j in daemon.control("jobs")["jobs"])


def test_an_operator_lets_a_client_in_and_out_by_one_command_each(start: Start, lock: Lock) -> None:
    daemon = start(tcp=lock.tcp)
    reload = ["--reload", "--config", daemon.file]
    secret = lock.folder / "alice.key"
    told(daemon, "key", "new", "alice", "--authorise", "--out", secret, *reload)
    with Client(by_tcp(daemon), 20, server_key=lock.server_key, secret_key=secret) as client:
        client.speak("in")
        told(daemon, "key", "remove", "alice", *reload)
        with soon(), pytest.raises(Forbidden):
            while True:  # until it has heard that its connection is gone
                client.ping()


def test_by_tcp_health_says_what_it_can_and_nothing_else(daemon: Daemon, shared_lock: Lock) -> None:
    far = {"GLMTTS_ENDPOINT": by_tcp(daemon), "GLMTTS_SERVER_KEY": shared_lock.server_key}
    far["GLMTTS_SECRET_KEY"] = shared_lock.key("alice")
    assert ctl(daemon, "health", "--live", **far).stdout == "alive: yes\n"
    ready = ctl(daemon, "health", "--ready", **far)
    assert (ready.returncode, ready.stdout) == (1, "")


def test_a_list_with_a_bad_line_changes_nothing_and_names_it(start: Start, lock: Lock) -> None:
    lock.admit("alice")
    daemon = start(tcp=lock.tcp)
    with Client(by_tcp(daemon), 20, **lock.of("alice")) as alice:
        lock.authorised.write_text("# no key\nnot-a-key bob\n")
        refused = daemon.control("reload")
        assert (
            refused["event"] == "error" and f"{lock.authorised}:2: 'not-a-key' is no public key" in refused["message"]
        )
        alice.speak("still in")
    with Client(by_tcp(daemon), 20, **lock.of("alice")) as again:
        again.speak("and in again")
    lock.authorised.write_text("# no key\n")
    assert daemon.control("reload")["event"] == "result"
    daemon.until_logged("no client can connect by TCP")


def test_a_daemon_that_starts_again_finds_its_clients_again(start: Start, lock: Lock) -> None:
    lock.admit("alice")
    daemon = start(tcp=lock.tcp)
    port = by_tcp(daemon).rpartition(":")[2]
    with Client(by_tcp(daemon), 20, **lock.of("alice")) as alice:
        alice.speak("before")
        daemon.stop()
        daemon.configure({"tcp": lock.tcp | {"listen": f"127.0.0.1:{port}"}})
        daemon.restart()
        alice.ping()  # it was idle: that the daemon is another one, it learns by this
        alice.speak("after")


# --- without encryption


def test_programs_of_this_machine_need_no_keys_and_have_no_special_rights(start: Start) -> None:
    daemon = start(tcp={"listen": LOOPBACK}, queue={"classes": {"vip": {"users": ["root", "tcp", "127.0.0.1"]}}})
    with Client(by_tcp(daemon), 20) as client:
        assert client.speak("hello").audio[:4] == b"RIFF"
        with pytest.raises(Forbidden):
            client.speak("hello", priority="vip")
        job = daemon.control("jobs")["jobs"][0]
        assert job["client"] == "tcp:127.0.0.1"
    public, secret = keys.generate()
    with (
        soon(),
        Client(by_tcp(daemon), server_key=public, secret_key=secret) as client,
        pytest.raises(HandshakeFailed, match="leave its keys out"),
    ):
        client.ping()


def test_ipv6_is_served_too(start: Start, lock: Lock) -> None:
    lock.admit("alice")
    daemon = start(tcp=lock.tcp | {"listen": "[::]:0"})
    port = by_tcp(daemon).rpartition(":")[2]
    for host in ("[::1]", "127.0.0.1"):
        with Client(f"tcp://{host}:{port}", 20, **lock.of("alice")) as client:
            client.ping()


def failed_start(start: Start, status: int, **tcp: str) -> str:
    daemon = start(tcp=tcp, wait=False)
    assert daemon.process.wait(20) == status, daemon.log()
    return str(daemon.log())


def test_nothing_listens_beyond_this_machine_without_encryption(start: Start) -> None:
    said = failed_start(start, 78, listen="0.0.0.0:0")
    assert "server.key" in said and "unencrypted" in said and "glmttsctl key server" in said


def test_an_address_that_is_taken_is_said_at_the_start(start: Start) -> None:
    daemon = start(tcp={"listen": LOOPBACK})
    said = failed_start(start, 69, listen=by_tcp(daemon).removeprefix("tcp://"))
    assert "Address already in use" in said and "[tcp] listen" in said


# --- memory

STOPPED_AFTER_ASKING = """
import os, signal, sys, zmq, msgpack
from glmtts.protocol import keys
endpoint, job, server, secret, count = sys.argv[1:6]
context, sockets = zmq.Context(), []
for _ in range(int(count)):
    socket = context.socket(zmq.DEALER)
    socket.rcvhwm = 1
    socket.curve_serverkey, socket.curve_secretkey = server.encode(), secret.encode()
    socket.curve_publickey = keys.public_of(secret).encode()
    socket.connect(endpoint)
    for op in ({"op": "ping"}, {"op": "wait", "job": job, "events": "final"}):
        socket.send(msgpack.packb({"v": 1, "id": op["op"]} | op))
    socket.recv()
    sockets.append(socket)
os.kill(os.getpid(), signal.SIGSTOP)
"""


def test_clients_that_do_not_read_take_no_memory_from_others(start: Start, lock: Lock) -> None:
    """ZeroMQ holds an encrypted copy of the result for each of them, which it can't share nor take back."""
    lock.admit("alice", "bob")
    daemon = start(tcp=lock.tcp, limits={"send_buffer_mib": 32})
    endpoint = by_tcp(daemon)
    with Client(endpoint, 60, **lock.of("alice")) as alice:
        # 13 MB, more than the kernel takes for a client that does not read.
        daemon.control("pause")
        job = alice.submit("big", format="pcm_f32le", options={"seconds": 140.0})
        arguments = [endpoint, job.id, lock.server_key, lock.key("alice"), "20"]
        stopped = subprocess.Popen([sys.executable, "-c", STOPPED_AFTER_ASKING, *arguments])
        try:
            os.waitid(os.P_PID, stopped.pid, os.WSTOPPED)
            before = daemon.rss_mib
            daemon.control("resume")
            assert len(alice.wait(job).audio) > 13_000_000
            with Client(endpoint, 60, **lock.of("bob")) as bob:
                assert len(bob.speak("another", format="pcm_f32le", options={"seconds": 140.0}).audio) > 13_000_000
            assert daemon.rss_mib < before + 130, "20 copies would be 256 MiB"
        finally:
            stopped.kill()
            stopped.wait()
