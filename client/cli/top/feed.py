"""The figures of `glmttsctl top`, gathered in a thread, so that a slow or absent daemon does not freeze the screen."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from glmtts.client import Control, Forbidden, GlmttsError, News, ProtocolError, Watch

from ..ui.humanize import History, humanise
from ..ui.wrap import clean
from ..workers import WANTED, death_in_words

#: The events that are shown: not every job of a worker.
_TOPICS = ("worker.draining", "worker.stopping", "worker.waiting", "alert.", "daemon.")

#: A daemon that takes longer for an answer, in seconds, counts as not answering.
_TIMEOUT_S = 3.0

#: A connection that broke may take this long to return; then a new one is made.
_RECONNECT_S = 1.0

#: The rate of jobs is taken over this many seconds.
_RATE_S = 15.0

#: Two reports of one death differ by less than this, in seconds.
_SAME_DEATH_S = 0.4

_KEPT_EVENTS = 50


@dataclass
class Happening:
    """A line of the recent events; ``style`` is a colour's name."""

    at: float
    words: str
    style: str = ""


@dataclass(frozen=True)
class Snapshot:
    """The daemon's answers of one moment; ``trouble`` says why there are no newer ones."""

    status: Mapping[str, Any] = field(default_factory=dict)
    workers: Sequence[Mapping[str, Any]] = field(default_factory=list)
    gpus: Mapping[str, Any] = field(default_factory=dict)
    classes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    rate: float | None = None
    series: Mapping[str, list[float]] = field(default_factory=dict)
    happenings: Sequence[Happening] = field(default_factory=list)
    trouble: str = ""


class Feed:
    """Asks the daemon every ``interval_s`` seconds between :meth:`start` and :meth:`stop`; owns the connections."""

    def __init__(self, endpoint: str | None, interval_s: float) -> None:
        self._endpoint = endpoint
        self._interval_s = interval_s
        self._control: Control | None = None
        self._watch: Watch | None = None
        self._pid: int | None = None
        self._histories: dict[str, tuple[str, History]] = {}
        self._died_at: dict[str, float] = {}
        self._ended: deque[tuple[float, int]] = deque()
        self._happenings: deque[Happening] = deque(maxlen=_KEPT_EVENTS)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="top-feed", daemon=True)
        self._bug: BaseException | None = None
        self._snapshot = Snapshot(trouble="waiting for the daemon's first answer")

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """End, and close the connections. May wait some seconds for an answer that is due."""
        self._stopped.set()
        if self._thread.ident is None:
            self._disconnect()
        else:
            self._thread.join(_TIMEOUT_S + 1.0)

    def latest(self) -> Snapshot:
        """The newest snapshot. Raises the error that ended the thread, if any."""
        if self._bug is not None:
            raise self._bug
        return self._snapshot

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                began = time.monotonic()
                try:
                    self.look()
                except Forbidden:
                    raise
                except GlmttsError as error:
                    self._disconnect()
                    self._lose(str(error))
                self._stopped.wait(max(0.0, began + self._interval_s - time.monotonic()))
        except BaseException as error:
            self._bug = error
        finally:
            self._disconnect()

    def _lose(self, trouble: str) -> None:
        """Keep the last known answers, and say why they are old."""
        if self._snapshot.status and not self._snapshot.trouble:
            self._tell("the daemon does not answer any more", "red")
        self._snapshot = replace(self._snapshot, rate=None, happenings=list(self._happenings), trouble=trouble)

    def look(self) -> Snapshot:
        """Ask everything once. Raises GlmttsError."""
        if self._control is None or self._watch is None:
            self._control = Control(self._endpoint, timeout=_TIMEOUT_S, reconnect_s=_RECONNECT_S)
            self._watch = Watch(_TOPICS, self._endpoint, reconnect_s=None)
            self._watch.next(0.2)  # let it connect: events from now on are not missed
        control = self._control
        status = control.status()
        workers = control.workers().get("workers") or []
        gpus = control.gpus()
        classes = control.call("queue", limit=0).get("classes") or {}
        self._note_restart(status)
        self._hear(self._watch)
        for worker in workers:
            self._add_memory(worker)
            self._note_death(worker)
        self._happenings = deque(sorted(self._happenings, key=lambda h: h.at), maxlen=_KEPT_EVENTS)
        series = {name: history.values for name, (_, history) in self._histories.items()}
        rate = self._rate(status, time.monotonic())
        self._snapshot = Snapshot(status, workers, gpus, classes, rate, series, list(self._happenings))
        return self._snapshot

    def _tell(self, words: str, style: str, at: float | None = None) -> None:
        self._happenings.append(Happening(time.time() if at is None else at, words, style))

    def _note_restart(self, status: Mapping[str, Any]) -> None:
        pid = status.get("pid")
        if self._pid is not None and pid != self._pid:
            self._tell(f"the daemon was restarted (pid {pid})", "yellow")
            self._ended.clear()
            self._histories.clear()
            self._died_at.clear()
        elif self._snapshot.trouble and self._pid is not None:
            self._tell("the daemon answers again", "green")
        self._pid = pid

    def _note_death(self, worker: Mapping[str, Any]) -> None:
        """Tell of a new death, at the time when it happened."""
        death = worker.get("last_death")
        if not death or death.get("ago_s") is None:
            return
        at, name = time.time() - death["ago_s"], str(worker.get("name"))
        if at - self._died_at.get(name, -1e9) > _SAME_DEATH_S:
            self._died_at[name] = at
            verb, style = ("replaced", "yellow") if death.get("cause") in WANTED else ("died", "red")
            self._tell(f"{clean(name)} {verb}: {death_in_words({**death, 'ago_s': None})}", style, at)

    def _add_memory(self, worker: Mapping[str, Any]) -> None:
        """Add the worker's VRAM to its series, or its host memory where VRAM was never known; never both."""
        name = str(worker.get("name"))
        known = self._histories.get(name)
        # Between two processes a worker has no VRAM, and its series stays one of VRAM.
        kind = "rss" if worker.get("vram") is None and (known is None or known[0] == "rss") else "vram"
        if worker.get(kind) is None:
            return
        if known is None or known[0] != kind:
            known = self._histories[name] = (kind, History())
        known[1].add(float(worker[kind]))

    def _rate(self, status: Mapping[str, Any], now: float) -> float | None:
        """Jobs that ended per second."""
        ended = sum(ended_of(status).values())
        self._ended.append((now, ended))
        while len(self._ended) > 2 and self._ended[1][0] <= now - _RATE_S:
            self._ended.popleft()
        then, before = self._ended[0]
        return (ended - before) / (now - then) if now > then and ended >= before else None

    def _hear(self, watch: Watch) -> None:
        while True:
            try:
                news = watch.next(0)
            except ProtocolError:
                continue
            if news is None:
                return
            happening = happening_of(news)
            if happening and (not self._happenings or self._happenings[-1].words != happening.words):
                self._happenings.append(happening)

    def _disconnect(self) -> None:
        for connection in (self._control, self._watch):
            if connection is not None:
                with contextlib.suppress(GlmttsError):
                    connection.close()
        self._control = self._watch = None


def ended_of(status: Mapping[str, Any]) -> Mapping[str, int]:
    """The number of jobs by the way in which they ended."""
    return (status.get("counts") or {}).get("ended") or {}


def happening_of(news: News) -> Happening | None:
    """An event as a line; None for one that needs none."""
    kind, _, state = news.topic.partition(".")
    values, now = news.values, time.time()
    if kind == "worker":
        reason = clean(str(values.get("reason") or ""))
        return Happening(now, f"{clean(str(values.get('name')))} {state}: {reason}", "yellow") if reason else None
    if kind == "alert" and values.get("state") == "cleared":
        return Happening(now, f"alert {state} cleared", "green")
    if kind == "alert":
        return Happening(now, f"alert {state}: {humanise('', values.get('message') or state)}", "red")
    return Happening(now, f"the daemon is {state}") if kind == "daemon" else None
