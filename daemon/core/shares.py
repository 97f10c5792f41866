"""Shares in a bounded table: when it is full, the client that holds most of it loses first, its oldest row first.

No key of the configuration is needed for that, and a share is never less than the table by the number of clients in it:
a client loses a row only while it holds most. A gateway's customers are counted twice, together as the gateway among
the other clients, and each for itself within the gateway.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)

#: Heaps are cleared of entries that say nothing any more when those are more than the others, and more than this.
_STALE = 64
#: Clients whose losses are remembered.
_MAX_LOSERS = 1_000


class Table(NamedTuple):
    """A bounded table: its rows in words, and whether they are jobs that a client may ask for."""

    words: str
    of_jobs: bool = False


#: The tables whose losses are counted.
TABLES: dict[str, Table] = {
    "ended": Table("ended jobs in memory that have a result or a key", of_jobs=True),
    "ended_bare": Table("ended jobs in memory without a result or a key", of_jobs=True),
    "results": Table("results in memory ([queue] keep_results_mib)"),
    "keys": Table("idempotency keys in memory"),
    "journal": Table("ended jobs of the journal that have a result or a key", of_jobs=True),
    "journal_bare": Table("ended jobs of the journal without a result or a key", of_jobs=True),
    "durable_results": Table("results of durable jobs ([queue] keep_durable_mib)"),
    "rates": Table("names whose use of the rate is remembered"),
    "quarantine": Table("contents that workers died of"),
    "estimates": Table("kinds of jobs whose time was measured"),
    "lookups": Table("requests for jobs that wait for the journal"),
    "journal_queue": Table("jobs that wait to be written to the journal"),
}


def owner_of(client: str) -> str:
    """The owner of a client's key: ``uid:7`` of the gateway's customer ``uid:7/carol``."""
    return client.partition("/")[0]


#: The part of what is free, or its own, that one client may take: so however much it takes, the next one finds room.
FREE_PART = 0.8


def part_of_free(own: int, free: int) -> int:
    """What may come to ``own`` bytes so that they take at most the part of what they and the free ones are."""
    return int(FREE_PART * (own + free)) - own


class _Amounts:
    """How much each name holds, and the name that holds most: of several the one that came first.

    Both take amortised logarithmic time at most.
    """

    __slots__ = ("_heap", "_order", "held")

    def __init__(self) -> None:
        #: Of each name what it holds, its ceiling, which is at least that, so that few rows go through the heap, and
        #: its place in the order of those with the same.
        self.held: dict[str, list[int]] = {}
        self._heap: list[tuple[int, int, str]] = []
        self._order = 0

    def add(self, name: str, amount: int) -> None:
        held = self.held.get(name)
        if held is None:
            if amount <= 0:
                return
            self._order += 1
            held = self.held[name] = [0, 0, self._order]
        now = held[0] = held[0] + amount
        if now <= 0:
            del self.held[name]
        elif now > held[1]:
            held[1] = 2 * now
            heapq.heappush(self._heap, (-2 * now, held[2], name))
            if len(self._heap) > _STALE + 2 * len(self.held):
                self._heap = [(-ceiling, place, name) for name, (_, ceiling, place) in self.held.items()]
                heapq.heapify(self._heap)

    def of(self, name: str) -> int:
        held = self.held.get(name)
        return held[0] if held is not None else 0

    def greatest(self) -> str:
        heap = self._heap
        while True:
            ceiling, place, name = heap[0]
            held = self.held.get(name)
            if held is None or held[1] != -ceiling or held[2] != place:
                heapq.heappop(heap)
            elif held[0] != held[1]:
                held[1] = held[0]
                heapq.heapreplace(heap, (-held[0], place, name))
            else:
                return name


class Shares:
    """Owns how much of a table each client holds, in rows or bytes."""

    def __init__(self) -> None:
        self.total = 0
        self._owners = _Amounts()
        #: Of each owner that has, or had, customers here: itself and each of them.
        self._customers: dict[str, _Amounts] = {}

    def add(self, client: str, amount: int) -> None:
        """A client holds so much more, or less where it is negative."""
        self.total += amount
        if "/" not in client and client not in self._customers:
            self._owners.add(client, amount)
            return
        owner = owner_of(client)
        customers = self._customers.get(owner)
        if customers is None:
            customers = self._customers[owner] = _Amounts()
            customers.add(owner, self._owners.of(owner))
        self._owners.add(owner, amount)
        customers.add(client, amount)
        if not customers.held:
            del self._customers[owner]

    def greatest(self) -> str:
        """The client that holds most: of the owner that holds most. There has to be one."""
        owner = self._owners.greatest()
        customers = self._customers.get(owner)
        return owner if customers is None else customers.greatest()

    def of(self, client: str) -> int:
        """How much a client holds; an owner by itself, without its customers."""
        owner = owner_of(client)
        return self._customers.get(owner, self._owners).of(client)

    def of_owner(self, owner: str) -> int:
        """How much an owner holds, with all its customers."""
        return self._owners.of(owner)

    def held(self, client: str) -> int:
        """How much a client holds: an owner with all its customers."""
        return self.of(client) if "/" in client else self.of_owner(client)

    def owners(self) -> dict[str, int]:
        """How much each owner holds; another thread may ask, since the copy is made at once."""
        return {owner: held[0] for owner, held in self._owners.held.copy().items()}

    def __len__(self) -> int:
        """How many owners hold anything."""
        return len(self._owners.held)


class SharedRows(Generic[K]):
    """Owns the order in which the rows of a table have to go: those of the client that holds most, the oldest first."""

    def __init__(self) -> None:
        self.shares = Shares()
        self.count = 0
        self._of_client: dict[str, OrderedDict[K, int]] = {}

    def add(self, client: str, key: K, size: int = 1) -> None:
        """A client has one more row, its newest."""
        rows = self._of_client.get(client)
        if rows is None:
            rows = self._of_client[client] = OrderedDict()
        rows[key] = size
        self.count += 1
        self.shares.add(client, size)

    def renew(self, client: str, key: K) -> None:
        """A row of a client is its newest from now on."""
        self._of_client[client].move_to_end(key)

    def remove(self, client: str, key: K) -> bool:
        """A row is gone; returns whether it was there."""
        rows = self._of_client.get(client)
        size = rows.pop(key, None) if rows is not None else None
        if rows is None or size is None:
            return False
        if not rows:
            del self._of_client[client]
        self.count -= 1
        self.shares.add(client, -size)
        return True

    def first_out(self) -> tuple[str, K]:
        """The client that holds most, and its oldest row. There has to be one."""
        client = self.shares.greatest()
        return client, next(iter(self._of_client[client]))

    def last_in(self) -> tuple[str, K]:
        """The client that holds most, and its newest row. There has to be one."""
        client = self.shares.greatest()
        return client, next(reversed(self._of_client[client]))


class Removals:
    """Counts the rows that were removed early, because their client held most of a full table."""

    def __init__(self) -> None:
        #: Rows that were removed while other clients held some too, by table; and the last client, with its table.
        self.counts: dict[str, int] = dict.fromkeys(TABLES, 0)
        self.last: tuple[str, str] | None = None
        self._of_client: OrderedDict[str, dict[str, int]] = OrderedDict()

    def note(self, table: str, client: str, count: int = 1, *, shared: bool = True) -> None:
        """Rows of a client were removed from a table, ``shared`` with other clients at that time."""
        if shared:
            self.last = client, table
            self.counts[table] += count
        # A gateway may ask for the jobs of its customers without naming them.
        for name in (client, owner_of(client)) if "/" in client else (client,):
            lost = self._of_client.get(name)
            if lost is None:
                lost = self._of_client[name] = {}
                if len(self._of_client) > _MAX_LOSERS:
                    self._of_client.popitem(last=False)
            lost[table] = lost.get(table, 0) + count

    @property
    def total(self) -> int:
        """How many rows were removed while other clients held some too."""
        return sum(self.counts.values())

    def of(self, client: str) -> dict[str, int]:
        """How many rows a client has lost, by table."""
        return self._of_client.get(client, {})

    def words(self, client: str) -> str:
        """What a client may have lost, to follow the sentence that a job is not there; ``""`` if nothing."""
        lost = sum(count for table, count in self.of(client).items() if TABLES[table].of_jobs)
        if not lost:
            return ""
        return (
            f"; it may be one of {lost:,} ended jobs of yours that were removed early, since you held the most of all "
            "clients: fetch results sooner, and keep fewer"
        )
