"""The workers' socket: turns messages of worker processes into inputs of the core, and sends messages to workers.

A process counts as a worker once its ``hello`` has the token that it was started with; other messages are dropped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import zmq

from glmtts.protocol import worker as wire

from ..core import effects, inputs
from ..log.logger import Logger
from ..processes.manager import Processes, WorkerProcess
from .listeners import LOCAL_THREAD


class WorkerRouter:
    """Owns the ROUTER and the map from its routing ids to incarnations. Never blocks."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], descriptor: int, endpoint: str, processes: Processes, log: Logger
    ) -> None:
        self._processes = processes
        self._log = log
        self._incarnation_of: dict[bytes, int] = {}
        self.socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.USE_FD, descriptor)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.AFFINITY, LOCAL_THREAD)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        # A worker that is faster than the loop has to wait: its audio must not accumulate here.
        self.socket.setsockopt(zmq.RCVHWM, 64)
        self.socket.bind(endpoint)

    def receive(self, most: int) -> Iterator[inputs.WorkerSaid | inputs.WorkerGarbled]:
        """Receive up to ``most`` messages."""
        receive = self.socket.recv
        state: Callable[[int], Any] = self.socket.getsockopt
        for _ in range(most):
            if not state(zmq.EVENTS) & zmq.POLLIN:
                return
            routing_id = receive(zmq.NOBLOCK)
            frames = [receive(copy=False)]
            while frames[-1].more:
                frames.append(receive(copy=False))
            event = self._event(routing_id, frames)
            if event is not None:
                yield event

    def _event(self, routing_id: bytes, frames: list[zmq.Frame]) -> inputs.WorkerSaid | inputs.WorkerGarbled | None:
        incarnation = self._incarnation_of.get(routing_id)
        try:
            if not 1 <= len(frames) <= 2:
                raise wire.WorkerProtocolError(f"a message of {len(frames)} frames")
            message = wire.decode_from_worker(frames[0].buffer)
        except wire.WorkerProtocolError as error:
            return None if incarnation is None else inputs.WorkerGarbled(incarnation, str(error))
        if type(message) is wire.Hello:
            incarnation = self._hello(routing_id, message)
        if incarnation is None:
            return None
        if type(message) is wire.Ready and (process := self._processes.find(incarnation)):
            process.ready = True
        body: bytes | memoryview | None = None
        if len(frames) == 2:
            body = frames[1].bytes if len(frames[1]) < 64 * 1024 else frames[1].buffer
        return inputs.WorkerSaid(incarnation, message, body)

    def _hello(self, routing_id: bytes, hello: wire.Hello) -> int | None:
        """Bind the routing id to the process with this token, if it has sent no ``hello`` yet."""
        process = self._processes.with_token(hello.token)
        if process is None or process.routing_id:
            self._log.warning("unknown process on the workers' socket", pid=hello.pid)
            return None
        process.routing_id = routing_id
        self._incarnation_of[routing_id] = process.incarnation
        return process.incarnation

    def forget(self, process: WorkerProcess) -> None:
        """Drop the routing id of a process that has ended."""
        self._incarnation_of.pop(process.routing_id, None)

    def tell(self, effect: effects.Tell) -> None:
        """Send a message to a process; does nothing when the process is gone."""
        process = self._processes.find(effect.incarnation)
        if process is None or not process.routing_id:
            return
        frames: list[bytes | memoryview] = [process.routing_id, wire.encode(effect.message)]
        if effect.body is not None:
            frames.append(effect.body)
        # A worker without a socket is about to end, and SIGCHLD reports that.
        with contextlib.suppress(zmq.ZMQError):
            self.socket.send_multipart(frames, zmq.NOBLOCK)
