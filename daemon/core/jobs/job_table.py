"""Every job that the daemon knows: the live ones, and for a while the ended ones with their results."""

from __future__ import annotations

import hashlib
from collections import OrderedDict, defaultdict
from collections.abc import Iterator

import msgspec
from msgspec import UNSET

from glmtts.protocol.codec import encode
from glmtts.protocol.requests import KEY_HOLDS_S, Synthesize

from ..inputs import ReplyTo
from .job import Ended, Ending, Job, Subscriber

#: Ended jobs that are remembered at most, with or without their result.
MAX_ENDED = 10_000


class JobTable:
    """Owns all jobs, by id, connection, client and idempotency key. A job is live or ended, never both."""

    def __init__(self) -> None:
        self.live: dict[str, Job] = {}
        self.live_of_client: defaultdict[str, int] = defaultdict(int)
        #: How many live jobs are durable.
        self.durable = 0
        self.outputs: set[str] = set()
        #: Bytes of recordings that live jobs hold.
        self.recording_bytes = 0
        self.result_bytes = 0
        #: Dicts for sets, which have no order: a schedule that failed must fail again in the same way.
        self._of_connection: dict[int, dict[str, None]] = {}
        self._ended: OrderedDict[str, Ended] = OrderedDict()
        self._with_result: OrderedDict[str, Ended] = OrderedDict()
        self._keys: OrderedDict[tuple[str, str], tuple[str, str, float]] = OrderedDict()

    def add(self, job: Job) -> None:
        """Remember an accepted job; one with an idempotency key has its ``content``."""
        self.live[job.id] = job
        self.live_of_client[job.client.key] += 1
        self.durable += job.durable
        if job.recording is not None:
            self.recording_bytes += len(job.recording)
        if job.request.output is not UNSET:
            self.outputs.add(job.request.output)
        if job.request.key is not UNSET:
            key = (job.client.key, job.request.key)
            self._keys[key] = (job.id, job.content, job.accepted_at + KEY_HOLDS_S)
            self._keys.move_to_end(key)
            if len(self._keys) > MAX_ENDED:
                self._keys.popitem(last=False)
        for subscriber in job.subscribers:
            self._of_connection.setdefault(subscriber.to.connection, {})[job.id] = None

    def awaits(self, to: ReplyTo, id: str) -> bool:
        """Whether a live job is going to answer this request."""
        jobs = (self.live[job] for job in self._of_connection.get(to.connection, ()) if job in self.live)
        return any(subscriber.to == to and subscriber.id == id for job in jobs for subscriber in job.subscribers)

    def subscribe(self, job: Job, subscriber: Subscriber) -> None:
        """Send a live job's events to one more request."""
        job.subscribers.append(subscriber)
        self._of_connection.setdefault(subscriber.to.connection, {})[job.id] = None

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
            self._keys.pop((job.client.key, job.request.key), None)

    def end(self, job: Job, ending: Ending, expires_at: float) -> None:
        """Keep the end of a job in place of the job itself: thousands are kept, so each is small."""
        self.drop(job)
        ended = Ended(info=job.describe(), client=job.client, ending=ending, expires_at=expires_at)
        self._ended[job.id] = ended
        if ending.body is not None:
            self._with_result[job.id] = ended
            self.result_bytes += ended.size
        if len(self._ended) > MAX_ENDED:
            self._forget(next(iter(self._ended.values())))

    def drop(self, job: Job) -> None:
        """Forget a live job: it has ended, or is left to the journal."""
        del self.live[job.id]
        self.durable -= job.durable
        self.live_of_client[job.client.key] -= 1
        if not self.live_of_client[job.client.key]:
            del self.live_of_client[job.client.key]
        if job.recording is not None:
            self.recording_bytes -= len(job.recording)
            job.recording = None
        if job.request.output is not UNSET:
            self.outputs.discard(job.request.output)
        for subscriber in job.subscribers:
            self._forget_subscription(job.id, subscriber.to.connection)
        job.subscribers = []

    def _forget(self, ended: Ended) -> None:
        self._drop_result(ended)
        del self._ended[ended.info.job]

    def _drop_result(self, ended: Ended) -> None:
        if self._with_result.pop(ended.info.job, None) is not None:
            self.result_bytes -= ended.size
            ended.ending.body = None
            ended.body_dropped = True

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
            "results": len(self._with_result),
            "keys": len(self._keys),
            "connections": len(self._of_connection),
            "outputs": len(self.outputs),
            "clients": len(self.live_of_client),
            "recording_bytes": self.recording_bytes,
        }

    def expire(self, now: float, max_result_bytes: int) -> float | None:
        """Drop results that are too old or too large in sum, and forget old jobs; returns when to come again."""
        while self._with_result:
            ended = next(iter(self._with_result.values()))
            if ended.expires_at > now and self.result_bytes <= max_result_bytes:
                break
            self._drop_result(ended)
        while self._ended:
            ended = next(iter(self._ended.values()))
            if ended.expires_at > now:
                break
            self._forget(ended)
        while self._keys and next(iter(self._keys.values()))[2] <= now:
            self._keys.popitem(last=False)
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
        on_behalf_of=UNSET,
        priority="interactive",
    )
    digest = hashlib.sha256(encode(same))
    if recording is not None:
        digest.update(recording)
    return digest.hexdigest()
