"""A runtime folder that is removed, replaced or taken in use: clients find the daemon, or its log says why not."""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import zmq

from glmtts.daemon.log.logger import Logger
from glmtts.daemon.transport.listeners import RuntimeDir, RuntimeDirError, TakenError

NAME = "glmtts.sock"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


class Rig:
    """A runtime folder with one socket, which answers each message with itself."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = Logger(fd=os.open(os.devnull, os.O_WRONLY), journal=False)
        self.runtime = RuntimeDir(folder)
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.USE_FD, self.runtime.listen(NAME, 0o660))
        self.socket.bind(self.runtime.endpoint(NAME))
        self._clients: list[zmq.Socket[bytes]] = []

    def restore(self) -> str:
        return self.runtime.restore({NAME: self.socket}, self.log)

    def connect(self) -> zmq.Socket[bytes]:
        client = self.context.socket(zmq.DEALER)
        client.connect(self.runtime.endpoint(NAME))
        self._clients.append(client)
        return client

    def serves(self, client: zmq.Socket[bytes]) -> bool:
        client.send(b"hello")
        if not self.socket.poll(2_000):
            return False
        self.socket.send_multipart(self.socket.recv_multipart())
        return bool(client.poll(2_000)) and client.recv() == b"hello"

    def close(self) -> None:
        if self.context.closed:
            return
        self.runtime.close()
        for socket in (self.socket, *self._clients):
            socket.close(0)
        self.context.term()
        self.log.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    # Not the name of the test: the path of a socket has 107 bytes at most.
    with closing(Rig(tmp_path.parent / f"r{os.urandom(3).hex()}")) as rig:
        yield rig


def is_refused(rig: Rig, words: str, kind: type[RuntimeDirError] = RuntimeDirError) -> None:
    for _ in range(2):
        with pytest.raises(kind, match=words):
            rig.restore()


@pytest.mark.parametrize("remove", [lambda rig: shutil.rmtree(rig.folder), lambda rig: (rig.folder / NAME).unlink()])
def test_a_removed_folder_is_made_again_and_old_and_new_clients_are_served(
    rig: Rig, remove: Callable[[Rig], None]
) -> None:
    before = rig.connect()
    assert rig.serves(before)
    remove(rig)
    assert rig.serves(before)
    assert rig.restore() == ""
    assert rig.serves(before) and rig.serves(rig.connect())
    assert stat.S_IMODE((rig.folder / NAME).stat().st_mode) == 0o660
    # Nothing more to do, so nothing is done.
    inode = (rig.folder / NAME).stat().st_ino
    assert rig.restore() == "" and (rig.folder / NAME).stat().st_ino == inode
    with pytest.raises(RuntimeDirError, match=f"pid {os.getpid()}"):
        RuntimeDir(rig.folder)


def test_the_folder_has_the_mode_again_that_a_service_manager_gave_it(tmp_path: Path) -> None:
    folder = tmp_path.parent / f"r{os.urandom(3).hex()}"
    folder.mkdir()
    folder.chmod(0o710)
    with closing(Rig(folder)) as rig:
        shutil.rmtree(folder)
        old = os.umask(0o077)
        try:
            rig.restore()
        finally:
            os.umask(old)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o710


def test_a_lock_that_is_something_else_is_named_and_clients_find_the_daemon(rig: Rig) -> None:
    (rig.folder / "lock").unlink()
    (rig.folder / "lock").mkdir()
    is_refused(rig, "lock: Is a directory")
    assert rig.runtime.can_be_found and rig.serves(rig.connect())
    (rig.folder / NAME).unlink()
    assert not rig.runtime.can_be_found


def test_others_can_t_write_to_the_folder_for_long_and_a_stricter_mode_stays(rig: Rig) -> None:
    for mode, then in ((0o777, 0o755), (0o700, 0o700), (0o000, 0o700)):
        rig.folder.chmod(mode)
        rig.restore()
        assert stat.S_IMODE(rig.folder.stat().st_mode) == then


def test_nothing_is_put_where_the_folder_is_something_else(rig: Rig, tmp_path: Path) -> None:
    shutil.rmtree(rig.folder)
    rig.folder.write_text("a file")
    is_refused(rig, "not a folder")
    rig.folder.unlink()
    rig.folder.symlink_to(tmp_path)
    is_refused(rig, "not a folder")
    assert not list(tmp_path.iterdir())
    rig.folder.unlink()
    assert rig.restore() == "" and rig.serves(rig.connect())


@as_root
def test_nothing_is_put_into_a_folder_of_another_user(rig: Rig) -> None:
    shutil.rmtree(rig.folder)
    rig.folder.mkdir()
    os.chown(rig.folder, 65_534, 65_534)
    is_refused(rig, "belongs to user 65534")
    assert not list(rig.folder.iterdir())
    shutil.rmtree(rig.folder)
    assert rig.restore() == "" and rig.serves(rig.connect())


def test_a_folder_whose_parent_is_gone_is_waited_for(tmp_path: Path) -> None:
    parent = tmp_path.parent / f"p{os.urandom(3).hex()}"
    with closing(Rig(parent / "r")) as rig:
        shutil.rmtree(parent)
        is_refused(rig, "No such file")
        assert not parent.exists()
        parent.mkdir()
        assert rig.restore() == "" and rig.serves(rig.connect())


@pytest.mark.parametrize("folder", [True, False])
def test_sockets_of_a_daemon_that_took_the_folder_are_left_alone(rig: Rig, folder: bool) -> None:
    if folder:
        rig.folder.rename(rig.folder.with_name(f"{rig.folder.name}.old"))
        rig.folder.mkdir()
    else:
        (rig.folder / "lock").unlink()
    lock = os.open(rig.folder / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.write(lock, b"4711\n")
    (rig.folder / NAME).unlink(missing_ok=True)
    (rig.folder / NAME).write_text("of another daemon")
    is_refused(rig, "pid 4711.*kill 4711", TakenError)
    rig.close()
    assert (rig.folder / NAME).read_text() == "of another daemon"
    os.close(lock)


def test_a_daemon_that_starts_while_the_folder_of_another_is_gone_says_which_process_it_is(rig: Rig) -> None:
    shutil.rmtree(rig.folder)
    second = RuntimeDir(rig.folder)
    with pytest.raises(RuntimeDirError, match=rf"pid {os.getpid()}\).*was removed.*kill {os.getpid()}"):
        second.listen(NAME, 0o600)
    second.close()
    # What it has left does not keep the first one from coming back.
    assert rig.restore() == "" and rig.serves(rig.connect())


def test_sockets_that_are_removed_again_and_again_don_t_use_up_the_descriptors(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (24, 24))
    for _ in range(3):
        (rig.folder / NAME).unlink()
        assert rig.restore() == ""
    (rig.folder / NAME).unlink()
    is_refused(rig, "descriptors.*restart the daemon")
