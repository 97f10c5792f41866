"""Jobs that killed workers, by the digest of their content: refused before they kill another."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from msgspec import Struct

#: How many are remembered.
_MAX_ENTRIES = 1_000


class Entry(Struct):
    """What is held against a content: ``expires_at`` on the core's clock, and the last worker's death in words."""

    deaths: int
    expires_at: float
    cause: str = ""
    detail: str = ""
    client: str = ""
    job: str = ""


class Quarantine:
    """Counts the workers that died of a content, and holds that against it for so long after the last one."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, Entry] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._entries)

    def blame(
        self,
        digest: str,
        now: float,
        holds_s: float,
        *,
        cause: str = "",
        detail: str = "",
        client: str = "",
        job: str = "",
    ) -> int:
        """A worker died of this; returns how many have by now."""
        count = self.deaths(digest, now) + 1
        self._entries[digest] = Entry(count, now + holds_s, cause, detail, client, job)
        self._entries.move_to_end(digest)
        if len(self._entries) > _MAX_ENTRIES:
            self._entries.popitem(last=False)
        return count

    def deaths(self, digest: str, now: float) -> int:
        """How many workers died of this lately."""
        entry = self._entries.get(digest)
        if entry is not None and entry.expires_at <= now:
            del self._entries[digest]
            return 0
        return entry.deaths if entry is not None else 0

    def clear(self, digest: str) -> bool:
        """It was spoken after all, or an operator says so: nothing is held against it. Returns whether anything was."""
        return self._entries.pop(digest, None) is not None

    def clear_all(self) -> int:
        """Nothing is held against anything; returns how many there were."""
        count = len(self._entries)
        self._entries.clear()
        return count

    def count(self, now: float, at_least: int) -> int:
        """How many are refused."""
        return sum(entry.deaths >= at_least and entry.expires_at > now for entry in self._entries.values())

    def describe(self, now: float, at_least: int) -> list[dict[str, Any]]:
        """Everything that is refused, as operators see it, the newest first."""
        return [
            {
                "content": digest,
                "deaths": entry.deaths,
                "cause": entry.cause,
                "detail": entry.detail,
                "client": entry.client,
                "job": entry.job,
                "expires_in_s": round(entry.expires_at - now, 3),
            }
            for digest, entry in reversed(self._entries.items())
            if entry.deaths >= at_least and entry.expires_at > now
        ]
