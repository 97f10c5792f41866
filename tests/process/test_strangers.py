"""Another user of the machine makes the folder or the socket of a user's daemon, and listens there."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from glmtts.client import Client, UntrustedDaemon
from glmtts.protocol import codec
from glmtts.protocol.endpoints import FoundEndpoint

from ..client.scripted_daemon import ScriptedDaemon

STRANGER = 65_534
GLMTTSCTL = str(Path(sys.executable).with_name("glmttsctl"))

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can run processes of two other users"),
]

#: Listens on the sockets in a folder, writes a byte when it does, and another for each message that it hears.
_LISTEN = """
import os, sys, zmq
os.umask(0)
folder, context, poller = sys.argv[1], zmq.Context(), zmq.Poller()
os.makedirs(folder, exist_ok=True)
for name, kind in (("glmtts.sock", zmq.ROUTER), ("control.sock", zmq.ROUTER), ("events.sock", zmq.XPUB)):
    listener = context.socket(kind)
    listener.bind(f"ipc://{folder}/{name}")
    poller.register(listener, zmq.POLLIN)
os.write(1, b"!")
while True:
    for ready, _ in poller.poll():
        ready.recv_multipart()
        os.write(1, b"h")
"""

#: Tries every class of the library.
_LIBRARY = """
import asyncio
from glmtts.client import AsyncClient, Client, Control, UntrustedDaemon, Watch
async def connect():
    async with AsyncClient() as client:
        await client.ping()
for attempt in (Client, Control, Watch, lambda: asyncio.run(connect())):
    try:
        attempt()
    except UntrustedDaemon as error:
        assert "belongs to user 65534" in str(error) and "GLMTTS_ENDPOINT" in str(error), error
    else:
        raise SystemExit("trusted")
"""


@functools.cache
def caps() -> tuple[str, ...]:
    """Options of setpriv with which another user can read this installation, wherever it is; skips without any."""
    for options in ((), ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")):
        with contextlib.suppress(OSError):
            may = subprocess.run(
                [*as_user(STRANGER, options), sys.executable, "-c", "import zmq, glmtts.client"], cwd="/", check=False
            )
            if may.returncode == 0:
                return options
    pytest.skip("other users can't run this installation")


def as_user(uid: int, options: tuple[str, ...] | None = None) -> list[str]:
    """The beginning of a command that runs as another user."""
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *(caps() if options is None else options)]


@contextlib.contextmanager
def stranger(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of another user that listens on every socket of ``folder``."""
    command = [*as_user(STRANGER), sys.executable, "-c", _LISTEN, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.read(1) == b"!"
        try:
            yield process
        finally:
            process.kill()


def heard(process: subprocess.Popen[bytes]) -> bytes:
    """All that a stranger has noted; ends it."""
    process.kill()
    assert process.stdout is not None
    return process.stdout.read()


@pytest.fixture
def victim() -> Iterator[int]:
    """The number of a user without a folder in /tmp."""
    uid = random.randrange(61_200, 64_000)
    yield uid
    shutil.rmtree(f"/tmp/glmtts-{uid}", ignore_errors=True)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder of root's that every user may enter, unlike pytest's."""
    folder = Path(tempfile.mkdtemp(prefix="glmtts-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def run(uid: int, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*as_user(uid), *command], capture_output=True, text=True, cwd="/", timeout=30, check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "LANG": "C.UTF-8"},
    )  # fmt: skip


@pytest.mark.skipif(Path("/run/glmtts/glmtts.sock").exists(), reason="this machine's own daemon would answer")
def test_no_client_sends_anything_to_a_folder_that_a_stranger_has_made(victim: int) -> None:
    with stranger(Path(f"/tmp/glmtts-{victim}")) as listener:
        for command in (["say", "a secret", "-o", "/dev/null"], ["status"], ["events"], ["health"], ["cancel", "a-1"]):
            done = run(victim, GLMTTSCTL, *command)
            assert done.returncode and f"belongs to user {STRANGER}" in done.stderr, (command, done)
        done = run(victim, sys.executable, "-c", _LIBRARY)
        assert done.returncode == 0, done
        assert heard(listener) == b""


def leave_a_file(folder: Path) -> None:
    folder.chmod(0o1777)
    (folder / "journal.db").touch()
    os.chown(folder / "journal.db", STRANGER, STRANGER)


def give_away(folder: Path) -> None:
    os.chown(folder, STRANGER, STRANGER)


@pytest.mark.parametrize(
    ("key", "spoil"),
    [
        ("runtime_dir", lambda folder: folder.chmod(0o777)),
        ("runtime_dir", give_away),
        ("state_dir", leave_a_file),
        ("state_dir", give_away),
    ],
)
def test_a_daemon_starts_with_no_folder_that_others_could_change(
    victim: int, open_folder: Path, key: str, spoil: Callable[[Path], None]
) -> None:
    folders = {"runtime_dir": open_folder / "run", "state_dir": open_folder / "state"}
    file = open_folder / "glmtts.toml"
    file.write_text("[daemon]\n" + "".join(f'{name} = "{folder}"\n' for name, folder in folders.items()))
    for folder in folders.values():
        folder.mkdir(mode=0o755)
        os.chown(folder, victim, victim)
    spoil(folders[key])
    done = run(victim, sys.executable, "-m", "glmtts.daemon.supervisor", "--config", str(file))
    assert done.returncode == 69 and str(folders[key]) in done.stderr and key in done.stderr, done


def test_a_process_of_a_stranger_is_not_trusted_in_the_best_of_folders(tmp_path: Path) -> None:
    path = tmp_path / "glmtts.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        # The kernel names the process that called listen().
        listen = "import socket, sys, time; socket.socket(fileno=int(sys.argv[1])).listen(); print(flush=True)"
        fd = listener.fileno()
        command = [*as_user(STRANGER), sys.executable, "-c", f"{listen}; time.sleep(60)", str(fd)]
        with subprocess.Popen(command, pass_fds=[fd], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            try:
                with pytest.raises(UntrustedDaemon, match=f"user {STRANGER} listens"):
                    Client(FoundEndpoint(f"ipc://{path}"))
            finally:
                process.kill()


def test_a_stranger_who_takes_the_place_of_a_daemon_that_went_away_gets_nothing(open_folder: Path) -> None:
    open_folder.chmod(0o1777)
    folder = open_folder / "run"
    folder.mkdir()

    daemon = ScriptedDaemon(folder / "glmtts.sock", codec.decode_request)
    with Client(FoundEndpoint(f"ipc://{folder}/glmtts.sock"), timeout=10.0) as client:
        client.ping()
        daemon.close()
        shutil.rmtree(folder)
        with stranger(folder) as listener:
            with pytest.raises(UntrustedDaemon, match=f"belongs to user {STRANGER}"):
                deadline = time.monotonic() + 20.0
                while time.monotonic() < deadline:
                    client.ping()
            assert heard(listener) == b""
