"""Refuses a job for lack of room: the client's rate, its share of the queue, a full queue, memory for recordings."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from glmtts.protocol import requests
from glmtts.protocol.errors import ErrorCode, RequestError
from glmtts.protocol.requests import Priority

from ..inputs import Client
from ..settings import ClientLimits, Settings
from ..state import State
from .forecast import Forecast
from .rate_limit import RateLimiter, parse_rate

URGENT: tuple[Priority, ...] = ("vip", "interactive")
BATCH: tuple[Priority, ...] = ("batch",)
#: Where the forecast has no answer.
_RETRY_S = 1.0
#: A client that comes back at the time that was named must find the place free.
_SOONEST_S, _ROUNDING_S = 0.1, 0.001
_MAX_KNOWN = 10_000


class Allowance(Struct, frozen=True):
    """What one client may have: ``rate`` as ``(count, seconds)`` or None, and its places in the two queues."""

    rate: tuple[int, float] | None
    rate_batch: tuple[int, float] | None
    rate_words: str
    rate_batch_words: str
    max_jobs: int
    share: int
    share_batch: int
    own: bool


class Admission:
    """Owns what each client has used of its rates. A refusal says when to come back, and costs no token."""

    def __init__(self, state: State, forecast: Forecast) -> None:
        self._context, self._job_table = state.context, state.job_table
        self._queue, self._pool = state.queue, state.pool
        self._forecast = forecast
        self._rate = RateLimiter()
        self._rate_batch = RateLimiter()
        #: Clients that came lately, the last one last.
        self._known: OrderedDict[str, tuple[Client, Allowance]] = OrderedDict()

    def apply(self) -> None:
        """The settings have changed; what clients have used of their rates stays used."""
        for client, _ in self._known.values():
            self._known[client.key] = (client, _allowance(self._context.settings, client))

    def age(self, seconds: float) -> None:
        """Time has passed for clients in which the daemon did not run."""
        self._rate.age(seconds)
        self._rate_batch.age(seconds)

    def allowance(self, client: Client) -> Allowance:
        """What a client may have."""
        known = self._known.get(client.key)
        return known[1] if known is not None else _allowance(self._context.settings, client)

    def known_clients(self) -> list[Client]:
        """Clients that came lately, the last one last."""
        return [client for client, _ in self._known.values()]

    def _remember(self, client: Client) -> Allowance:
        allowed = self.allowance(client)
        self._known[client.key] = (client, allowed)
        self._known.move_to_end(client.key)
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)
        return allowed

    def check(self, client: Client, request: requests.Synthesize, body: bytes | memoryview | None) -> None:
        """Take a token of the client's rate; or raise RequestError, and take none."""
        settings, allowed = self._context.settings, self._remember(client)
        if self._job_table.live_of_client.get(client.key, 0) >= allowed.max_jobs:
            message = (
                f"you have {allowed.max_jobs} jobs waiting or running, which is your limit; send more when one is done"
            )
            raise self._full(message, self._forecast.next_end_s(client.key))
        batch = request.priority == "batch"
        classes = BATCH if batch else URGENT
        places, share = _places(settings, batch=batch), allowed.share_batch if batch else allowed.share
        waiting = sum(self._queue.length(priority) for priority in classes)
        # The first job, while a worker is free, needs no place.
        if waiting or self._queue.paused or self._pool.free() is None:
            if waiting >= places:
                raise self._full(
                    f"the queue is full: {waiting} jobs wait; try again later", self._forecast.next_start_s(classes)
                )
            own = self._queue.waiting_of(client.key, classes)
            if own >= share:
                message = f"{own} jobs of yours wait, which is your share of {places} places ([queue] max_share)"
                raise self._full(message, self._forecast.next_start_s(classes, client.key))
        if body is not None and self._job_table.recording_bytes + len(body) > settings.limits.recordings_mib << 20:
            limit = settings.limits.recordings_mib
            message = f"waiting jobs hold {limit} MiB of recordings ([limits] recordings_mib); try again later"
            raise self._full(message, self._forecast.next_end_s())
        limiter, rate = (self._rate_batch, allowed.rate_batch) if batch else (self._rate, allowed.rate)
        after_s = limiter.take(client.key, rate, self._context.now)
        if after_s is not None:
            words = allowed.rate_batch_words if batch else allowed.rate_words
            raise RequestError(ErrorCode.RATE_LIMITED, f"more than {words} jobs of yours", retry_after_s=after_s)

    @staticmethod
    def _full(message: str, after_s: float | None) -> RequestError:
        retry_after_s = _RETRY_S if after_s is None else max(_SOONEST_S, round(after_s + _ROUNDING_S, 3))
        return RequestError(ErrorCode.QUEUE_FULL, message, retry_after_s=retry_after_s)

    # --- for operators

    def describe_general(self) -> dict[str, Any]:
        """The limits of a client that has none of its own."""
        queue, limits = self._context.settings.queue, self._context.settings.limits
        return {
            "rate": limits.rate,
            "rate_batch": limits.rate_batch,
            "max_waiting": queue.max_waiting,
            "max_waiting_batch": queue.max_waiting_batch,
            "max_share": queue.max_share,
            "max_jobs": queue.max_per_client,
        }

    def describe(self, client: Client) -> dict[str, Any]:
        """A client's limits, and how far it has used them."""
        allowed, now = self.allowance(client), self._context.now
        tokens, next_s = self._rate.left(client.key, allowed.rate, now)
        tokens_batch, next_batch_s = self._rate_batch.left(client.key, allowed.rate_batch, now)
        return {
            "client": client.key,
            "user": client.user,
            "rate": allowed.rate_words,
            "rate_batch": allowed.rate_batch_words,
            "tokens": tokens,
            "tokens_batch": tokens_batch,
            "next_token_in_s": next_s,
            "next_batch_token_in_s": next_batch_s,
            "jobs": self._job_table.live_of_client.get(client.key, 0),
            "max_jobs": allowed.max_jobs,
            "waiting": self._queue.waiting_of(client.key, URGENT),
            "share": allowed.share,
            "waiting_batch": self._queue.waiting_of(client.key, BATCH),
            "share_batch": allowed.share_batch,
            "own": allowed.own,
            "gateway": is_named(client, self._context.settings.limits.gateways),
        }


def _places(settings: Settings, *, batch: bool) -> int:
    return settings.queue.max_waiting_batch if batch else settings.queue.max_waiting


def names_of(client: Client) -> Sequence[str]:
    """The names of a client in the configuration: ``1000``, ``uid:1000``, ``alice``; of a gateway's customer
    ``gate/carol``.
    """
    name = f"{client.user}/{client.on_behalf_of}" if client.on_behalf_of else client.user
    return (client.key, client.key.removeprefix("uid:"), name)


def is_named(client: Client, names: Sequence[str]) -> bool:
    """Whether the client has one of these names."""
    return any(name in names for name in names_of(client))


def _allowance(settings: Settings, client: Client) -> Allowance:
    limits, queue = settings.limits, settings.queue
    own = next((limits.clients[name] for name in names_of(client) if name in limits.clients), None)
    given = own or ClientLimits()
    rate = limits.rate if given.rate is None else given.rate
    rate_batch = limits.rate_batch if given.rate_batch is None else given.rate_batch
    share = queue.max_share if given.max_share is None else given.max_share
    return Allowance(
        rate=parse_rate(rate),
        rate_batch=parse_rate(rate_batch),
        rate_words=rate,
        rate_batch_words=rate_batch,
        max_jobs=queue.max_per_client if given.max_jobs is None else given.max_jobs,
        share=_part(share, queue.max_waiting),
        share_batch=_part(share, queue.max_waiting_batch),
        own=own is not None,
    )


def _part(share: float, places: int) -> int:
    """At least one place, if there are any; 55 % of 100 are 55, which floats don't know."""
    return math.ceil(round(share * places, 6))
