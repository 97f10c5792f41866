"""A client that floods every table which all clients share, and what its neighbours may not lose by that."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from glmtts.daemon.core import inputs
from glmtts.daemon.core.jobs import estimates, job_table
from glmtts.daemon.core.scheduling import admission, rate_limit
from glmtts.daemon.core.shares import owner_of
from glmtts.protocol import requests

from .rules import Rule, must

if TYPE_CHECKING:
    from .clients import Connection
    from .world import World

MALLORY = inputs.Client("uid:1666", "mallory")
#: Requests of one flood.
_AT_ONCE = 12


@contextmanager
def small_tables() -> Iterator[None]:
    """Tables so small that a life fills them many times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_table, "MAX_ENDED", 40)
        patch.setattr(job_table, "MAX_BARE", 20)
        patch.setattr(job_table, "MAX_KEYS", 40)
        patch.setattr(rate_limit, "MAX_CLIENTS", 12)
        patch.setattr(admission, "_MAX_KNOWN", 12)
        patch.setattr(estimates, "_MAX_KINDS", 24)
        yield


class Flood:
    """One client, a gateway too, that asks for all that fills a table."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._numbers = itertools.count(1)
        self._connection: Connection | None = None

    def come(self) -> None:
        """Many requests of one kind at once."""
        clients, rng = self._world.clients, self._world.random
        if self._connection is None or not self._connection.open:
            self._connection = clients.connect(MALLORY)
            self._connection.slow = False
        kind = rng.choice((self._keys, self._names, self._kinds, self._cancelled))
        for _ in range(_AT_ONCE):
            number = next(self._numbers)
            wishes = kind(number)
            request = requests.Synthesize(
                id=self._world.id(), v=1, text=f"ok mallory {number}", durable=False, priority="batch", **wishes
            )
            clients.ask(self._connection, request, joined=False)

    def _keys(self, number: int) -> dict[str, Any]:
        return {"key": f"mallory {number}", "events": "final"}

    def _names(self, number: int) -> dict[str, Any]:
        return {"on_behalf_of": f"customer {number}", "deadline_s": 0.2}

    def _kinds(self, number: int) -> dict[str, Any]:
        return {"options": {"mib": number}}

    def _cancelled(self, number: int) -> dict[str, Any]:  # noqa: ARG002
        return {"deadline_s": 0.01}


class Row(NamedTuple):
    """A row of a table: whose it is, its size, and whether it is due to go by now."""

    client: str
    size: int
    due: Callable[[float], bool]


def _never(_: float) -> bool:
    return False


def _by(at: float, also: Callable[[], bool] = lambda: False) -> Callable[[float], bool]:
    return lambda now: at <= now or also()


class Neighbours:
    """Knows who had what before a step: only the client that held most has lost a row that was not due."""

    def __init__(self, world: World, machine: Any) -> None:
        self._world = world
        self._machine = machine
        self._had: dict[str, dict[Any, Row]] = {}

    def look(self) -> None:
        """After every step."""
        for name, rows in self._tables():
            had, self._had[name] = self._had.get(name, {}), rows
            gone = had.keys() - rows.keys()
            if not gone:
                continue
            held: Counter[str] = Counter()
            for row in (had | rows).values():
                held[owner_of(row.client)] += row.size
            most = max(held.values())
            lost = sum(had[key].size for key in gone)
            for key in gone:
                row = had[key]
                just = row.due(self._world.now) or held[owner_of(row.client)] + lost >= most
                must(Rule.SHARES, just, row.client, "has lost", key, "of", name, "and holds", held, "in all")

    def _tables(self) -> Iterator[tuple[str, dict[Any, Row]]]:
        table, scheduler = self._machine.state.job_table, self._machine.scheduler
        ended = table._ended

        def of(rows: Any, also: Callable[[str], bool] = lambda _: False) -> dict[Any, Row]:
            return {
                id: Row(client, size, _by(ended[id].expires_at, partial(also, id)))
                for client, of_client in rows._of_client.items()
                for id, size in of_client.items()
            }

        # One that has lost its result goes on in the other table, and a result goes with its row.
        yield "ended", of(table._kept, lambda id: id in ended)
        yield "ended_bare", of(table._bare)
        yield "results", of(table._results, lambda id: id not in ended)

        def withdrawn(job: str) -> Callable[[float], bool]:
            return lambda _: table.find(job) is None

        yield "keys", {key: Row(key[0], 1, withdrawn(job)) for key, (job, _, _) in table._keys.items()}
        kinds = self._machine.state.estimator._kinds
        yield "estimates", {kind: Row(line.client, 1, _never) for kind, line in kinds.items()}
        yield "known", {key: Row(key, 1, _never) for key in scheduler.admission._known}
        for name in ("_rate", "_rate_batch"):
            buckets = getattr(scheduler.admission, name)._buckets.items()
            yield name, {client: Row(client, 1, _by(bucket[2])) for client, bucket in buckets}
