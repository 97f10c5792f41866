"""The worker's end of the text processes (text_process.py), which cut texts into segments with tokens.

A text is worked on in short tasks, one after the other, which the text processes do for all texts in turn: a long text
holds a short one up for one task at most. The segments are prepared a few ahead of the one that is spoken.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from msgspec import DecodeError

from ..base import EngineError
from . import text_process
from .split import cut_first_clause
from .text import excerpt, normalising
from .text_tasks import Frames, Hello, NotLoaded, Prepare, Prepared, Read, Refused, Result, Split, Task, frame
from .upstream import UpstreamError

#: The longest task, in seconds. Parts are made to take 0.3 on an idle core; for some texts upstream takes far longer.
TASK_S = 10.0
#: The longest start: with the grammar's compilation, and on a slow disk, minutes.
_START_S = 600.0
#: Templates that may be lost in a row, before any has a text process; then texts fail too.
_MOST_STARTS = 2
#: Segments of a text that are prepared before they are taken.
_AHEAD = 2
#: Transcripts that are kept normalised.
_TRANSCRIPTS = 256
#: The most time that counts between two looks at the clock: all processes may have been stopped or frozen together.
_LONGEST_LOOK_S = 1.0
#: Seconds that are left to a task whose text was dropped: then a new fork costs less than the busy process.
_DROPPED_S = 1.0
#: Between two steps of a wait.
_STEP_S = 0.02
#: Seconds after which a waiting text reports progress: its wait is no hang, as no text waits for ever.
_MOVES_S = 0.1
_READ_BYTES = 1 << 16

_Plan = Generator[Task, Any, None]


class Pending:
    """A text on its way through the front end.

    ``normalised``: the whole text, normalised; None before. ``texts``: its segments as they are cut; None before.
    ``done``: grows while the text is worked on or waits for its turn. ``ended``: all is done, though perhaps not taken
    yet, or ``error`` says why the text can't be spoken.
    """

    def __init__(self, begin: Callable[[Pending], _Plan], on_taken: Callable[[], None]) -> None:
        self.normalised: str | None = None
        self.texts: list[str] | None = None
        self.done = 0
        self.ended = False
        self.error: EngineError | None = None
        self.ready: deque[Prepared] = deque()
        #: Its next task; None while a process has it, and after the last.
        self.task: Task | None = None
        #: When its last task began: the one that has waited longest is next.
        self.turn = 0
        self.asked_again = False
        self._on_taken = on_taken
        self._plan = begin(self)
        self.go_on(None)

    def take(self) -> Prepared | None:
        """The next segment, if it is prepared. After the last, and after an error, ``ended`` is true and none comes."""
        if not self.ready:
            return None
        segment = self.ready.popleft()
        self._on_taken()
        return segment

    @property
    def may_go_on(self) -> bool:
        """Whether it has a task for a process now."""
        return self.task is not None and not (isinstance(self.task, Prepare) and len(self.ready) >= _AHEAD)

    def go_on(self, result: Any) -> None:
        """Take the result of the last task, and find the next one."""
        self.done += 1
        try:
            self.task = self._plan.send(result)
        except StopIteration:
            self.task, self.ended = None, True
        except EngineError as error:
            self.fail(error)

    def fail(self, error: EngineError) -> None:
        """End it with an error."""
        self.task, self.ended, self.error = None, True, error
        self._plan.close()


class _Process:
    """This end of a text process or of the template; ``pid`` is None until its Hello."""

    def __init__(self, channel: socket.socket, limit_s: float) -> None:
        channel.setblocking(False)
        self.channel = channel
        self.pid: int | None = None
        self.pending: Pending | None = None
        self.task: Task | None = None
        self.frames = Frames()
        #: What is left until its next message is late; None where none is due.
        self.left_s: float | None = None
        self._looked = 0.0
        self.unsent = b""
        self.allow(limit_s)

    @property
    def idle(self) -> bool:
        return self.pid is not None and self.task is None

    def allow(self, limit_s: float | None) -> None:
        """Limit the time to its next message."""
        self.left_s, self._looked = limit_s, time.monotonic()

    def is_late(self) -> bool:
        """Whether its time is up."""
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, _LONGEST_LOOK_S), now
        if self.left_s is not None:
            self.left_s -= passed
        return self.left_s is not None and self.left_s < 0

    def has_ended(self) -> bool:
        """Whether the other end is closed."""
        try:
            return not self.channel.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def send(self, message: Task) -> None:
        """Send a task, or as much of it as there is room for."""
        self.unsent = frame(message)
        self.flush()

    def flush(self) -> None:
        # A process that has ended is noticed where its answer is read.
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while self.unsent:
                self.unsent = self.unsent[self.channel.send(self.unsent) :]


class FrontEnd:
    """Owns the text processes and the texts that are on their way. Used from one thread alone.

    A process that takes longer than :data:`TASK_S` for a task, or ends, fails the text that it worked on, and another
    takes its place. All end with this process, however it ends.
    """

    def __init__(
        self, root: Path, cache_dir: Path, dictionary: str, *, processes: int, warn: Callable[[str], None]
    ) -> None:
        """Start loading, in another process. ``warn`` writes a line, which quotes no text, to the daemon's log."""
        self._given = (root, cache_dir, dictionary)
        self._number = processes
        self._warn = warn
        self._epoll = select.epoll()
        self._pending: list[Pending] = []
        self._news: list[Pending] = []
        self._processes: list[_Process] = []
        self._transcripts: dict[str, str] = {}
        self._turns = 0
        self._failed_starts = 0
        self._has_loaded = False
        #: Why the text processes can't be started.
        self._failure: Exception | None = None
        self._moved = time.monotonic()
        self._start()

    # --- texts

    def ask(self, text: str, *, use_phoneme: bool, cut_clause: bool = False) -> Pending:
        """Begin to prepare a text for speech. Its errors come with the Pending.

        ``cut_clause``: its first clause becomes a segment of its own.
        """
        return self._begin(lambda pending: _speech(pending, text, use_phoneme=use_phoneme, cut_clause=cut_clause))

    def ask_transcript(self, text: str) -> Pending:
        """Begin to normalise the transcript of a recording; the last ones are kept, and have ended at once."""
        return self._begin(lambda pending: self._transcript(pending, text))

    def drop(self, pending: Pending) -> None:
        """Forget a text that is not wanted any more; also one that has ended."""
        pending.task = None
        if pending in self._pending:
            self._pending.remove(pending)
        self._news = [one for one in self._news if one is not pending]
        for process in self._processes:
            if process.pending is pending and process.left_s is not None:
                process.left_s = min(process.left_s, _DROPPED_S)

    def poll(self) -> list[Pending]:
        """Read what has come, give out tasks, and return the texts that have news. Never waits."""
        for fd, _ in self._epoll.poll(0):
            self._read(fd)
        self._look_at_clock()
        self._give_out()
        news = list(dict.fromkeys(self._news))
        self._news = []
        self._pending = [pending for pending in self._pending if not pending.ended]
        return news

    def fileno(self) -> int:
        """A descriptor that is readable when ``poll`` has something to read."""
        return self._epoll.fileno()

    def idle_s(self) -> float | None:
        """Seconds within which ``poll`` must be called; None: not before ``fileno`` is readable."""
        if self._news:
            return 0.0
        return _LONGEST_LOOK_S if any(process.left_s is not None for process in self._all()) else None

    def wait(self, until: Callable[[], bool], step: Callable[[], None]) -> None:
        """Poll until ``until()``; ``step`` is called meanwhile, and may raise to end the wait."""
        self.poll()
        while not until():
            self._epoll.poll(_STEP_S)
            self.poll()
            step()

    def until_ready(self) -> None:
        """Wait until texts can be read. Raises UpstreamError, and ValueError for a wrong dictionary."""
        while not any(process.pid is not None for process in self._processes):
            self._epoll.poll(_LONGEST_LOOK_S)
            self.poll()
            if self._failure is not None:
                raise self._failure

    def close(self) -> None:
        """End the processes."""
        self._end_all()
        self._epoll.close()

    def _begin(self, plan: Callable[[Pending], _Plan]) -> Pending:
        pending = Pending(plan, self._give_out)
        self._turns += 1
        pending.turn = self._turns
        if self._failure is not None:
            pending.fail(self._fatal())
        if pending.ended:
            self._news.append(pending)
        else:
            self._pending.append(pending)
            self._give_out()
        return pending

    def _transcript(self, pending: Pending, text: str) -> _Plan:
        """The tasks of a transcript, for which each job of a voice asks."""
        known = self._transcripts.pop(text, None)
        pending.normalised = known if known is not None else (yield from _normalised(text))
        self._transcripts[text] = pending.normalised
        if len(self._transcripts) > _TRANSCRIPTS:
            del self._transcripts[next(iter(self._transcripts))]

    # --- tasks

    def _give_out(self) -> None:
        for process in list(self._processes):
            waiting = [pending for pending in self._pending if pending.may_go_on]
            if not waiting:
                return
            if not process.idle or process not in self._processes:
                continue
            if process.has_ended():
                # It ended while there was no text, when nothing was read.
                self._ended(process, "ended")
            else:
                self._give(process, min(waiting, key=lambda pending: (len(pending.ready), pending.turn)))

    def _give(self, process: _Process, pending: Pending) -> None:
        task, pending.task = pending.task, None
        assert task is not None
        self._turns += 1
        pending.turn = self._turns
        try:
            process.send(task)
        except UnicodeEncodeError:
            words = "text: has half a character in it, a lone surrogate"
            pending.fail(EngineError("bad_request", words, quotes=True))
            self._news.append(pending)
            return
        process.pending, process.task = pending, task
        process.allow(TASK_S)
        self._watch(process)

    def _read(self, fd: int) -> None:
        process = next((process for process in self._all() if process.channel.fileno() == fd), None)
        if process is None:
            return
        process.flush()
        self._watch(process)
        try:
            chunk = process.channel.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        try:
            messages = process.frames.feed(chunk)
        except DecodeError:
            chunk, messages = b"", []
        for message in messages:
            self._take(process, message)
        if not chunk:
            self._ended(process, "ended")

    def _take(self, process: _Process, message: Any) -> None:
        if isinstance(message, NotLoaded):
            self._lost_template(message)
            return
        if isinstance(message, Hello):
            process.pid = message.pid
            process.allow(None)
            if process is self._template:
                self._has_loaded = True
                self._fork()
            else:
                self._failed_starts = 0
            return
        pending, process.pending, process.task = process.pending, None, None
        process.allow(None)
        # A text that was dropped has no pending any more.
        if pending is None or pending not in self._pending:
            return
        if isinstance(message, Refused):
            pending.fail(EngineError(message.code, message.message, quotes=message.quotes))
        else:
            pending.go_on(message.value if isinstance(message, Result) else message)
        if pending.ended or pending.ready or pending.normalised is not None:
            self._news.append(pending)

    def _look_at_clock(self) -> None:
        now = time.monotonic()
        if now - self._moved >= _MOVES_S:
            self._moved = now
            for pending in self._pending:
                pending.done += not (pending.ended or pending.ready)
        for process in self._all():
            if process.is_late() and process in self._all():
                limit_s = _START_S if process is self._template else TASK_S
                wanted = process.pending is None or process.pending in self._pending
                self._ended(process, f"gave no answer in {limit_s:g} s" if wanted else "is busy with a dropped text")

    # --- processes

    def _all(self) -> list[_Process]:
        return [*self._processes, *([self._template] if self._template else [])]

    def _start(self) -> None:
        """Start a template, from which text processes are forked when it is loaded."""
        own, its = socket.socketpair()
        with its:
            self._popen = subprocess.Popen(
                text_process.command(its, *self._given), stdin=subprocess.DEVNULL, pass_fds=(its.fileno(),)
            )
        self._template: _Process | None = _Process(own, _START_S)
        self._watch(self._template)

    def _fork(self) -> None:
        assert self._template is not None
        while len(self._processes) < self._number:
            own, its = socket.socketpair()
            # A template that has ended is noticed where its end is read.
            with its, contextlib.suppress(OSError):
                socket.send_fds(self._template.channel, [b"f"], [its.fileno()])
            process = _Process(own, TASK_S)
            self._processes.append(process)
            self._watch(process)

    def _watch(self, process: _Process) -> None:
        wanted = select.EPOLLIN | (select.EPOLLOUT if process.unsent else 0)
        try:
            self._epoll.modify(process.channel, wanted)
        except FileNotFoundError:
            self._epoll.register(process.channel, wanted)

    def _ended(self, process: _Process, how: str) -> None:
        """End a process, or what is left of it, and start another."""
        # Where the template has ended, the kernel ends its forks, and no text is to blame.
        template = self._template
        if template is None or process is template or process.pid is None or template.has_ended():
            self._lost_template(NotLoaded(f"its process {how}", False))
            return
        self._warn(f"text process {process.pid} {how}; another takes its place")
        pending, task = process.pending, process.task
        self._processes.remove(process)
        self._release(process)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        if pending is not None and pending in self._pending:
            pending.fail(_lost(task, how))
            self._news.append(pending)
        self._fork()

    def _restart(self) -> None:
        for process in self._processes:
            pending = process.pending
            if pending is None or pending not in self._pending:
                continue
            if pending.asked_again:
                pending.fail(_lost(process.task, "ended"))
                self._news.append(pending)
            else:
                pending.task, pending.asked_again = process.task, True
        self._end_all()
        self._start()

    def _lost_template(self, why: NotLoaded) -> None:
        """Start the template again, or fail all texts if it was lost too often."""
        self._failed_starts += 1
        if self._has_loaded and self._failed_starts < _MOST_STARTS:
            self._warn(f"the template of the text processes is started again: {why.problem}")
            self._restart()
            return
        self._end_all()
        self._template = None
        self._failure = ValueError(why.problem) if why.setting else UpstreamError(f"the text front end: {why.problem}")
        for pending in self._pending:
            pending.fail(self._fatal())
        self._news += self._pending

    def _fatal(self) -> EngineError:
        words = f"the text front end can't be started, so this worker ends: {self._failure}"
        # No job is to blame.
        return EngineError("engine_unavailable", words, fatal=True)

    def _end_all(self) -> None:
        for process in self._all():
            self._release(process)
        self._processes = []
        self._popen.kill()
        self._popen.wait()

    def _release(self, process: _Process) -> None:
        self._epoll.unregister(process.channel)
        process.channel.close()


def _speech(pending: Pending, text: str, *, use_phoneme: bool, cut_clause: bool) -> _Plan:
    """The tasks of a text to speak."""
    pending.normalised = normalised = yield from _normalised(text)
    texts = yield Split(normalised)
    pending.texts = texts = cut_first_clause(texts) if cut_clause else texts
    for one in texts:
        pending.ready.append((yield Prepare(one, use_phoneme)))


def _normalised(text: str) -> Generator[Task, Any, str]:
    reading = normalising(text)
    source = next(reading)
    while True:
        result = yield Read(source)
        try:
            source = reading.send(result)
        except StopIteration as end:
            return str(end.value)


def _lost(task: Task | None, how: str) -> EngineError:
    """The error of a text whose process is lost."""
    match task:
        case Read():
            text = task.text
        case Split():
            text = task.normalised
        case Prepare():
            text = task.segment
        case None:
            text = ""
    return EngineError(
        "synthesis_failed",
        f"text: the process that reads texts for GLM-TTS {how}, at {excerpt(text)}; another has taken its place. Send "
        "the job again; if that fails too, spell the passage out in words or shorten it",
        quotes=True,
    )
