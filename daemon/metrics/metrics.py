"""All metrics: the core's and the shell's, for Prometheus over HTTP and for ``glmttsctl metrics``."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from glmtts.protocol import events
from glmtts.protocol.errors import ErrorCode

from ..config.tcp_access import parse_listen
from ..core import effects, inputs
from ..core.context import INTERNAL_ERROR
from ..core.metric_types import Family, Histogram, Kind, kept, labelled, single
from ..core.settings import MetricsSettings
from ..log.logger import Logger
from ..loop import Background
from ..storage.journal import JournalFigures
from .exposition import written

if TYPE_CHECKING:
    from .http import MetricsServer

#: Seconds. A turn of the loop is meant to take less than a millisecond.
LAG_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
#: Counters of the shell: their key in ``status``, name and help.
_COUNTERS = (
    ("connections_turned_away", "glmtts_connections_turned_away_total", "Connections over the limit."),
    ("connections_ended_unread", "glmtts_connections_unread_total", "Connections ended with too much left unread."),
    ("floods_ended", "glmtts_connections_flooding_total", "Connections ended for sending too much at once."),
    ("internal_errors", "glmtts_internal_errors_total", "Bugs met; each is in the log."),
    ("log_lines_dropped", "glmtts_log_lines_dropped_total", "Lines lost because the log is read too slowly."),
)
#: The journal's figures: their field, name, kind and help.
_JOURNAL: tuple[tuple[str, str, Kind, str], ...] = (
    ("rows", "glmtts_journal_rows", "gauge", "Durable jobs in the journal, ended ones included."),
    ("bytes", "glmtts_journal_bytes", "gauge", "Size of the journal's files."),
    ("result_bytes", "glmtts_journal_results_bytes", "gauge", "Size of the results of durable jobs."),
    ("lag_s", "glmtts_journal_lag_seconds", "gauge", "Age of the oldest record that is not on disk yet."),
    ("writes", "glmtts_journal_writes_total", "counter", "Transactions that reached the disk."),
    ("write_s", "glmtts_journal_write_seconds_total", "counter", "Time that these transactions took."),
    ("failures", "glmtts_journal_failures_total", "counter", "Transactions that failed."),
)


class Metrics:
    """Owns the HTTP server, and the histogram of the loop's lag. Its public methods are called in the loop."""

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
        """
        Args:
            core: returns the core's metrics.
            facts: returns the shell's part of ``status``.
            journal: returns the journal's figures.
        """
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
                    "metrics are served beyond this machine, and not encrypted: admit only your Prometheus",
                    address=settings.listen,
                )
            from .http import MetricsServer  # here, because few daemons need it

            self._server = MetricsServer(address, self._ask, self._report)

    def open(self) -> None:
        """Serve the metrics over HTTP if configured."""
        if self._server is not None:
            self._server.open()

    def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.close()

    def collect(self) -> list[inputs.Input]:
        """Hand the server the metrics that it asked for; returns inputs for the core."""
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
        """Answer ``glmttsctl metrics``."""
        families = self._all(effect.families)

        def then(text: Any) -> None:
            if isinstance(text, Exception):
                self._send(effects.Send(effect.to, events.Error.of(effect.id, ErrorCode.UNAVAILABLE, INTERNAL_ERROR)))
                raise text
            self._send(effects.Send(effect.to, events.Result(id=effect.id, values={"text": text.decode()})))

        if not self._background.run(lambda: written(families), then):
            message = "too many operations are waiting; try again"
            self._send(effects.Send(effect.to, events.Error.of(effect.id, ErrorCode.UNAVAILABLE, message)))

    # --- in the server's thread

    def _ask(self) -> None:
        self._asked = True
        self._wake()

    def _report(self, problem: str) -> None:
        self._problems.append(problem)
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # a full pipe wakes the loop as well
            os.write(self._wakeup_fd, b"\0")

    def _all(self, core: list[Family]) -> list[Family]:
        """The core's metrics and the shell's."""
        facts, journal = self._facts(), self._journal()
        by_tcp = facts["tcp"]["connections"] if "tcp" in facts else 0
        open_now = [("local", float(facts["connections"] - by_tcp)), ("tcp", float(by_tcp))]
        return [
            *core,
            labelled("glmtts_connections", "gauge", "Clients' connections.", "socket", open_now),
            *(single(name, "counter", help, facts[key]) for key, name, help in _COUNTERS),
            *(single(name, kind, help, getattr(journal, field)) for field, name, kind, help in _JOURNAL),
            single(
                "glmtts_loop_lag_seconds",
                "histogram",
                "How long each turn of the main loop took, and so how long a message may have waited.",
                kept(self.lag),
            ),
        ]
