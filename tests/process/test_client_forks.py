"""Clients in forked processes, as gunicorn --preload, uWSGI, Celery and multiprocessing make them: none hangs, and none
harms the connection of its parent."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .conftest import Daemon

#: ``in_child(what)`` runs ``what`` in a forked process, and returns what that says within some seconds.
_FORKING = """
import asyncio, gc, os, select, signal, sys, time
from glmtts.client import AsyncClient, Client, Control, GlmttsError, Watch
def in_child(what):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            said = str(what())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        gc.collect()
        os.write(write, said.encode()[:4000])
        os._exit(0)
    os.close(write)
    said = os.read(read, 4096).decode() if select.select([read], [], [], 10)[0] else "it hangs"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(read)
    return said
def says(is_so, words):
    if not is_so:
        sys.exit(f"not so: {words}")
"""


@pytest.fixture(scope="module")
def daemon(start_shared: Callable[..., Daemon]) -> Iterator[Daemon]:
    yield start_shared()


def run(daemon: Daemon, script: str, **options: Any) -> str:
    """The output of a script that forks, in a process of its own: it may hang."""
    environment = {"PATH": "/usr/bin:/bin", "GLMTTS_RUNTIME_DIR": str(daemon.runtime)}
    done = subprocess.run(
        [sys.executable, "-c", _FORKING + script],
        env=environment, capture_output=True, text=True, timeout=40, check=False, **options,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]
    return str(done.stdout)


@pytest.mark.parametrize("first", ["pass", "client.speak('before')"], ids=["unused", "used"])
def test_a_client_made_before_a_fork_speaks_in_the_child_and_in_the_parent(daemon: Daemon, first: str) -> None:
    script = f"""
client = Client()
{first}
for _ in range(2):
    print(in_child(lambda: client.speak("in the child", timeout=5).format))
    print(client.speak("in the parent", timeout=5).format)
"""
    assert run(daemon, script).split() == ["wav"] * 4


def test_a_client_in_use_by_another_thread_at_the_fork_is_free_in_the_child(daemon: Daemon) -> None:
    script = """
import threading
client = Client()
heard = threading.Event()
slowly = {"fault": "sleep", "seconds": 1}
speak = lambda: client.speak("slowly", options=slowly, on_event=lambda event: heard.set())
other = threading.Thread(target=speak)
other.start()
heard.wait(10)
print(in_child(lambda: client.speak("in the child", timeout=5).format))
other.join()
print(client.speak("in the parent", timeout=5).format)
"""
    assert run(daemon, script).split() == ["wav"] * 2


def test_control_and_watch_work_in_a_child(daemon: Daemon) -> None:
    script = """
with Control() as control, Watch(["job."]) as watch:
    control.status()
    watch.next(0.1)
    def child():
        heard = watch.next(0.2) or (watch.connected and control.status()["state"])
        with Client() as client:
            client.speak("hello")
            # Its subscription takes its way: what was published before is missed.
            while (news := watch.next(0.5)) is None:
                client.speak("hello")
        return heard, news.topic.split(".")[0]
    print(in_child(child))
    print(control.status()["state"])
    with Client() as client:
        client.speak("hello")
    print(watch.next(5).topic.split(".")[0])
"""
    assert run(daemon, script).splitlines() == ["('running', 'job')", "running", "job"]


def test_an_asyncio_client_works_in_a_child_with_a_loop_of_its_own(daemon: Daemon) -> None:
    script = """
loop = asyncio.new_event_loop()
client = AsyncClient(timeout=5)
speak = lambda: asyncio.run(client.speak("hello")).format
print(in_child(speak))
print(loop.run_until_complete(client.speak("hello")).format)
print(in_child(speak))
stream = client.stream("a. b. c.", options={"fault": "sleep", "seconds": 0.5})
loop.run_until_complete(stream._begin())
print(in_child(lambda: asyncio.run(stream.__anext__())).partition(":")[0])
print(in_child(lambda: asyncio.run(stream.close())))
print(loop.run_until_complete(client.speak("hello")).format)
loop.run_until_complete(client.close())
loop.close()
"""
    assert run(daemon, script).split() == ["wav", "wav", "wav", "GlmttsError", "None", "wav"]


def test_a_child_that_ends_or_drops_a_stream_cancels_no_job_of_its_parent(daemon: Daemon) -> None:
    script = """
client = Client(timeout=10)
stream = client.stream("one. two. three.", options={"fault": "sleep", "seconds": 0.5})
job = client.submit("hello", options={"fault": "sleep", "seconds": 0.5})
def child():
    global stream, client
    try:
        next(stream)
    except GlmttsError as error:
        said = str(error)
    client.ping()
    waited = client.wait(job.id).format
    stream.close()
    client.close()
    del stream, client
    return said.split(":")[0], waited
print(in_child(child))
print(sum(1 for chunk in stream) > 0, stream.done is not None, client.wait(job).format)
"""
    assert run(daemon, script).splitlines() == [
        "('This stream began before the process was forked', 'wav')",
        "True True wav",
    ]


def test_the_daemon_sees_the_end_of_a_parent_whose_child_lives_on(daemon: Daemon) -> None:
    script = """
client = Client()
client.ping()
read, write = os.pipe()
said, say = os.pipe()
pid = os.fork()
if pid == 0:
    os.write(say, b"x")
    os.read(read, 1)
    os._exit(0)
os.read(said, 1)
with Control() as control:
    before = control.status()["connections"]
    client.close()
    deadline = time.monotonic() + 5
    while control.status()["connections"] >= before and time.monotonic() < deadline:
        time.sleep(0.01)
    print(control.status()["connections"] < before)
os.write(write, b"x")
os.waitpid(pid, 0)
"""
    assert run(daemon, script).split() == ["True"]
