"""Every job that the daemon knows: the live ones, and for a while the ended ones with their results."""

from __future__ import annotations

import hashlib
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import UNSET

from glmtts.protocol.codec import encode
from glmtts.protocol.requests import KEY_HOLDS_S, Synthesize

from ..inputs import ReplyTo
from ..shares import Removals, SharedRows, Shares
from .job import Ended, Ending, Job, Pieces, Subscriber

#: Ended jobs that are remembered at most: those with a result or a key, and those without.
MAX_ENDED, MAX_BARE = 7_500, 2_500
#: Idempotency keys that are remembered at most.
MAX_KEYS = 10_000


class JobTable:
    """Owns all jobs, by id, connection, client and idempotency key. A job is live or ended, never both.

    Of a full table the client that holds most loses first. Ended jobs without a result or a key have a table of their
    own, so that none of them removes a result.
    """

    def __init__(self, removals: Removals | None = None) -> None:
        self.live: dict[str, Job] = {}
        self.live_of_client: defaultdict[str, int] = defaultdict(int)
        #: How many live jobs are durable.
        self.durable = 0
        self.outputs: set[str] = set()
        #: Bytes of recordings that live jobs hold.
        self.recordings = Shares()
        #: Live jobs whose text is not complete.
        self.open_texts = Shares()
        #: Dicts for sets, which have no order: a schedule that failed must fail again in the same way.
        self._of_connection: dict[int, dict[str, None]] = {}
        self._ended: OrderedDict[str, Ended] = OrderedDict()
        self._kept: SharedRows[str] = SharedRows()
        self._bare: SharedRows[str] = SharedRows()
        #: In bytes.
        self._results: SharedRows[str] = SharedRows()
        self._keys: OrderedDict[tuple[str, str], tuple[str, str, float]] = OrderedDict()
        self._keys_of: SharedRows[tuple[str, str]] = SharedRows()
        self._removals = removals or Removals()

    @property
    def recording_bytes(self) -> int:
        """Bytes of recordings of live jobs."""
        return self.recordings.total

    @property
    def result_bytes(self) -> int:
        """Bytes of results of ended jobs."""
        return self._results.shares.total

    def add(self, job: Job) -> None:
        """Remember an accepted job; one with an idempotency key has its ``content``."""
        self.live[job.id] = job
        self.live_of_client[job.client.key] += 1
        self.durable += job.durable
        if job.recording is not None:
            self.recordings.add(job.client.key, len(job.recording))
        if job.pieces is not None and not job.pieces.complete:
            self.open_texts.add(job.client.key, 1)
        if job.request.output is not UNSET:
            self.outputs.add(job.request.output)
        if job.request.key is not UNSET:
            self._remember_key(job, job.request.key)
        for subscriber in job.subscribers:
            self._of_connection.setdefault(subscriber.to.connection, {})[job.id] = None

    def _remember_key(self, job: Job, name: str) -> None:
        client = job.client.key
        key = (client, name)
        if key in self._keys:
            self._keys.move_to_end(key)
            self._keys_of.renew(client, key)
        else:
            self._keys_of.add(client, key)
        self._keys[key] = (job.id, job.content, job.accepted_at + KEY_HOLDS_S)
        if len(self._keys) > MAX_KEYS:
            client, key = self._keys_of.first_out()
            self._note("keys", client, self._keys_of)
            self._drop_key(key)

    def _drop_key(self, key: tuple[str, str]) -> None:
        if self._keys.pop(key, None) is not None:
            self._keys_of.remove(key[0], key)

    def _note(self, table: str, client: str, rows: SharedRows[Any]) -> None:
        self._removals.note(table, client, shared=len(rows.shares) > 1)

    def awaits(self, to: ReplyTo, id: str) -> bool:
        """Whether a live job is going to answer this request."""
        jobs = (self.live[job] for job in self._of_connection.get(to.connection, ()) if job in self.live)
        return any(subscriber.to == to and subscriber.id == id for job in jobs for subscriber in job.subscribers)

    def subscribe(self, job: Job, subscriber: Subscriber) -> None:
        """Send a live job's events to one more request."""
        job.subscribers.append(subscriber)
        self._of_connection.setdefault(subscriber.to.connection, {})[job.id] = None

    def remove_subscriber(self, job: Job, subscriber: Subscriber) -> None:
        """Send nothing more of a live job to one request."""
        job.subscribers = [other for other in job.subscribers if other is not subscriber]
        if all(other.to.connection != subscriber.to.connection for other in job.subscribers):
            self._forget_subscription(job.id, subscriber.to.connection)

    def unsubscribe(self, job: Job, connection: int) -> list[Subscriber]:
        """Send nothing more of a live job to a connection; returns its requests for that job."""
        gone = [s for s in job.subscribers if s.to.connection == connection]
        job.subscribers = [s for s in job.subscribers if s.to.connection != connection]
        self._forget_subscription(job.id, connection)
        return gone

    def _forget_subscription(self, id: str, connection: int) -> None:
        of_connection = self._of_connection.get(connection)
        if of_connection is not None:
            of_connection.pop(id, None)
            if not of_connection:
                del self._of_connection[connection]

    def drop_connection(self, connection: int) -> list[Job]:
        """Forget a connection; returns the live jobs that it had subscribed to."""
        jobs = [self.live[id] for id in self._of_connection.pop(connection, ()) if id in self.live]
        for job in jobs:
            job.subscribers = [s for s in job.subscribers if s.to.connection != connection]
        return jobs

    def with_key(self, client: str, key: str, now: float) -> tuple[str, str] | None:
        """The id and the content digest of the client's job with this idempotency key, or None."""
        found = self._keys.get((client, key))
        if found is None or found[2] <= now:
            return None
        return found[:2]

    def has_key_of(self, id: str, client: str | None) -> bool:
        """Whether a job that is forgotten had an idempotency key, which is not. ``client``: whose it was; None: any."""
        return any(
            job == id and client in (None, owner, owner.partition("/")[0])
            for (owner, _), (job, _, _) in self._keys.items()
        )

    def forget_key(self, job: Job) -> None:
        """Free the idempotency key of a job that was not accepted after all."""
        if job.request.key is not UNSET:
            self._drop_key((job.client.key, job.request.key))

    def end(self, job: Job, ending: Ending, expires_at: float) -> None:
        """Keep the end of a job in place of the job itself: thousands are kept, so each is small."""
        self.drop(job)
        ended = Ended(info=job.describe(), client=job.client, ending=ending, expires_at=expires_at)
        self._ended[job.id] = ended
        client = job.client.key
        if ending.body is not None:
            self._results.add(client, job.id, ended.size)
        # The journal has the durable ones, with their keys.
        if ending.body is not None or (job.request.key is not UNSET and not job.durable):
            self._kept.add(client, job.id)
            if self._kept.count > MAX_ENDED:
                self._make_room("ended", self._kept)
        else:
            self._add_bare(client, job.id)

    def _add_bare(self, client: str, id: str) -> None:
        self._bare.add(client, id)
        if self._bare.count > MAX_BARE:
            self._make_room("ended_bare", self._bare)

    def _make_room(self, table: str, rows: SharedRows[str]) -> None:
        client, id = rows.first_out()
        ended = self._ended[id]
        # The journal has the durable ones.
        if ended.info.durable is not True:
            self._note(table, client, rows)
        self._forget(ended)

    def complete(self, pieces: Pieces, client: str) -> None:
        """The last piece of a live job's text has come."""
        if not pieces.complete:
            pieces.complete = True
            self.open_texts.add(client, -1)

    def drop(self, job: Job) -> None:
        """Forget a live job: it has ended, or is left to the journal."""
        del self.live[job.id]
        self.durable -= job.durable
        self.live_of_client[job.client.key] -= 1
        if not self.live_of_client[job.client.key]:
            del self.live_of_client[job.client.key]
        if job.recording is not None:
            self.recordings.add(job.client.key, -len(job.recording))
            job.recording = None
        if job.pieces is not None:
            self.complete(job.pieces, job.client.key)
        if job.request.output is not UNSET:
            self.outputs.discard(job.request.output)
        for subscriber in job.subscribers:
            self._forget_subscription(job.id, subscriber.to.connection)
        job.subscribers = []

    def _forget(self, ended: Ended) -> None:
        id, client = ended.info.job, ended.client.key
        if ended.ending.body is not None:
            self._results.remove(client, id)
        if not self._kept.remove(client, id):
            self._bare.remove(client, id)
        del self._ended[id]

    def _drop_result(self, ended: Ended) -> None:
        """Remove the result of the client whose results take most; the job stays, and says so."""
        id, client = ended.info.job, ended.client.key
        self._results.remove(client, id)
        ended.ending.body = None
        ended.body_dropped = True
        if ended.info.key is UNSET and self._kept.remove(client, id):
            self._add_bare(client, id)

    def find(self, id: str) -> Job | Ended | None:
        """A job, live or ended."""
        return self.live.get(id) or self._ended.get(id)

    def ended(self, id: str) -> Ended | None:
        """An ended job that is still remembered."""
        return self._ended.get(id)

    def newest(self) -> Iterator[Job | Ended]:
        """Every job that is known: the live ones, then the ended ones, each the newest first."""
        yield from reversed(self.live.values())
        yield from reversed(self._ended.values())

    def describe(self) -> dict[str, int]:
        """How many entries each of its parts has."""
        return {
            "live": len(self.live),
            "ended": len(self._ended),
            "results": self._results.count,
            "keys": len(self._keys),
            "connections": len(self._of_connection),
            "outputs": len(self.outputs),
            "clients": len(self.live_of_client),
            "recording_bytes": self.recording_bytes,
            "open_texts": self.open_texts.total,
        }

    def shares(self) -> dict[str, tuple[Shares, int | None]]:
        """What clients hold of each table, and how much that may be in all; None where the settings say it."""
        return {
            "ended": (self._kept.shares, MAX_ENDED),
            "ended_bare": (self._bare.shares, MAX_BARE),
            "results": (self._results.shares, None),
            "keys": (self._keys_of.shares, MAX_KEYS),
            "recordings": (self.recordings, None),
            "open_texts": (self.open_texts, None),
        }

    def expire(self, now: float, max_result_bytes: int) -> float | None:
        """Forget old jobs, and drop results that take too much in sum; returns when to come again."""
        while self._ended:
            ended = next(iter(self._ended.values()))
            if ended.expires_at > now:
                break
            self._forget(ended)
        while self.result_bytes > max_result_bytes:
            client, id = self._results.first_out()
            if max_result_bytes:
                self._note("results", client, self._results)
            self._drop_result(self._ended[id])
        while self._keys and next(iter(self._keys.values()))[2] <= now:
            self._drop_key(next(iter(self._keys)))
        return next(iter(self._ended.values())).expires_at if self._ended else None


def content_digest(request: Synthesize, recording: bytes | memoryview | None) -> str:
    """SHA-256 over everything that decides how a request sounds and where it goes: two equal ones are one job."""
    same = msgspec.structs.replace(
        request,
        id="-",
        deadline_s=UNSET,
        durable=UNSET,
        events="all",
        key=UNSET,
        label=UNSET,
        on_behalf_of=UNSET,
        priority="interactive",
    )
    digest = hashlib.sha256(encode(same))
    if recording is not None:
        digest.update(recording)
    return digest.hexdigest()
