"""Refuses a job for lack of room: the client's rate, its share of the queue, a full queue, memory for recordings."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from msgspec import UNSET, Struct

from glmtts.protocol import requests
from glmtts.protocol.errors import ErrorCode, RequestError
from glmtts.protocol.requests import Priority

from ..inputs import Client
from ..settings import ClientLimits, Settings
from ..shares import SharedRows, Shares
from ..state import State
from .forecast import Forecast
from .output_shares import OutputShares
from .rate_limit import MAX_CLIENTS, RateLimiter, parse_rate

URGENT: tuple[Priority, ...] = ("vip", "interactive")
BATCH: tuple[Priority, ...] = ("batch",)
#: Where the forecast has no answer.
_RETRY_S = 1.0
#: A client that comes back at the time that was named must find the place free.
_SOONEST_S, _ROUNDING_S = 0.1, 0.001
#: Clients at most that ``limits`` shows as those that came lately.
_MAX_KNOWN = 10_000


class Allowance(Struct, frozen=True):
    """What one client may have: ``rate`` as ``(count, seconds)`` or None, and its places in the two queues.

    ``part`` is its share as a part of one. Those that begin with ``all`` are for an owner and all its customers
    together, and leave a share for others.
    """

    rate: tuple[int, float] | None
    rate_batch: tuple[int, float] | None
    rate_words: str
    rate_batch_words: str
    max_jobs: int
    share: int
    share_batch: int
    all_share: int
    all_share_batch: int
    part: float
    all_part: float
    own_voices: int
    own: bool


class Admission:
    """Owns what each client has used of its rates. A refusal says when to come back, and costs no token."""

    def __init__(self, state: State, forecast: Forecast, output_shares: OutputShares) -> None:
        self._context, self._job_table = state.context, state.job_table
        self._queue, self._pool = state.queue, state.pool
        self._forecast = forecast
        self._output_shares = output_shares
        self._own_voices = state.voices.own
        self._removals = state.removals
        self._rate = RateLimiter(state.removals)
        self._rate_batch = RateLimiter(state.removals)
        #: Clients that came lately, the last one last.
        self._known: OrderedDict[str, tuple[Client, Allowance]] = OrderedDict()
        self._known_of: SharedRows[str] = SharedRows()

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
        key, allowed = client.key, self.allowance(client)
        known = key in self._known
        self._known[key] = (client, allowed)
        if known:
            self._known.move_to_end(key)
            self._known_of.renew(key, key)
            return allowed
        self._known_of.add(key, key)
        if len(self._known) > _MAX_KNOWN:
            _, oldest = self._known_of.first_out()
            self._known_of.remove(oldest, oldest)
            del self._known[oldest]
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
            all_share = allowed.all_share_batch if batch else allowed.all_share
            together = self._queue.waiting_of_owner(client.owner, classes)
            if together >= all_share:
                message = (
                    f"{together} jobs of your gateway's customers wait, which is its share of {places} places "
                    "([queue] max_share); try again later"
                )
                raise self._full(message, self._forecast.next_start_s(classes))
        if request.more:
            self._check_open_texts(client, allowed)
        if body is not None:
            self.check_recording(client, len(body))
        if request.output is not UNSET:
            self._output_shares.check(client)
        self.take_token(client, batch=batch)

    def take_token(self, client: Client, *, batch: bool = False) -> None:
        """Take a token of the client's rate. Raises RequestError."""
        allowed = self._remember(client)
        limiter, rate = (self._rate_batch, allowed.rate_batch) if batch else (self._rate, allowed.rate)
        after_s = limiter.take(client.key, rate, self._context.now)
        if after_s is not None:
            words = allowed.rate_batch_words if batch else allowed.rate_words
            raise RequestError(ErrorCode.RATE_LIMITED, f"more than {words} jobs of yours", retry_after_s=after_s)

    def check_recording(self, client: Client, size: int) -> None:
        """Refuse a recording for which memory, or the client's share of it, has no room. Raises RequestError."""
        allowed = self.allowance(client)
        limit, recordings = self._context.settings.limits.recordings_mib, self._job_table.recordings
        if recordings.total + size > limit << 20:
            message = f"waiting jobs hold {limit} MiB of recordings ([limits] recordings_mib); try again later"
            raise self._full(message, self._forecast.next_end_s())
        own, together = recordings.of(client.key), recordings.of_owner(client.owner)
        too_much = own and own + size > allowed.part * (limit << 20)
        if too_much or (together and together + size > allowed.all_part * (limit << 20)):
            message = (
                f"waiting jobs of {'yours' if too_much else 'all customers of your gateway'} hold "
                f"{(own if too_much else together) >> 20} MiB of recordings, which is the share of {limit} MiB "
                "([limits] recordings_mib, [queue] max_share); send more when one is done"
            )
            raise self._full(message, self._forecast.next_end_s(client.key if too_much else ""))

    def _check_open_texts(self, client: Client, allowed: Allowance) -> None:
        """Refuse a text in pieces where as many as may be are not complete, of all clients or of this one."""
        limit, open_texts = self._context.settings.limits.open_texts, self._job_table.open_texts
        if not limit:
            raise RequestError(ErrorCode.FORBIDDEN, "more: this daemon takes no text in pieces ([limits] open_texts)")
        if open_texts.total >= limit:
            raise self._full(f"the texts of {limit} jobs are not complete ([limits] open_texts); try again later", None)
        own, together = open_texts.of(client.key), open_texts.of_owner(client.owner)
        share, all_share = _part(allowed.part, limit), _part(allowed.all_part, limit)
        if own >= share or together >= all_share:
            whose, most = ("yours", share) if own >= share else ("your gateway's customers", all_share)
            message = (
                f"the texts of {most} jobs of {whose} are not complete, which is the share of {limit} ([limits] "
                "open_texts, [queue] max_share); send their last pieces first"
            )
            raise self._full(message, None)

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
            "own_voices": limits.own_voices,
        }

    def _tables(self) -> dict[str, tuple[Shares, int]]:
        settings = self._context.settings
        bytes_of = {
            "results": settings.queue.keep_results_mib << 20,
            "recordings": settings.limits.recordings_mib << 20,
            "open_texts": settings.limits.open_texts,
        }
        tables = self._job_table.shares() | {
            "own_voices": (self._own_voices.shares, settings.limits.own_voices_mib << 20),
            "outputs": (self._output_shares.shares, self._output_shares.most),
            "rates": (self._rate.shares, MAX_CLIENTS),
            "rates_batch": (self._rate_batch.shares, MAX_CLIENTS),
        }
        return {name: (shares, bytes_of[name] if most is None else most) for name, (shares, most) in tables.items()}

    def describe_tables(self) -> dict[str, dict[str, int]]:
        """How full each table is that clients share, in rows or bytes, and the share of each that has any."""
        return {
            name: {"held": shares.total, "most": most, "clients": len(shares), "share": most // max(1, len(shares))}
            for name, (shares, most) in self._tables().items()
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
            "voices": self._own_voices.count(client.key),
            "max_voices": allowed.own_voices,
            "own": allowed.own,
            "gateway": is_named(client, self._context.settings.limits.gateways),
            "held": {table: shares.held(client.key) for table, (shares, _) in self._tables().items()},
            "removed": self._removals.of(client.key),
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
    gateway = _allowance(settings, Client(client.owner, client.user)) if client.on_behalf_of else None
    rate = limits.rate if given.rate is None else given.rate
    rate_batch = limits.rate_batch if given.rate_batch is None else given.rate_batch
    share = queue.max_share if given.max_share is None else given.max_share
    most, most_batch = queue.max_waiting, queue.max_waiting_batch
    places, places_batch = _part(share, most), _part(share, most_batch)
    return Allowance(
        rate=parse_rate(rate),
        rate_batch=parse_rate(rate_batch),
        rate_words=rate,
        rate_batch_words=rate_batch,
        max_jobs=queue.max_per_client if given.max_jobs is None else given.max_jobs,
        share=places,
        share_batch=places_batch,
        all_share=gateway.all_share if gateway else max(places, most - places),
        all_share_batch=gateway.all_share_batch if gateway else max(places_batch, most_batch - places_batch),
        part=share,
        all_part=gateway.all_part if gateway else max(share, 1 - share),
        own_voices=limits.own_voices if given.own_voices is None else given.own_voices,
        own=own is not None,
    )


def _part(share: float, places: int) -> int:
    """At least one place, if there are any; 55 % of 100 are 55, which floats don't know."""
    return math.ceil(round(share * places, 6))
