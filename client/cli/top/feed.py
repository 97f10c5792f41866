"""What `glmttsctl top` shows, gathered in a thread of its own: a daemon that is slow or gone freezes no screen."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..ui.humanize import History
from ..ui.output import clean, humanise, plain
from ..workers import WANTED, death_in_words

if TYPE_CHECKING:
    from glmtts.client import Control, News, Watch

#: The topics of which people want to read. A worker's every job is none of them.
_TOPICS = ("worker.draining", "worker.stopping", "worker.waiting", "alert.", "daemon.")

#: How long the daemon may take to answer before it counts as not answering, in seconds.
_PATIENCE_S = 3.0

#: How long a connection that broke may take to be there again; then a new one is made.
_RECONNECT_S = 1.0

#: Over how long the rate of jobs is taken, in seconds.
_RATE_S = 15.0

#: Two looks at one death differ by less than that, in seconds.
_SAME_DEATH_S = 0.4

_KEPT_EVENTS = 50


@dataclass
class Happening:
    """Something worth a line: ``style`` is a colour's name."""

    at: float
    words: str
    style: str = ""


@dataclass
class Snapshot:
    """The daemon as it was a moment ago; ``trouble`` says why nothing newer is known."""

    status: Mapping[str, Any] = field(default_factory=dict)
    workers: Sequence[Mapping[str, Any]] = field(default_factory=list)
    gpus: Mapping[str, Any] = field(default_factory=dict)
    running: Mapping[str, int] = field(default_factory=dict)
    suspended: Mapping[str, int] = field(default_factory=dict)
    rate: float | None = None
    series: Mapping[str, list[float]] = field(default_factory=dict)
    happenings: list[Happening] = field(default_factory=list)
    trouble: str = ""
    number: int = 0


class Feed:
    """Asks the daemon every ``interval_s`` seconds, between :meth:`start` and :meth:`stop`, and keeps the answer."""

    def __init__(self, endpoint: str | None, interval_s: float) -> None:
        self._endpoint = endpoint
        self._interval_s = interval_s
        self._control: Control | None = None
        self._watch: Watch | None = None
        self._pid: Any = None
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
        """End, and close the connections. Waits for an answer that is due, for some seconds at most."""
        self._stopped.set()
        if self._thread.ident is None:
            self._disconnect()
        else:
            self._thread.join(_PATIENCE_S + 1.0)

    def latest(self) -> Snapshot:
        """The newest snapshot. Raises what the thread ended with, if it has."""
        if self._bug is not None:
            raise self._bug
        return self._snapshot

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                began = time.monotonic()
                self.look_or_wait()
                self._stopped.wait(max(0.0, began + self._interval_s - time.monotonic()))
        except BaseException as error:
            self._bug = error
        finally:
            self._disconnect()

    def look_or_wait(self) -> None:
        """Look once; where the daemon is not there, say so in the snapshot and keep what was known."""
        from glmtts.client import Forbidden, GlmttsError

        try:
            self.look()
        except Forbidden:
            raise
        except GlmttsError as error:
            self._disconnect()
            before = self._snapshot
            if before.status and not before.trouble:
                self._happenings.append(Happening(time.time(), "the daemon does not answer any more", "red"))
            self._snapshot = Snapshot(
                before.status, before.workers, before.gpus, before.running, before.suspended, None, before.series,
                list(self._happenings), str(error), before.number + 1,
            )  # fmt: skip

    def look(self) -> Snapshot:
        """Ask everything once. Raises GlmttsError."""
        from glmtts.client import Control, Watch

        if self._control is None:
            self._control = Control(self._endpoint, timeout=_PATIENCE_S, reconnect_s=_RECONNECT_S)
            self._watch = Watch(_TOPICS, self._endpoint, reconnect_s=None)
            # Whoever draws has them at the next look: an event that came in between is not missed.
            self._watch.next(0.2)
        control = self._control
        status: dict[str, Any] = plain(control.status())
        workers = [w for w in plain(control.workers()).get("workers") or [] if isinstance(w, dict)]
        gpus = _optional(control, "gpus")
        classes = _optional(control, "queue", limit=0).get("classes")
        now = time.monotonic()
        self._note_restart(status)
        self._hear()
        for worker in workers:
            self._remember(worker)
            self._note_death(worker)
        self._happenings = deque(sorted(self._happenings, key=lambda h: h.at), maxlen=_KEPT_EVENTS)
        series = {name: history.values for name, (_, history) in self._histories.items()}
        self._snapshot = Snapshot(
            status, workers, gpus, _counts(classes, "running"), _counts(classes, "suspended"),
            self._rate(status, now), series, list(self._happenings), "", self._snapshot.number + 1,
        )  # fmt: skip
        return self._snapshot

    def _note_restart(self, status: Mapping[str, Any]) -> None:
        pid = status.get("pid")
        if self._pid is not None and pid != self._pid:
            self._happenings.append(Happening(time.time(), f"the daemon was started anew (pid {pid})", "yellow"))
            self._ended.clear()
            self._histories.clear()
            self._died_at.clear()
        elif self._snapshot.trouble and self._pid is not None:
            self._happenings.append(Happening(time.time(), "the daemon answers again", "green"))
        self._pid = pid

    def _note_death(self, worker: Mapping[str, Any]) -> None:
        """A death that is not known yet: events tell when it was heard of, this tells when it was."""
        death = worker.get("last_death")
        ago = death.get("ago_s") if isinstance(death, Mapping) else None
        if not isinstance(death, Mapping) or not isinstance(ago, (int, float)):
            return
        at, name = time.time() - ago, str(worker.get("name"))
        if at - self._died_at.get(name, -1e9) > _SAME_DEATH_S:
            self._died_at[name] = at
            words = death_in_words({**death, "ago_s": None})
            verb, style = ("replaced", "yellow") if death.get("cause") in WANTED else ("died", "red")
            self._happenings.append(Happening(at, f"{clean(name)} {verb}: {words}", style))

    def _remember(self, worker: Mapping[str, Any]) -> None:
        """A worker's memory now, VRAM where it is known; the two are never mixed in one line."""
        name = str(worker.get("name"))
        known = self._histories.get(name)
        # Between two processes nobody has VRAM: that does not turn its line into one of host memory.
        kind = "rss" if worker.get("vram") is None and (known is None or known[0] == "rss") else "vram"
        value = worker.get(kind)
        if not isinstance(value, (int, float)):
            return
        if known is None or known[0] != kind:
            known = self._histories[name] = (kind, History())
        known[1].add(float(value))

    def _rate(self, status: Mapping[str, Any], now: float) -> float | None:
        """Jobs that ended in a second, of late."""
        ended = sum(count for count in ended_of(status).values())
        self._ended.append((now, ended))
        while len(self._ended) > 2 and self._ended[1][0] <= now - _RATE_S:
            self._ended.popleft()
        (then, before), passed = self._ended[0], now - self._ended[0][0]
        return (ended - before) / passed if passed > 0 and ended >= before and then < now else None

    def _hear(self) -> None:
        from glmtts.client import ProtocolError

        while self._watch is not None:
            try:
                news = self._watch.next(0)
            except ProtocolError:
                continue
            if news is None:
                return
            happening = happening_of(news)
            if happening and (not self._happenings or self._happenings[-1].words != happening.words):
                self._happenings.append(happening)

    def _disconnect(self) -> None:
        from glmtts.client import GlmttsError

        for connection in (self._control, self._watch):
            if connection is not None:
                with contextlib.suppress(GlmttsError):
                    connection.close()
        self._control = self._watch = None


def _optional(control: Control, op: str, **keys: Any) -> dict[str, Any]:
    """The answer to what an older daemon does not know."""
    from glmtts.client import BadRequest

    try:
        answer = plain(control.call(op, **keys))
    except BadRequest:
        return {}
    return answer if isinstance(answer, dict) else {}


def _counts(classes: Any, key: str) -> dict[str, int]:
    """One number of each class that has it."""
    if not isinstance(classes, Mapping):
        return {}
    found = {str(name): of.get(key) for name, of in classes.items() if isinstance(of, Mapping)}
    return {name: count for name, count in found.items() if isinstance(count, int)}


def ended_of(status: Mapping[str, Any]) -> dict[str, int]:
    """How many jobs ended in what way."""
    counts = status.get("counts")
    ended = counts.get("ended") if isinstance(counts, Mapping) else None
    return {str(k): v for k, v in ended.items() if isinstance(v, int)} if isinstance(ended, Mapping) else {}


def happening_of(news: News) -> Happening | None:
    """An event as a line, or None for one that needs none."""
    kind, _, state = news.topic.partition(".")
    values = news.values
    name = clean(str(values.get("name", "?")))
    now = time.time()
    if kind == "worker":
        reason = clean(str(values.get("reason") or ""))
        return Happening(now, f"{name} {state}: {reason}", "yellow") if reason else None
    if kind == "alert":
        cleared = values.get("state") == "cleared"
        message = humanise("", values.get("message") or state)
        words = f"alert {state} cleared" if cleared else f"alert {state}: {message}"
        return Happening(now, words, "green" if cleared else "red")
    return Happening(now, f"the daemon is {state}") if kind == "daemon" else None
