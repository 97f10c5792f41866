"""A client's side of one connection, without I/O: it builds requests, reads events, and recovers broken connections.

The sync and the asyncio client are shells around it. A shell sends the messages of ``outgoing`` while ``connected``,
calls :meth:`Core.receive` with every message, and reports changes of the connection with :meth:`Core.connection_made`,
:meth:`Core.connection_broke` and :meth:`Core.tick`. The result of a request is in its :class:`~.exchange.Exchange`.
Nothing here raises for any bytes from the daemon.
"""

from __future__ import annotations

import copy
from collections import deque
from typing import Any, NamedTuple, TypeVar

import msgpack

from glmtts.protocol import codec
from glmtts.protocol.endpoints import CONTROL
from glmtts.protocol.events import Accepted, Error, InfoAnswer, Result
from glmtts.protocol.requests import VERSION
from glmtts.protocol.texts import wrong_character

from .errors import BadRequest, ConnectionLost, DaemonNotRunning, GlmttsError, ProtocolError, TooLarge, failure_of
from .exchange import Exchange, JobExchange
from .speech import SpeechOptions

#: Requests that may be executed twice: they are sent again when the connection broke before their answer.
_IDEMPOTENT = frozenset(
    {
        *("ping", "info", "voices", "voice_sample", "job", "jobs", "wait", "cancel"),
        *("status", "workers", "gpus", "queue", "limits", "metrics", "config", "usage"),
    }
)

#: A request is sent again at most this often, since it may be what ends the daemon.
_MAX_RESENDS = 3

#: No daemon takes more, whatever its configuration ([limits] header_kib and body_mib): such a request is not sent.
MAX_HEADER_BYTES = 1 << 20
MAX_BODY_BYTES = 256 << 20

#: Over a body of more than twice its limit, which is 1 MiB at least, a daemon closes the connection without an answer.
_CLOSING_BYTES = 2 << 20

#: Abandoned requests that are remembered until the daemon names their job, which is then cancelled or left.
_MAX_ABANDONED = 1_024


E = TypeVar("E", bound=Exchange)


class Outgoing(NamedTuple):
    """A message to send; without an exchange, its answer is ignored."""

    frames: list[bytes]
    exchange: Exchange | None


class Core:
    """Owns the requests in flight on one connection. ``now`` is a monotonic clock in seconds."""

    def __init__(self, endpoint: str, now: float, *, reconnect_s: float = 30.0) -> None:
        self.endpoint = endpoint
        self.reconnect_s = reconnect_s
        self.connected = False
        self.was_connected = False
        #: While not connected: when to give up. None after that, and while connected.
        self.give_up_at: float | None = now + reconnect_s
        self.outgoing: deque[Outgoing] = deque()
        self._by_id: dict[str, Exchange] = {}
        #: By job and customer: what one customer of a gateway waits for is no answer to another.
        self._by_job: dict[tuple[str, str | None], JobExchange] = {}
        #: Abandoned requests without a job yet, and whether that is to be cancelled.
        self._abandoned: dict[str, bool] = {}
        self._next_id = 0

    def synthesize(
        self, text: str, *, stream: bool = False, more: bool = False, recording: bytes | None = None, **options: Any
    ) -> JobExchange:
        """Request speech; with ``more``, of a text to which :meth:`add_text` adds.

        ``options`` are those of SpeechOptions but ``prompt``, whose bytes are ``recording``.

        Raises:
            TypeError: there is no such option.
            BadRequest: MessagePack can't carry a value; the daemon checks the rest.
            TooLarge: no daemon would take it.
        """
        if unknown := options.keys() - SpeechOptions.__annotations__.keys():
            raise TypeError(f"unexpected keyword argument {unknown.pop()!r}")
        prompt_text = options.pop("prompt_text", None)
        if recording is not None or prompt_text is not None:
            options["prompt"] = {} if prompt_text is None else {"text": prompt_text}
        id, frames = self._request(
            "synthesize", {"text": text, "stream": stream or None, "more": more or None, **options}, recording
        )
        exchange = JobExchange(
            id,
            "synthesize",
            frames,
            may_resend=options.get("key") is not None,
            streaming=stream,
            on_behalf_of=options.get("on_behalf_of"),
            outlives=stream and (options.get("durable") is True or options.get("key") is not None),
        )
        return self._launch(exchange)

    def add_text(
        self,
        exchange: JobExchange,
        text: str,
        *,
        flush: bool = False,
        last: bool = False,
        on_behalf_of: str | None = None,
    ) -> None:
        """Add a piece to the text of an accepted job, which ends with the error of a piece that is refused."""
        if exchange.finished or not (text or flush or last):
            return
        keys: dict[str, Any] = {
            "text": text or None,
            "flush": flush or None,
            "last": last or None,
            "on_behalf_of": on_behalf_of,
        }
        try:
            piece = self.call("text", job=exchange.job, **keys)
        except GlmttsError as error:
            self.abandon(exchange, error)
            return
        exchange.texts += 1
        piece.watchers.append(lambda: self._on_text(piece, exchange))

    def _on_text(self, piece: Exchange, exchange: JobExchange) -> None:
        if piece.finished:
            exchange.texts -= 1
            if piece.failure is not None:
                self.abandon(exchange, piece.failure)
            exchange.changed()

    def wait(
        self, job: str, on_behalf_of: str | None = None, *, track: bool = True, follow: bool = False
    ) -> JobExchange:
        """Request the remaining events of a job.

        ``track``: for all who wait for it. ``follow``: with its audio from the beginning.
        """
        id, frames = self._request("wait", {"job": job, "on_behalf_of": on_behalf_of, "follow": follow or None})
        exchange = JobExchange(
            id, "wait", frames, may_resend=not follow, streaming=follow, job=job, on_behalf_of=on_behalf_of
        )
        self._launch(exchange)
        if track:
            self.track(exchange)
        return exchange

    def call(self, op: str, body: bytes | None = None, **keys: Any) -> Exchange:
        """Send a request with one answer; keys that are None are left out. Errors are those of ``synthesize``."""
        id, frames = self._request(op, keys, body)
        return self._launch(Exchange(id, op, frames, may_resend=op in _IDEMPOTENT))

    def track(self, exchange: JobExchange) -> None:
        """Keep the job's result until it is collected, to be found by the job's id."""
        if exchange.job is not None:
            self._by_job[exchange.job, exchange.on_behalf_of] = exchange

    def tracked(self, job: str, on_behalf_of: str | None = None) -> JobExchange | None:
        """The request on this connection that gets the events of a job, for this customer."""
        return self._by_job.get((job, on_behalf_of))

    def collect(self, exchange: JobExchange) -> None:
        """Forget the job's result, which the caller has."""
        if exchange.job is not None and self.tracked(exchange.job, exchange.on_behalf_of) is exchange:
            del self._by_job[exchange.job, exchange.on_behalf_of]

    def abandon(self, exchange: Exchange, why: GlmttsError, *, cancel: bool = True) -> None:
        """End a request from this side and, with ``cancel``, cancel its job, unless that is to outlive it. No effect
        on an ended one, or on one of another connection: in a forked process, that of its parent."""
        if exchange.finished or self._by_id.get(exchange.ids[0]) is not exchange:
            return
        exchange.fail(why)
        self._settle(exchange, cancel=cancel)

    def connection_made(self) -> None:
        """The daemon is there, for the first time or again: resume the requests in flight."""
        self.connected = self.was_connected = True
        self.give_up_at = None
        unanswered = self.in_flight()
        for exchange in unanswered:
            if not exchange.sent:
                continue  # still in outgoing
            if isinstance(exchange, JobExchange) and exchange.job is not None:
                self._resume(exchange, exchange.job)
            elif not _may_close(exchange):
                self._send_again(exchange)
        if any(exchange.sent and _may_close(exchange) for exchange in unanswered):
            control = self.endpoint.endswith(f"/{CONTROL}")
            question = self.call("config" if control else "info")
            question.watchers.append(lambda: self._on_limits(question))

    def _send_again(self, exchange: Exchange) -> None:
        if exchange.resent >= _MAX_RESENDS:
            exchange.fail(_lost(exchange, f"the daemon went away {exchange.resent + 1} times without an answer"))
            self._settle(exchange)
        else:
            exchange.resent += 1
            exchange.sent = False
            self.outgoing.append(Outgoing(exchange.frames, exchange))

    def _on_limits(self, question: Exchange) -> None:
        """After the end of a connection over which a large body was sent: its limit, if the daemon has told it."""
        if not question.finished:
            return
        limit = _body_limit(question.answer)
        for exchange in self.in_flight():
            if not exchange.sent or not _may_close(exchange):
                continue
            size = len(exchange.frames[1])
            if limit is not None and size > limit:
                exchange.fail(TooLarge(f"body: {size} bytes; at most {limit} are accepted ([limits] body_mib)"))
                self._settle(exchange, cancel=False)
            elif exchange.may_resend:
                self._send_again(exchange)
            else:
                exchange.fail(_lost(exchange, _CLOSED))
                self._settle(exchange)

    def connection_broke(self, now: float) -> None:
        """The daemon is gone. Requests that can be neither resumed nor sent again end here."""
        if not self.connected:
            return
        self.connected = False
        self.give_up_at = now + self.reconnect_s
        for exchange in self.in_flight():
            known = isinstance(exchange, JobExchange) and exchange.job is not None
            if exchange.sent and not exchange.may_resend and not known and not _may_close(exchange):
                exchange.fail(_lost(exchange, _CLOSED))
                self._settle(exchange)
            exchange.changed()
        # No answer to a request of the old connection comes any more.
        self._abandoned.clear()

    def tick(self, now: float) -> None:
        """Give up after ``reconnect_s`` without the daemon."""
        if self.give_up_at is None or now < self.give_up_at:
            return
        self.give_up_at = None
        for exchange in self.in_flight():
            if self.was_connected:
                exchange.fail(_lost(exchange, f"it did not come back within {self.reconnect_s:g} s"))
            else:
                reason = f"no connection within {self.reconnect_s:g} s"
                exchange.fail(DaemonNotRunning(self.endpoint, reason))
            self._settle(exchange, cancel=False)
        self.outgoing.clear()

    def refused(self, why: GlmttsError) -> None:
        """The daemon refuses this client's keys, or the client refuses the daemon: all requests end."""
        self.connected = False
        self.give_up_at = None
        for exchange in self.in_flight():
            # One error object for each request: raising one changes its traceback.
            exchange.fail(copy.copy(why))
            self._settle(exchange, cancel=False)
        self.outgoing.clear()

    @property
    def owes_cancel(self) -> bool:
        """Whether an abandoned job has no name yet by which it could be cancelled."""
        return any(self._abandoned.values())

    @property
    def awaits_name(self) -> bool:
        """Whether an abandoned job has no name yet by which it could be cancelled, or left."""
        return bool(self._abandoned)

    @property
    def gave_up(self) -> bool:
        """Whether it waits for the daemon no more, until :meth:`try_again`."""
        return not self.connected and self.give_up_at is None

    def try_again(self, now: float) -> None:
        """Wait for the daemon again, for ``reconnect_s``."""
        self.give_up_at = now + self.reconnect_s

    def message_sent(self) -> None:
        """The first message of ``outgoing`` has left."""
        exchange = self.outgoing.popleft().exchange
        if exchange is not None:
            exchange.sent = True

    def receive(self, frames: list[bytes]) -> None:
        """Give a message to its request; messages of no request are dropped."""
        if not frames:
            return
        try:
            event = codec.decode_event(frames[0])
        except (ValueError, TypeError, RecursionError, MemoryError, OverflowError) as error:
            self._receive_damaged(frames[0], str(error))
            return
        if event is None or not isinstance(event.id, str):
            return
        exchange = self._by_id.get(event.id)
        if exchange is None:
            if isinstance(event, Accepted) and event.id in self._abandoned:
                if self._abandoned.pop(event.id):
                    self._cancel(event.job)
                else:
                    self._leave(event.job, event.id)
            elif isinstance(event, Error):
                self._abandoned.pop(event.id, None)
                if event.id == "" and (culprit := self._culprit()) is not None:
                    culprit.fail(failure_of(event))
                    self._settle(culprit, cancel=False)
            return
        exchange.feed(event, frames[1] if len(frames) > 1 else b"")
        if exchange.finished and event.final:
            self._forget(exchange)
        elif exchange.finished:
            # With a key the job may be another request's too.
            self._settle(exchange, cancel=not exchange.may_resend)

    def _receive_damaged(self, header: bytes, what: str) -> None:
        """End the request of an unreadable event, if its id can be read: it would wait for ever."""
        try:
            value = msgpack.unpackb(header, raw=False)
            exchange = self._by_id[value["id"]]
        except (ValueError, TypeError, KeyError, RecursionError, MemoryError, OverflowError):
            return
        exchange.fail(ProtocolError(f"The daemon's answer to {exchange.op!r} can't be read: {what[:200]}."))
        self._settle(exchange, cancel=not exchange.may_resend)

    def _culprit(self) -> Exchange | None:
        """The request whose id the daemon could not read: the largest if it is too large, else the only one."""
        candidates = [e for e in self.in_flight() if e.sent and e.unanswered and e.frames]
        if not candidates:
            return None
        largest = max(candidates, key=lambda e: len(e.frames[0]))
        too_large = len(largest.frames[0]) > codec.CodecLimits().header_bytes
        return largest if too_large or len(candidates) == 1 else None

    def _request(self, op: str, keys: dict[str, Any], body: bytes | None = None) -> tuple[str, list[bytes]]:
        self._next_id += 1
        id = f"r{self._next_id}"
        values = {"v": VERSION, "op": op, "id": id}
        values.update((key, value) for key, value in keys.items() if value is not None)
        header = _encode(values)
        if len(header) > MAX_HEADER_BYTES:
            key = max(values, key=lambda key: len(_encode({key: values[key]})))
            raise TooLarge(
                f"{key}: the request has {len(header)} bytes; no daemon accepts more than {MAX_HEADER_BYTES}"
            )
        if body is not None and len(body) > MAX_BODY_BYTES:
            raise TooLarge(f"body: {len(body)} bytes; no daemon accepts more than {MAX_BODY_BYTES}")
        return id, [header] if body is None else [header, bytes(body)]

    def _launch(self, exchange: E) -> E:
        self._by_id[exchange.ids[0]] = exchange
        self.outgoing.append(Outgoing(exchange.frames, exchange))
        return exchange

    def _resume(self, exchange: JobExchange, job: str) -> None:
        """Request the rest of a job under a new id; late events under the old id still count."""
        follow = exchange.streaming and exchange.op == "wait"
        keys = {"job": job, "on_behalf_of": exchange.on_behalf_of, "follow": follow or None}
        id, frames = self._request("wait", keys)
        exchange.ids.append(id)
        exchange.resumed = True
        exchange.sent = False
        self._by_id[id] = exchange
        self.outgoing.append(Outgoing(frames, exchange))

    def in_flight(self) -> list[Exchange]:
        """The requests that have not ended."""
        return list(dict.fromkeys(self._by_id.values()))

    def _settle(self, exchange: Exchange, *, cancel: bool = True) -> None:
        """Forget an exchange that ended on this side and, with ``cancel``, cancel its job; else leave it."""
        self._forget(exchange)
        if not isinstance(exchange, JobExchange):
            return
        cancel = cancel and exchange.op != "wait" and not exchange.outlives
        if exchange.job is not None and cancel:
            self._cancel(exchange.job)
        elif not self.connected or not exchange.sent:
            return  # the daemon does not know it, or has forgotten it with the connection
        elif exchange.job is not None:
            self._leave(exchange.job, exchange.ids[-1])
        else:
            while len(self._abandoned) >= _MAX_ABANDONED:
                del self._abandoned[next(iter(self._abandoned))]
            self._abandoned.update(dict.fromkeys(exchange.ids, cancel))

    def _forget(self, exchange: Exchange) -> None:
        for id in exchange.ids:
            self._by_id.pop(id, None)
        if any(message.exchange is exchange for message in self.outgoing):
            self.outgoing = deque(message for message in self.outgoing if message.exchange is not exchange)

    def _cancel(self, job: str) -> None:
        _, frames = self._request("cancel", {"job": job})
        self.outgoing.append(Outgoing(frames, None))

    def _leave(self, job: str, request: str) -> None:
        """Otherwise the daemon sends the job's events for a request that is not there."""
        _, frames = self._request("leave", {"job": job, "request": request})
        self.outgoing.append(Outgoing(frames, None))


_CLOSED = "the daemon closed it, and may or may not have begun; send it again if needed"


def _may_close(exchange: Exchange) -> bool:
    """Whether the daemon may have closed the connection over the size of this request."""
    return len(exchange.frames) > 1 and len(exchange.frames[1]) > _CLOSING_BYTES


def _body_limit(answer: object) -> int | None:
    """The largest body that the daemon takes, in bytes, of its answer to ``info`` or ``config``."""
    if isinstance(answer, InfoAnswer):
        limit = answer.limits.get("body_bytes")
        return limit if isinstance(limit, int) else None
    if isinstance(answer, Result):
        try:
            return int(answer.values["config"]["limits"]["body_mib"]) << 20
        except (KeyError, TypeError, ValueError):
            return None
    return None


def _lost(exchange: Exchange, why: str) -> ConnectionLost:
    if isinstance(exchange, JobExchange):
        return exchange.lost(why)
    return ConnectionLost(f"The connection to the daemon was lost over {exchange.op!r}: {why}.")


def _encode(values: dict[str, Any]) -> bytes:
    try:
        return codec.encode_map(values)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        for key, value in values.items():
            try:
                codec.encode_map({key: value})
            except UnicodeEncodeError as unencodable:
                raise BadRequest(f"{key}: {wrong_character(unencodable.object, unencodable.start)}") from None
            except (ValueError, TypeError, OverflowError, RecursionError) as unencodable:
                raise BadRequest(f"{key}: can't be sent ({unencodable})") from None
        raise BadRequest(f"the request can't be sent ({error})") from None
