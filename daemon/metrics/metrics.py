"""The metrics outside of the core: the shell's own figures, and where everybody who asks gets them all."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from glmtts.protocol import events
from glmtts.protocol.errors import ErrorCode

from ..config.tcp_access import parse_listen
from ..core import effects, inputs
from ..core.metric_types import Family, Histogram, kept, labelled, single
from ..core.settings import MetricsSettings
from ..log.logger import Logger
from ..loop import Background
from ..storage.journal import JournalFigures
from .exposition import written

if TYPE_CHECKING:
    from .http import MetricsServer

#: Seconds. Nothing in the loop takes over a millisecond: what does is worth seeing.
LAG_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
#: Of ``status``: counters of the shell, by what Prometheus calls them.
_COUNTERS = {
    "connections_turned_away": ("glmtts_connections_turned_away_total", "Connections over the limit."),
    "connections_ended_unread": ("glmtts_connections_unread_total", "Those ended as they left too much unread."),
    "floods_ended": ("glmtts_connections_flooding_total", "Those ended as they sent too much at once."),
    "internal_errors": ("glmtts_internal_errors_total", "Bugs met, each of which is in the log."),
    "log_lines_dropped": ("glmtts_log_lines_dropped_total", "Lines that nobody took from us."),
}


class Metrics:
    """Where the loop and those who ask for metrics meet. All is called in the loop, but for what runs elsewhere."""

    def __init__(
        self,
        settings: MetricsSettings,
        wakeup_fd: int,
        log: Logger,
        *,
        background: Background,
        core: Callable[[], list[Family]],
        facts: Callable[[], dict[str, Any]],
        journal: Callable[[], JournalFigures],
        send: Callable[[effects.Send], None],
    ) -> None:
        """``core`` has the core's metrics, ``facts`` the shell's part of ``status``, ``journal`` that one's figures."""
        self.lag = Histogram(LAG_S)
        self._wakeup_fd = wakeup_fd
        self._log = log
        self._background = background
        self._core = core
        self._facts = facts
        self._journal = journal
        self._send = send
        self._asked = False
        self._problems: deque[str] = deque()
        self._server: MetricsServer | None = None
        if settings.listen:
            address = parse_listen(settings.listen)
            if not address.is_loopback:
                self._log.warning(
                    "metrics are served beyond this machine, and not encrypted: let only your Prometheus in",
                    address=settings.listen,
                )
            from .http import MetricsServer  # most daemons have no use for it

            self._server = MetricsServer(address, self._ask, self._told)

    def open(self) -> None:
        """Serve them over HTTP, where that is configured."""
        if self._server is not None:
            self._server.open()

    def close(self) -> None:
        """Serve them no more."""
        if self._server is not None:
            self._server.close()

    def collect(self) -> list[inputs.Input]:
        """Hand over what was asked for; returns what the core should know."""
        if self._asked and self._server is not None:
            self._asked = False
            families = self._all(self._core())
            self._server.give(lambda: written(families))
        found: list[inputs.Input] = []
        while self._problems:
            problem = self._problems.popleft()
            if not problem and self._server is not None:
                self._log.info("metrics are served", port=self._server.port)
            found.append(inputs.MetricsServed(problem))
        return found

    def write(self, effect: effects.WriteMetrics) -> None:
        """Answer an operator."""
        families = self._all(effect.families)

        def then(text: Any) -> None:
            if isinstance(text, bytes):
                self._send(effects.Send(effect.to, events.Result(id=effect.id, values={"text": text.decode()})))
                return
            raise text

        if not self._background.run(lambda: written(families), then):
            message = "too many operations wait to be carried out; try again"
            self._send(effects.Send(effect.to, events.Error.of(effect.id, ErrorCode.UNAVAILABLE, message)))

    # --- in the server's thread

    def _ask(self) -> None:
        self._asked = True
        self._wake()

    def _told(self, problem: str) -> None:
        self._problems.append(problem)
        self._wake()

    def _wake(self) -> None:
        try:
            os.write(self._wakeup_fd, b"\0")
        except OSError:
            pass  # full: it is about to wake anyway

    # --- what they are

    def _all(self, core: list[Family]) -> list[Family]:
        """The core's, and the shell's beside them."""
        facts, journal = self._facts(), self._journal()
        by_tcp = facts["tcp"]["connections"] if "tcp" in facts else 0
        open_now = [("local", float(facts["connections"] - by_tcp)), ("tcp", float(by_tcp))]
        return [
            *core,
            labelled("glmtts_connections", "gauge", "Clients' connections.", "socket", open_now),
            *(single(name, "counter", help, facts[key]) for key, (name, help) in _COUNTERS.items()),
            single(
                "glmtts_loop_lag_seconds",
                "histogram",
                "How long each turn of the main loop took: so long at most waited what came meanwhile.",
                kept(self.lag),
            ),
            single("glmtts_journal_rows", "gauge", "Durable jobs in the journal, ended ones included.", journal.rows),
            single("glmtts_journal_bytes", "gauge", "Size of its files.", journal.bytes),
            single("glmtts_journal_results_bytes", "gauge", "Size of the results kept for it.", journal.result_bytes),
            single("glmtts_journal_lag_seconds", "gauge", "For how long it has been behind.", journal.lag_s),
            single("glmtts_journal_writes_total", "counter", "Transactions that came to the disk.", journal.writes),
            single("glmtts_journal_write_seconds_total", "counter", "Time that they took.", journal.write_s),
            single("glmtts_journal_failures_total", "counter", "Times that it could not be written.", journal.failures),
        ]
