"""The daemon under a service manager: its notifications, and the socket that it inherits."""

from __future__ import annotations

import os
import signal
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ..support.systemd import Systemd
from .conftest import Daemon, Peer, Start


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    with closing(Systemd(str(tmp_path / "notify"))) as listening:
        yield listening


def test_a_service_is_ready_when_it_answers_and_says_when_its_workers_are(start: Start, systemd: Systemd) -> None:
    slow = {"name": "fault", "fault": {"start": "slow", "start_s": 1.0}}
    daemon = start(wait=False, engine=slow, environment={"NOTIFY_SOCKET": systemd.address})
    systemd.wait_for("READY=1")
    # Accepted at once, though no worker is ready yet.
    client = daemon.client()
    id = client.send("synthesize", text="early")
    assert client.next(id)[0]["event"] == "accepted"
    assert any(line.startswith("STATUS=0 of 1 worker ready") for line in systemd.seen)
    assert client.all(id)[0][-1]["event"] == "done"
    systemd.wait_for("STATUS=1 of 1 worker ready; 0 jobs running, 0 waiting")
    daemon.stop()
    systemd.wait_for("STOPPING=1")


def test_a_reload_is_notified_even_if_the_configuration_is_wrong(start: Start, systemd: Systemd) -> None:
    daemon = start(environment={"NOTIFY_SOCKET": systemd.address})
    systemd.wait_for("READY=1")
    for config in ({"queue": {"max_waiting": 7}}, {"queue": {"max_wating": 7}}):
        systemd.forget()
        daemon.configure(config)
        daemon.process.send_signal(signal.SIGHUP)
        systemd.wait_for("RELOADING=1")
        systemd.wait_for("READY=1")
    daemon.until(lambda: "the old one stays" in daemon.log(), "it is in the log")


def test_the_watchdog_is_fed_while_the_daemon_answers_itself_and_not_when_it_is_frozen(
    start: Start, systemd: Systemd
) -> None:
    daemon = start(environment={"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "300000"})
    for _ in range(5):
        systemd.forget()
        systemd.wait_for("WATCHDOG=1", 2.0)
    daemon.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, daemon.process.pid, os.WSTOPPED)
    # Sent before it was stopped.
    systemd.forget()
    with pytest.raises(AssertionError, match="not sent"):
        systemd.wait_for("WATCHDOG=1", 1.0)
    daemon.process.send_signal(signal.SIGCONT)
    systemd.wait_for("WATCHDOG=1", 2.0)
    assert daemon.status()["internal_errors"] == 0


def test_a_hung_loop_that_is_aborted_says_where_it_hung(start: Start) -> None:
    daemon = start()
    daemon.process.send_signal(signal.SIGABRT)
    assert daemon.process.wait(10) == -signal.SIGABRT
    daemon.until_nothing_is_left()
    assert "Fatal Python error: Aborted" in daemon.log() and "supervisor.py" in daemon.log()


# --- the inherited socket

#: Passes the descriptor $FD on, and becomes the daemon: LISTEN_PID is the process's own.
ACTIVATOR = """
import os, sys
os.dup2(int(os.environ["FD"]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execv(sys.argv[1], sys.argv[1:])
"""


def listening_at(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()
    path.chmod(0o600)
    return listener


def activate(daemon: Daemon, listener: socket.socket, name: str = "requests") -> None:
    """Start the daemon as systemd does, with the socket as descriptor 3."""
    daemon.environment |= {"LISTEN_FDNAMES": name, "FD": str(listener.fileno())}
    daemon.process = daemon.launch(through=[sys.executable, "-c", ACTIVATOR], pass_fds=(listener.fileno(),))


def test_a_request_sent_while_no_daemon_ran_is_answered_by_the_next(start: Start) -> None:
    daemon = start(daemon={"socket_mode": "0666"})
    daemon.stop()
    path = daemon.runtime / "glmtts.sock"
    with closing(listening_at(path)) as listener:
        inode = path.stat().st_ino
        for _ in range(2):
            with closing(Peer(daemon.endpoint)) as peer:
                id = peer.send("synthesize", text="early")
                activate(daemon, listener)
                assert peer.all(id)[0][-1]["event"] == "done"
            assert stat.S_IMODE(path.stat().st_mode) == 0o666
            daemon.stop()
            # The socket belongs to systemd.
            assert path.stat().st_ino == inode
            assert sorted(p.name for p in daemon.runtime.iterdir()) == ["glmtts.sock", "lock"]


def test_a_daemon_that_is_started_beside_the_socket_unit_does_not_steal_its_clients(
    start: Start,
) -> None:
    daemon = start()
    daemon.stop()
    path = daemon.runtime / "glmtts.sock"
    with closing(listening_at(path)):
        assert daemon.launch().wait(10) == 69
        assert "glmtts.socket" in daemon.log() and "Traceback" not in daemon.log()
        assert path.exists()


def test_a_daemon_whose_inherited_socket_was_removed_serves_at_one_of_its_own(start: Start) -> None:
    daemon = start()
    daemon.stop()
    path = daemon.runtime / "glmtts.sock"
    with closing(listening_at(path)) as listener:
        path.unlink()
        activate(daemon, listener)
        daemon.until(path.exists, "the socket is made")
        daemon.client().speak("as ever")
        daemon.until(lambda: "systemctl restart glmtts.socket" in str(daemon.status()["attention"]), "it is an alert")
        daemon.stop()
        assert not path.exists()


@pytest.mark.parametrize("what", ["elsewhere", "name", "stream"])
def test_an_unusable_socket_is_refused_with_the_reason(start: Start, what: str) -> None:
    daemon = start()
    daemon.stop()
    path = daemon.runtime / "glmtts.sock"
    place = daemon.folder / "other.sock" if what == "elsewhere" else path
    if what == "stream":
        wrong = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        wrong.bind(str(place))
    else:
        wrong = listening_at(place)
    with closing(wrong):
        activate(daemon, wrong, "control" if what == "name" else "requests")
        assert daemon.process.wait(10) == 69
    said = {
        "elsewhere": "ListenStream",
        "name": "FileDescriptorName",
        "stream": "no listening stream socket",
    }
    assert said[what] in daemon.log() and "Traceback" not in daemon.log()
