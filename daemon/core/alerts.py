"""The raised alerts: each is published once when it is raised, and once when it is cleared."""

from __future__ import annotations

from typing import Any

from .context import Context


class Alerts:
    """Owns the raised alerts, by name. An alert that is raised again changes its message without a second notice."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._raised: dict[str, tuple[str, float]] = {}

    def set(self, name: str, message: str) -> None:
        """Raise an alert with this message, or clear it with ``""``."""
        known = self._raised.get(name)
        if message and known:
            self._raised[name] = (message, known[1])
        elif message:
            self._raised[name] = (message, self._context.now)
            self._context.log("error", f"alert: {message}", alert=name)
            self._context.publish(f"alert.{name}", state="raised", message=message)
        elif known:
            del self._raised[name]
            self._context.log("info", f"alert is over: {known[0]}", alert=name)
            self._context.publish(f"alert.{name}", state="cleared", message=known[0])

    def names(self) -> list[tuple[str, str]]:
        """The name of each raised alert, and the GPU or worker that it is about, or ``""``."""
        return [(name, of) for name, _, of in (raised.partition(".") for raised in self._raised)]

    @property
    def messages(self) -> tuple[str, ...]:
        """The messages of the raised alerts, the oldest first."""
        return tuple(message for message, _ in self._raised.values())

    def describe(self) -> list[dict[str, Any]]:
        """All raised alerts, as ``status`` shows them."""
        now = self._context.now
        return [
            {"name": name, "message": message, "for_s": round(now - since, 3)}
            for name, (message, since) in self._raised.items()
        ]
