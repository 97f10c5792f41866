"""The invariants by their numbers in the design, and the exception that names the one that does not hold."""

from __future__ import annotations

import enum


class Rule(enum.IntEnum):
    """What always holds. The numbers are the design's; what has none there is beside them."""

    #: The wire, the tables and the sums are as they are described.
    ORDER = 0
    #: Every accepted job gets exactly one end, in finite time.
    ONE_END = 1
    #: A durable job gets one end over all daemons, that is told when it is on disk; its output appears once, by it.
    OUTPUT_ONCE = 2
    #: No audio of one job ever reaches another client.
    OWN_AUDIO = 3
    #: No more workers hold a GPU than may; one is started where the memory that it needs is free; one in each place.
    ROOM = 4
    #: What killed workers is not run again; what is healthy is never refused for it.
    QUARANTINE = 5
    #: Classes, and the clients of a class, are served by their weights while they wait; who is due goes first.
    FAIR = 6
    #: Every queue and buffer is bounded, and what one client may have.
    BOUNDED = 7
    #: Restarts never spin, and only faults count.
    NO_SPIN = 8
    #: No worker is idle while jobs wait.
    NO_IDLENESS = 9
    #: A worker that leaks is replaced before it runs out.
    LEAK_SEEN = 10
    #: Recycling with room for a spare leaves nobody without a worker.
    NO_GAP = 11
    #: Of a full table that all clients share, only the client that holds most loses a row.
    SHARES = 12


class Broken(AssertionError):
    """Something that always holds does not hold."""

    def __init__(self, rule: Rule, what: str) -> None:
        super().__init__(f"{rule.name} (invariant {int(rule)}): {what}")
        self.rule = rule


def must(rule: Rule, condition: object, *what: object) -> None:
    """Raise Broken unless the condition holds."""
    if not condition:
        raise Broken(rule, " ".join(map(str, what)))
