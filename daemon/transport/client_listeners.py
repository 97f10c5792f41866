"""The sockets that clients and operators connect to, and the way from a connection to its socket."""

from __future__ import annotations

import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import zmq

from glmtts.protocol import codec, endpoints, events
from glmtts.protocol.control import ControlRequest
from glmtts.protocol.errors import ErrorCode, RequestError

from ..config.tcp_access import Access
from ..core import effects, inputs
from ..core.context import INTERNAL_ERROR
from ..core.settings import Settings
from ..log.logger import Logger
from ..loop import Loop
from ..processes.own_process import possible_connections
from .client_router import ClientRouter, Received
from .listeners import RuntimeDir
from .peers import LocalPeers, local_holder
from .tcp_listener import TcpListener

#: Messages taken from one socket before the others have their turn.
_BATCH = 64
#: Connections of operators at a time.
_CONTROL_CONNECTIONS = 64
#: How long an alert about too many connections lasts after the last one had to end, in seconds.
_CROWD_S = 30.0
#: Least time between two reports of that.
_CROWD_AGAIN_S = 2.0
#: Waits between two tries to send what clients do not take, in seconds.
_FIRST_RETRY_S, _LAST_RETRY_S = 0.001, 0.1
#: What a client hears when the daemon fails.
_UNREAD = "too much is unread on this connection; the result is kept for a while, and 'wait' fetches it"


class ClientListeners:
    """Owns the requests socket, the control socket and, where configured, the one for TCP.

    Invariant: the number of a connection is unique over all sockets and over the daemon's life, so an answer reaches
    the connection that asked or none.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        loop: Loop,
        log: Logger,
        *,
        runtime: RuntimeDir,
        settings: Settings,
        access: Access | None,
        step: Callable[[inputs.Input], None],
        facts: Callable[[ControlRequest], dict[str, Any]],
    ) -> None:
        """Open the sockets; raises RuntimeDirError. ``step`` takes an input, ``facts`` adds to an operator's answer."""
        self._log = log
        self._loop = loop
        self._step = step
        self._facts = facts
        self._limits = codec.CodecLimits(
            header_bytes=settings.limits.header_kib << 10,
            body_bytes=settings.limits.body_mib << 20,
            text_chars=settings.limits.text_chars,
        )
        #: Streams that lost a part because their client does not read; the supervisor reports them to the core.
        self.overruns: deque[tuple[int, str]] = deque()
        self._router_of: dict[int, ClientRouter] = {}
        self._retry_s = _FIRST_RETRY_S
        daemon = settings.daemon
        connections = self._possible_connections(settings, sockets=2 if access else 1)
        of_router: dict[str, Any] = {
            "clock": loop.clock,
            "numbers": itertools.count(1),
            "overruns": self.overruns,
            "body_bytes": self._limits.body_bytes,
            "send_buffer_bytes": settings.limits.send_buffer_mib << 20,
        }

        def local(name: str, mode: int, group: str, connections: int) -> ClientRouter:
            return ClientRouter(
                context,
                runtime.listen(name, mode, group),
                runtime.endpoint(name),
                identify=LocalPeers(),
                holder_of=local_holder,
                max_connections=connections,
                **of_router,
            )

        self.requests = local(endpoints.REQUESTS, int(daemon.socket_mode, 8), daemon.socket_group, connections)
        control_mode = 0o660 if daemon.admin_group else 0o600
        self.control = local(endpoints.CONTROL, control_mode, daemon.admin_group, _CONTROL_CONNECTIONS)
        self.tcp: TcpListener | None = None
        if access is not None:
            self.tcp = TcpListener(context, access, log, loop, max_connections=connections, **of_router)
        #: The sockets for speech, and all.
        self._serving = [self.requests, self.tcp.router] if self.tcp else [self.requests]
        self._routers = [*self._serving, self.control]
        self._named = {"requests": self.requests, "operators": self.control}
        if self.tcp:
            self._named["TCP"] = self.tcp.router
        self._send_buffer_bytes = len(self._serving) * settings.limits.send_buffer_mib << 20
        #: When connections that had to end were last reported, and when there is something to report again.
        self._crowded_at, self._crowd_due = float("-inf"), float("inf")
        for router in self._routers:
            loop.watch(router.socket, partial(self._receive, router))
            loop.watch(router.monitor, router.read_monitor)

    def _possible_connections(self, settings: Settings, sockets: int) -> int:
        """``max_connections`` of a requests socket, as far as there are descriptors for them."""
        wanted = settings.limits.max_connections
        possible = max(16, possible_connections(sockets))
        if possible < wanted:
            self._log.warning(
                "fewer connections than configured: raise the limit of open files (LimitNOFILE, ulimit -Hn)",
                max_connections=wanted,
                possible=possible,
            )
        return min(wanted, possible)

    # --- receiving

    def _receive(self, router: ClientRouter) -> None:
        decode = self._operation if router is self.control else self._request
        for received in router.receive(_BATCH):
            number = received.connection.number
            self._router_of[number] = router
            to = inputs.ReplyTo(number, received.envelope)
            try:
                self._step(decode(received, to))
            except RequestError as error:
                self._refuse(router, to, error)
            except Exception as error:
                # The core has not seen the request: what fails in the core, it answers itself.
                self._loop.report(error)
                id = self._id_of(received)
                self._refuse(router, to, RequestError(ErrorCode.UNAVAILABLE, INTERNAL_ERROR, id=id))

    def _request(self, received: Received, to: inputs.ReplyTo) -> inputs.Input:
        frames = received.frames
        request = codec.decode_request(frames, self._limits)
        return inputs.Requested(received.connection.peer.client, to, request, _body(frames))

    def _operation(self, received: Received, to: inputs.ReplyTo) -> inputs.Input:
        frames = received.frames
        request = codec.decode_control(frames, self._limits)
        return inputs.Controlled(to, request, _body(frames), self._facts(request))

    def _id_of(self, received: Received) -> str:
        """The id of a decoded request, so that its sender can match the answer; ``""`` if it has none."""
        try:
            return str(codec.unpack_map(received.frames[0], self._limits)["id"])
        except (RequestError, LookupError):
            return ""

    def _refuse(self, router: ClientRouter, to: inputs.ReplyTo, error: RequestError) -> None:
        event = events.Error.of(error.id, error.code, error.message, retry_after_s=error.retry_after_s)
        self._log.debug("message refused", connection=to.connection, code=error.code.value, reason=error.message)
        router.send(to.connection, to.envelope, codec.encode(event), None)

    def closed(self) -> Iterator[int]:
        """The numbers of connections that have ended since the last call."""
        for router in self._routers:
            if router.turned_away != router.turned_away_reported:
                self._crowd_due = min(self._crowd_due, max(self._loop.clock(), self._crowded_at + _CROWD_AGAIN_S))
            for connection in router.closed():
                self._router_of.pop(connection.number, None)
                if connection.unread:
                    reason = "it left too much unread, and the memory for that was needed ([limits] send_buffer_mib)"
                    self._log.warning("client disconnected", **connection.peer.log, reason=reason)
                yield connection.number

    # --- sending

    def send(self, effect: effects.Send) -> None:
        """Send an event to the connection that asked for it; does nothing if that is gone."""
        to, event, body = effect.to, effect.event, effect.body
        router = self._router_of.get(to.connection)
        # A REQ socket gets one answer for each request: its job's last event.
        if router is None or (to.envelope and not event.final):
            return
        if effect.id:
            event.id = effect.id
        if router.send(to.connection, to.envelope, codec.encode(event), body, final=event.final):
            return
        if isinstance(event, events.Audio):
            self.overruns.append((to.connection, event.job))
            return
        error = events.Error.of(event.id, ErrorCode.SLOW_CONSUMER, _UNREAD, job=getattr(event, "job", ""))
        router.send(to.connection, to.envelope, codec.encode(error), None)

    def client_of(self, connection: int) -> str | None:
        """The client of a connection; None when it is gone."""
        router = self._router_of.get(connection)
        return None if router is None else router.client_of(connection)

    def expect(self, connection: int, size: int) -> bool:
        """Whether a result of ``size`` bytes may be read from the disk for a connection; ``expected`` follows."""
        router = self._router_of.get(connection)
        return router is None or router.expect(connection, size)

    def expected(self, connection: int) -> None:
        """The result was sent, or could not be read."""
        if router := self._router_of.get(connection):
            router.expected(connection)

    @property
    def retry_due(self) -> float | None:
        """When to call ``flush`` next; None if nothing waits to be sent."""
        return self._loop.clock() + self._retry_s if any(router.waiting for router in self._routers) else None

    def flush(self) -> None:
        """Send what clients take now, and double the wait for the next try if they take nothing."""
        if not any(router.waiting for router in self._routers):
            self._retry_s = _FIRST_RETRY_S
            return
        sent = sum(router.flush() for router in self._routers)
        self._retry_s = _FIRST_RETRY_S if sent else min(_LAST_RETRY_S, self._retry_s * 2)

    # --- for operators

    def facts(self) -> dict[str, Any]:
        """The connections' part of ``status``."""
        return {
            "connections": sum(router.connections for router in self._serving),
            "connections_turned_away": sum(router.turned_away for router in self._serving),
            "connections_ended_unread": sum(router.unread_ended for router in self._serving),
            "floods_ended": sum(router.floods_ended for router in self._routers),
            **({"tcp": self.tcp.facts()} if self.tcp else {}),
        }

    def tables(self) -> dict[str, dict[str, Any]]:
        """What clients hold of the connections and of the memory for unread data, for ``limits``."""
        connections: Counter[str] = Counter()
        unread: Counter[str] = Counter()
        for router in self._serving:
            connections.update(router.shares.by_client())
            unread.update(router.unread.by_client())
        most = sum(router.shares.most for router in self._serving)
        return {"connections": _table(connections, most), "unread": _table(unread, self._send_buffer_bytes)}

    def new_crowd(self) -> str | None:
        """Why connections had to end, if that has changed: ``""`` when none has had to for a while."""
        now = self._loop.clock()
        if now < self._crowd_due:
            return None
        problems = []
        for name, router in self._named.items():
            ended = router.turned_away - router.turned_away_reported
            router.turned_away_reported = router.turned_away
            crowd = router.shares.greatest()
            if ended and crowd:
                user = f" ({crowd.user})" if crowd.user else ""
                problems.append(
                    f"the client {crowd.client}{user} holds {crowd.connections} of at most {router.shares.most} "
                    f"connections for {name}: {ended} had to end for new ones, the idle ones of the client with most "
                    "first"
                )
        if problems:
            self._crowded_at, self._crowd_due = now, now + _CROWD_S
            return "; ".join(problems)
        self._crowd_due = float("inf")
        return ""

    # --- the end

    def drain(self, timeout_s: float) -> None:
        """Send what is left to the clients that read, for at most ``timeout_s``."""
        deadline = self._loop.clock() + timeout_s
        while any(router.waiting for router in self._routers) and self._loop.clock() < deadline:
            if not sum(router.flush() for router in self._routers):
                time.sleep(0.005)

    def close(self, linger_ms: int) -> None:
        """Close all sockets, each once its messages have left or after ``linger_ms``."""
        for router in self._routers:
            router.close(linger_ms)
        if self.tcp:
            self.tcp.close()


def _table(held: Counter[str], most: int) -> dict[str, Any]:
    share = most // max(1, len(held))
    return {"held": held.total(), "most": most, "clients": len(held), "share": share, "owners": dict(held)}


def _body(frames: list[bytes | memoryview]) -> bytes | memoryview | None:
    return frames[1] if len(frames) > 1 else None
