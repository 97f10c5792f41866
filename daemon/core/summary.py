"""How the daemon is, in a few numbers: for whoever shows it in one line."""

from __future__ import annotations

from msgspec import Struct


class Summary(Struct, frozen=True):
    """``state`` as ``status`` says it; ``ready`` and ``starting`` of ``workers``; what raised alerts say."""

    state: str
    ready: int
    starting: int
    workers: int
    running: int
    waiting: int
    alerts: tuple[str, ...] = ()

    def in_words(self) -> str:
        """One line, such as ``1 of 2 workers ready; 1 job running, 3 waiting``."""
        return "; ".join([*self._state(), self._workers(), self._jobs(), *self._alerts()])

    def _state(self) -> list[str]:
        return [] if self.state == "running" else [self.state]

    def _workers(self) -> str:
        if not self.workers:
            return "no worker, as none is needed now"
        words = f"{self.ready} of {self.workers} worker{'s' if self.workers > 1 else ''} ready"
        return f"{words}, {self.starting} loading" if self.starting else words

    def _jobs(self) -> str:
        return f"{self.running} job{'' if self.running == 1 else 's'} running, {self.waiting} waiting"

    def _alerts(self) -> list[str]:
        if not self.alerts:
            return []
        first = self.alerts[0] if len(self.alerts[0]) <= _MAX_ALERT else f"{self.alerts[0][:_MAX_ALERT]}..."
        return [f"alert: {first}" if len(self.alerts) == 1 else f"{len(self.alerts)} alerts: {first}"]


#: Characters of an alert's message that one line has room for.
_MAX_ALERT = 160
