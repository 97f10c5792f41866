"""The supervisor: sockets, processes, timers and signals. It turns the world into inputs of the core, and its effects
into the world; it decides nothing.

``glmttsd --config FILE``, or ``python -m glmtts.daemon.supervisor``.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import os
import resource
import secrets
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import zmq

from glmtts.protocol import codec, endpoints, events
from glmtts.protocol.errors import ErrorCode, RequestError

from . import __version__, malloc
from .background import Background
from .config import load as config
from .config.tcp_access import Access
from .core import effects, inputs
from .core.machine import Machine, Phase
from .core.workers.placement import asks_nvml
from .gpu.sampler import Sampler
from .log.logger import Logger
from .log.worker_output import understood
from .metrics.metrics import Metrics
from .operator_tasks import Errands, stored
from .processes.manager import Processes, WorkerProcess
from .processes.orphans import Records
from .service.systemd import ServiceManager, inherited
from .service.watchdog import SelfCheck
from .storage import outputs
from .storage.deliveries import Deliveries
from .storage.journal import Journal
from .storage.voices import VoiceStore
from .transport.client_router import ClientRouter, Received
from .transport.listeners import IO_THREADS, LOCAL_THREAD, RuntimeDir, RuntimeDirError
from .transport.peers import LocalPeers
from .transport.tcp_listener import TcpRequests
from .transport.worker_router import WorkerRouter

#: Messages that are taken from one socket before the others have their turn.
_BATCH = 64
#: Connections of the TCP and of the control socket have numbers from here on.
_TCP_NUMBERS, _CONTROL_NUMBERS = 1 << 39, 1 << 40
#: Operators' requests that may wait to be carried out: more than a few at a time are a mistake.
_MAX_ERRANDS = 64
#: Blocks of so many bytes or more are not kept in the heap when they are freed.
_LARGE = 1 << 20
#: How long answers may take to leave when the daemon ends.
_LINGER_MS = 1_000
#: The sockets' files are looked at so often.
_LOOK_S = 5.0
#: Descriptors that are kept for everything but clients' connections.
_OWN_DESCRIPTORS = 256
#: Exit statuses beside 0: sysexits(3).
_EX_CONFIG, _EX_UNAVAILABLE, _EX_SOFTWARE = 78, 69, 70


class Supervisor:
    """One daemon, from its sockets to its end."""

    def __init__(self, loaded: config.Config, log: Logger) -> None:
        """Open the sockets. Raises RuntimeDirError."""
        self._config = loaded
        self._log = log
        settings = loaded.settings
        self._settings = settings
        self._clock = time.monotonic
        self._limits = codec.CodecLimits(
            header_bytes=settings.limits.header_kib << 10,
            body_bytes=settings.limits.body_mib << 20,
            text_chars=settings.limits.text_chars,
        )
        self._manager = ServiceManager()
        self._runtime = RuntimeDir(endpoints.runtime_dir(settings.daemon.runtime_dir), inherited())
        self._zmq: zmq.Context[zmq.Socket[bytes]] = zmq.Context(IO_THREADS if loaded.tcp else 1)
        self._poller = zmq.Poller()
        self._handlers: dict[Any, Callable[[], None]] = {}
        self._wakeup_read, self._wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._watch(self._wakeup_read, self._on_wakeup)
        self._background = Background(self._wakeup_write, _MAX_ERRANDS)
        self._requests = self._router(endpoints.REQUESTS, int(settings.daemon.socket_mode, 8))
        self._control = self._router(endpoints.CONTROL, 0o660 if settings.daemon.admin_group else 0o600)
        self._tcp = self._open_tcp(loaded.tcp) if loaded.tcp else None
        #: Those whose clients ask for speech, and all.
        self._serving = [self._requests, self._tcp.router] if self._tcp else [self._requests]
        self._routers = [*self._serving, self._control]
        for router in self._serving:
            self._watch(router.socket, partial(self._on_requests, router))
        self._watch(self._control.socket, self._on_control)
        for router in self._routers:
            self._watch(router.monitor, router.read_monitor)
        self._open_events()
        self._records = Records(self._runtime.path)
        self._processes = Processes(
            settings,
            self._runtime.endpoint(endpoints.WORKERS),
            config.engine_python(settings),
            self._records,
            watch=self._watch,
            unwatch=self._unwatch,
            on_ended=self._on_process_ended,
            on_line=self._on_worker_line,
            clock=self._clock,
        )
        self._workers = WorkerRouter(
            self._zmq,
            self._runtime.listen(endpoints.WORKERS, 0o600),
            self._runtime.endpoint(endpoints.WORKERS),
            self._processes,
            log,
        )
        self._watch(self._workers.socket, self._on_workers)
        self._manager.starting("ending what a daemon before has left behind")
        self._sweep_orphans()
        self._sampler = Sampler(self._wakeup_write, self._clock, use_nvml=asks_nvml(settings))
        self._voices = VoiceStore(config.voices_dir(settings))
        self._errands = Errands(
            self._background,
            self._on_errand,
            config_file=loaded.file,
            voices=self._voices,
            limits=settings.limits,
            admit=self._tcp.admit if self._tcp else None,
            warn=lambda problem: log.warning("the configuration is probably mistaken", reason=problem),
        )
        self._journal = Journal(
            config.state_dir(settings), self._wakeup_write, on_warning=lambda line: log.warning("journal", reason=line)
        )
        self._first_of_journal = self._journal.open(on_wait=lambda: self._manager.starting("taking up the journal"))
        self._deliveries = Deliveries(self._wakeup_write, self._do_send, self._step, log)
        self._machine = self._make_machine()
        self._metrics = Metrics(
            settings.metrics,
            self._wakeup_write,
            log,
            background=self._background,
            core=self._machine.measure,
            facts=self._facts,
            journal=self._journal.figures,
            send=self._do_send,
        )
        self._topics: set[bytes] = set()
        self._later: deque[inputs.Input] = deque()
        self._flush_delay_s = 0.001
        self._next_look = self._clock() + _LOOK_S
        self._told_removed: set[str] = set()
        self._internal_errors = 0
        self._status: int | None = None
        self._effects: dict[type, Callable[[Any], None]] = {
            effects.Send: self._do_send,
            effects.Tell: self._workers.tell,
            effects.Spawn: self._do_spawn,
            effects.Signal: lambda e: self._processes.signal(e.incarnation, e.signal),
            effects.Sample: lambda _: self._sampler.now(),
            effects.Publish: self._do_publish,
            effects.Log: lambda e: self._log.log(e.level, e.message, **e.fields),
            effects.ChangeLogLevel: self._do_change_log_level,
            effects.UseSettings: self._do_use_settings,
            effects.ReadSettings: self._do_read_settings,
            effects.StoreVoice: self._errands.store_voice,
            effects.WriteMetrics: self._metrics.write,
            effects.ReadLog: self._do_read_log,
            effects.JournalAdd: self._journal.add,
            effects.JournalStart: self._journal.start,
            effects.JournalEnd: self._journal.end,
            effects.JournalFind: self._journal.find,
            effects.SendStored: self._deliveries.send_stored,
            effects.SettleOutput: self._deliveries.settle,
            effects.Exit: self._do_exit,
        }
        #: Where a service manager ends a daemon that it does not hear of.
        self._self_check = (
            SelfCheck(self._zmq, self._runtime.endpoint(endpoints.CONTROL)) if self._manager.watches else None
        )
        if self._self_check:
            self._watch(self._self_check.socket, self._self_check.receive)
        if self._manager.problem:
            log.warning("the service manager can't be told of the daemon", reason=self._manager.problem)

    # --- opening

    def _router(self, name: str, mode: int) -> ClientRouter:
        daemon, limits = self._settings.daemon, self._settings.limits
        control = name == endpoints.CONTROL
        return ClientRouter(
            self._zmq,
            self._runtime.listen(name, mode, daemon.admin_group if control else daemon.socket_group),
            self._runtime.endpoint(name),
            identify=LocalPeers(),
            first_number=_CONTROL_NUMBERS if control else 1,
            body_bytes=self._limits.body_bytes,
            send_buffer_bytes=limits.send_buffer_mib << 20,
            max_connections=64 if control else self._most_connections(),
        )

    def _open_tcp(self, access: Access) -> TcpRequests:
        limits = self._settings.limits
        return TcpRequests(
            self._zmq,
            access,
            self._log,
            self._clock,
            watch=self._watch,
            first_number=_TCP_NUMBERS,
            body_bytes=self._limits.body_bytes,
            send_buffer_bytes=limits.send_buffer_mib << 20,
            max_connections=self._most_connections(),
        )

    def _most_connections(self) -> int:
        """``max_connections`` of a requests socket, as far as there are descriptors for them.

        ZeroMQ accepts in a thread of its own, and ends the process when it has no descriptor left for the next: half of
        them are kept for those that come before the loop can turn them away.
        """
        wanted = self._settings.limits.max_connections
        sockets = 2 if self._config.tcp else 1
        possible = max(16, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OWN_DESCRIPTORS) // (2 * sockets))
        if possible < wanted:
            self._log.warning(
                "fewer connections than configured: raise the limit of open files (LimitNOFILE, ulimit -Hn)",
                max_connections=wanted,
                possible=possible,
            )
        return min(wanted, possible)

    def _open_events(self) -> None:
        self._events: zmq.Socket[bytes] = self._zmq.socket(zmq.XPUB)
        mode = 0o660 if self._settings.daemon.admin_group else 0o600
        self._events.setsockopt(
            zmq.USE_FD, self._runtime.listen(endpoints.EVENTS, mode, self._settings.daemon.admin_group)
        )
        self._events.setsockopt(zmq.LINGER, 0)
        self._events.setsockopt(zmq.AFFINITY, LOCAL_THREAD)
        self._events.bind(self._runtime.endpoint(endpoints.EVENTS))
        self._watch(self._events, self._on_subscriptions)

    def _look_after_sockets(self) -> None:
        """Make again what somebody has tidied away: nobody would find a daemon that is well."""
        self._next_look = self._clock() + _LOOK_S
        sockets = {
            endpoints.REQUESTS: self._requests.socket,
            endpoints.CONTROL: self._control.socket,
            endpoints.EVENTS: self._events,
            endpoints.WORKERS: self._workers.socket,
        }
        removed = self._runtime.removed()
        for name in removed:
            try:
                sockets[name].setsockopt(zmq.USE_FD, self._runtime.listen_again(name))
                sockets[name].bind(self._runtime.endpoint(name))
            except (RuntimeDirError, zmq.ZMQError) as error:
                if name not in self._told_removed:
                    self._log.error("socket was removed, and can't be made again", socket=name, reason=str(error))
            else:
                self._log.warning("socket was removed by somebody, and made again", socket=name)
        self._told_removed = set(removed)

    def _sweep_orphans(self) -> None:
        """End what a daemon that was killed has left behind, before a worker of ours needs the GPU that it holds."""
        for orphan in self._records.sweep():
            what = f"worker {orphan.worker}" if orphan.worker else "started by a worker"
            if orphan.stuck:
                reason = "it is stuck in the kernel and can't be killed; what it holds is not free"
                self._log.error("orphan left", pid=orphan.pid, what=what, state=orphan.stuck, reason=reason)
            else:
                self._log.warning("orphan of the daemon before ended", pid=orphan.pid, what=what)
        if self._records.problem:
            self._log.warning("record of processes", reason=self._records.problem)

    def _make_machine(self) -> Machine:
        voices = {name: stored(voice) for name, voice in self._voices.load_all().items()}
        for name, problem in self._voices.damaged.items():
            self._log.warning("voice can't be used", voice=name, reason=problem)
        folder = config.outputs_dir(self._settings)
        try:
            folder.mkdir(mode=0o750, parents=True, exist_ok=True)
            outputs.sweep(folder, keep={row.job for row in self._first_of_journal.rows})
        except OSError as error:
            self._log.warning("outputs can't be written", folder=str(folder), reason=error.strerror)
        return Machine(
            self._settings,
            now=self._clock(),
            wall=time.time(),
            seed=secrets.randbits(64),
            boot=secrets.token_hex(4),
            version=__version__,
            config_file=str(self._config.file or ""),
            state_folder=str(config.state_dir(self._settings)),
            outputs_folder=str(folder),
            results_folder=str(config.state_dir(self._settings) / "results"),
            voices=voices,
        )

    # --- the loop

    def run(self) -> int:
        """Serve until an operator or a signal ends it; returns the exit status."""
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, _noted)
        self._log.info(
            "daemon serves",
            version=__version__,
            pid=os.getpid(),
            requests=self._runtime.endpoint(endpoints.REQUESTS),
            **(self._tcp.described() if self._tcp else {}),
            engine=self._settings.engine.name,
            config=str(self._config.file or "built-in defaults"),
        )
        self._errands.look_up_names(self._config)
        self._metrics.open()
        self._do(self._machine.open())
        self._step(self._first_of_journal)
        self._first_of_journal.rows = []
        # What lives for as long as the daemon need not be looked at by every collection.
        gc.freeze()
        try:
            while self._status is None:
                self._turn()
        finally:
            self._processes.kill_all()
            self._close()
        return self._status

    def _turn(self) -> None:
        """Wait for something to happen, and deal with all that has."""
        ready = [source for source, _ in self._poller.poll(self._poll_ms())]
        began = self._clock()
        if len(ready) > 1:
            # Descriptors first: a process that has ended is not given a job that came at the same time.
            ready.sort(key=_is_socket)
        for source in ready:
            handler = self._handlers.get(source)
            if handler is not None:
                self._guarded(handler)
        for router in self._routers:
            for connection in router.closed():
                if connection.unread:
                    reason = "it left too much unread, and the memory for that was needed ([limits] send_buffer_mib)"
                    self._log.warning("client disconnected", **connection.peer.log, reason=reason)
                self._step(inputs.ConnectionClosed(connection.number))
        due = self._machine.next_due
        if due is not None and due <= self._clock():
            # What workers have said counts before a judgement on their silence: the loop itself may have been late.
            self._guarded(self._on_workers)
            self._step(inputs.TimePassed())
        if self._clock() >= self._next_look:
            self._guarded(self._look_after_sockets)
        self._flush()
        self._metrics.lag.add(self._clock() - began)
        if self._manager.wanted:
            self._guarded(self._tell_manager)

    def _tell_manager(self) -> None:
        self._manager.turn(lambda: self._machine.summary, self._machine.phase is Phase.STOPPING, self._is_well)

    def _is_well(self) -> bool:
        """Whether the daemon does its work, as far as a new one would do it better."""
        if self._self_check is None or self._self_check.well():
            return True
        self._log.error("daemon is not well, and its service manager may end it", reason=self._self_check.problem)
        return False

    def _poll_ms(self) -> int:
        """How long nothing may happen: until a timer is due, or sooner if something waits to be sent."""
        dues = (self._machine.next_due, self._manager.next_due(), self._next_look)
        wait_s = max(0.0, min(due for due in dues if due is not None) - self._clock())
        if any(router.waiting for router in self._routers):
            wait_s = min(wait_s, self._flush_delay_s)
        # Rounded up: a poll that ends a moment too early would be followed by many more.
        return int(wait_s * 1000) + 1

    def _flush(self) -> None:
        """Try again to send what clients would not take; ever less often, as long as they don't."""
        if not any(router.waiting for router in self._routers):
            self._flush_delay_s = 0.001
            return
        sent = sum(router.flush() for router in self._routers)
        self._flush_delay_s = 0.001 if sent else min(0.1, self._flush_delay_s * 2)

    def _guarded(self, handler: Callable[[], None]) -> None:
        """A bug costs the message that met it, not the service."""
        try:
            handler()
        except Exception as error:
            self._internal_errors += 1
            self._log.exception("internal error", error)

    def _step(self, event: inputs.Input) -> None:
        self._guarded(lambda: self._do(self._machine.step(event, self._clock())))

    def _do(self, todo: list[effects.Effect]) -> None:
        for effect in todo:
            self._effects[type(effect)](effect)
        # What the effects themselves have met comes before anything else that happens: a stream that lost a chunk must
        # not be called done by the next message of its worker.
        for router in self._serving:
            while router.overruns:
                self._later.append(inputs.ConnectionOverrun(*router.overruns.popleft()))
        while self._later:
            self._do(self._machine.step(self._later.popleft(), self._clock()))

    def _watch(self, source: Any, handler: Callable[[], None]) -> None:
        self._handlers[source] = handler
        self._poller.register(source, zmq.POLLIN)

    def _unwatch(self, source: Any) -> None:
        if self._handlers.pop(source, None) is not None:
            self._poller.unregister(source)

    # --- the world, as inputs

    def _on_wakeup(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for number in os.read(self._wakeup_read, 512):
                if number in (signal.SIGTERM, signal.SIGINT):
                    self._step(inputs.StopAsked(signal.Signals(number).name))
                elif number == signal.SIGHUP:
                    self._do_read_settings(effects.ReadSettings())
                elif number == signal.SIGCHLD:
                    self._processes.tidy()
        self._background.collect()
        self._deliveries.collect()
        for event in (*self._sampler.collect(), *self._journal.collect()):
            self._step(event)
        # Last: whatever goes wrong with it, the others have been heard.
        for event in self._metrics.collect():
            self._step(event)

    def _on_requests(self, router: ClientRouter) -> None:
        for received in router.receive(_BATCH):
            self._receive(router, received, self._request)

    def _on_control(self) -> None:
        for received in self._control.receive(_BATCH):
            self._receive(self._control, received, self._operation)

    def _receive(
        self, router: ClientRouter, received: Received, handle: Callable[[Received, inputs.ReplyTo], None]
    ) -> None:
        connection, envelope, _ = received
        to = inputs.ReplyTo(connection.number, envelope)
        try:
            handle(received, to)
        except RequestError as error:
            self._answer(router, to, error)
        except Exception as error:
            self._internal_errors += 1
            self._log.exception("internal error", error)
            message = "an internal error of the daemon, which is in its log; the request was not carried out"
            self._answer(router, to, RequestError(ErrorCode.UNAVAILABLE, message, id=self._id_of(received)))

    def _id_of(self, received: Received) -> str:
        """The id of a request that got past the codec, for an answer that its sender can place."""
        try:
            return str(codec.unpack_map(received.frames[0], self._limits)["id"])
        except (RequestError, LookupError):
            return ""

    def _answer(self, router: ClientRouter, to: inputs.ReplyTo, error: RequestError) -> None:
        event = events.Error.of(error.id, error.code, error.message, retry_after_s=error.retry_after_s)
        self._log.debug("message refused", connection=to.connection, code=error.code.value, reason=error.message)
        router.send(to.connection, to.envelope, codec.encode(event), None)

    def _request(self, received: Received, to: inputs.ReplyTo) -> None:
        connection, _, frames = received
        request = codec.decode_request(frames, self._limits)
        body = frames[1] if len(frames) > 1 else None
        self._do(self._machine.step(inputs.Requested(connection.peer.client, to, request, body), self._clock()))

    def _operation(self, received: Received, to: inputs.ReplyTo) -> None:
        frames = received.frames
        request = codec.decode_control(frames, self._limits)
        body = frames[1] if len(frames) > 1 else None
        self._do(self._machine.step(inputs.Controlled(to, request, body, self._facts()), self._clock()))

    def _facts(self) -> dict[str, Any]:
        """What ``status`` shows of the process."""
        rss = int(Path("/proc/self/statm").read_bytes().split()[1]) * resource.getpagesize()
        return {
            "pid": os.getpid(),
            "memory": {"rss": rss},
            "connections": sum(router.connections for router in self._serving),
            "connections_turned_away": sum(router.turned_away for router in self._serving),
            "connections_ended_unread": sum(router.unread_ended for router in self._serving),
            "floods_ended": sum(router.floods_ended for router in self._routers),
            **({"tcp": self._tcp.facts()} if self._tcp else {}),
            "internal_errors": self._internal_errors,
            "log_lines_dropped": self._log.dropped,
        }

    def _on_subscriptions(self) -> None:
        while True:
            try:
                message = self._events.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            if message[:1] == b"\1":
                self._topics.add(message[1:])
            else:
                self._topics.discard(message[1:])
        self._machine.watched = bool(self._topics)

    def _on_workers(self) -> None:
        for event in self._workers.receive(_BATCH):
            self._do(self._machine.step(event, self._clock()))

    def _on_process_ended(self, process: WorkerProcess, returncode: int, oom_killed: bool) -> None:
        # What it said before it ended comes first: an answer that is there is not lost with its sender.
        self._on_workers()
        self._workers.forget(process)
        self._sampler.unwatch(process.incarnation)
        self._step(inputs.ProcessEnded(process.incarnation, returncode, process.last_words, oom_killed))

    def _on_worker_line(self, process: WorkerProcess, line: str) -> None:
        said = understood(line, by_default="debug" if process.ready else "info")
        about = {"job": said.job} if said.job else {}
        self._log.log(said.level, "worker output", worker=process.name, pid=process.pid, **about, line=said.words)

    # --- effects, into the world

    def _do_send(self, effect: effects.Send) -> None:
        to, event, body = effect.to, effect.event, effect.body
        router = next(router for router in reversed(self._routers) if to.connection >= router.first_number)
        # A REQ socket is sent one answer for each request: its job's last event.
        if to.envelope and not event.final:
            return
        if router.send(to.connection, to.envelope, codec.encode(event), body):
            return
        if isinstance(event, events.Audio):
            self._later.append(inputs.ConnectionOverrun(to.connection, event.job))
            return
        message = "too much is unread on this connection; the result is kept for a while, and 'wait' fetches it"
        error = events.Error.of(event.id, ErrorCode.SLOW_CONSUMER, message, job=getattr(event, "job", ""))
        router.send(to.connection, to.envelope, codec.encode(error), None)

    def _do_spawn(self, effect: effects.Spawn) -> None:
        try:
            pid = self._processes.start(effect.incarnation, effect.name, effect.gpu, effect.device, effect.vram_share)
        except OSError as error:
            self._later.append(inputs.SpawnFailed(effect.incarnation, str(error)))
        else:
            self._sampler.watch(effect.incarnation, pid)
            self._later.append(inputs.Spawned(effect.incarnation, pid))

    def _do_publish(self, effect: effects.Publish) -> None:
        with contextlib.suppress(zmq.Again):
            self._events.send_multipart([effect.topic.encode(), codec.encode_map(effect.values)], zmq.NOBLOCK)

    def _do_change_log_level(self, effect: effects.ChangeLogLevel) -> None:
        self._log.level = effect.level

    def _do_read_settings(self, effect: effects.ReadSettings) -> None:
        self._manager.reloading()
        self._errands.read_settings(effect)

    def _on_errand(self, event: inputs.Input) -> None:
        self._step(event)
        if isinstance(event, inputs.SettingsRead):
            self._manager.reloaded()

    def _do_read_log(self, effect: effects.ReadLog) -> None:
        values = self._log.kept.describe(effect.request) | {"pid": os.getpid(), "journal": self._log.in_journal}
        self._do_send(effects.Send(effect.to, events.Result(id=effect.request.id, values=values)))

    def _do_use_settings(self, effect: effects.UseSettings) -> None:
        self._log.format = effect.settings.daemon.log_format
        self._processes.use(effect.settings, config.engine_python(effect.settings))
        self._errands.limits = effect.settings.limits

    def _do_exit(self, effect: effects.Exit) -> None:
        self._status = effect.status

    # --- the end

    def _close(self) -> None:
        """Send what is left to those who read, and remove the sockets."""
        deadline = self._clock() + _LINGER_MS / 1000
        while any(router.waiting for router in self._routers) and self._clock() < deadline:
            if not sum(router.flush() for router in self._routers):
                time.sleep(0.005)
        self._metrics.close()
        self._sampler.close()
        self._journal.close()
        self._runtime.close()
        for router in self._routers:
            router.close(_LINGER_MS)
        if self._tcp:
            self._tcp.close()
        self._events.close(0)
        self._workers.socket.close(0)
        if self._self_check:
            self._self_check.close()
        self._zmq.term()
        self._log.info("daemon ended", status=self._status)
        self._manager.close()


def _is_socket(source: object) -> bool:
    return not isinstance(source, int)


def _noted(_signal: int, _frame: object) -> None:
    """The wakeup descriptor has the signal's number; the loop reads it there."""


def _raise_descriptor_limit() -> None:
    """ZeroMQ ends the process when it has no descriptor left for a client: have as many as we may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _be_first_process() -> None:
    """What the first process of a container has to do for itself."""
    # It gets no signal that it has no handler for, and would start in spite of a stop.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    # Strangers' orphans are told from what the daemon has started by their session, so it needs one of its own.
    with contextlib.suppress(PermissionError):
        os.setsid()


def main(arguments: list[str] | None = None) -> int:
    """Run the daemon in the foreground; returns its exit status."""
    parser = argparse.ArgumentParser(prog="glmttsd", description="Serve speech on a ZeroMQ socket.")
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help=f"the configuration (default: $GLMTTS_CONFIG, {config.SYSTEM_FILE} if it exists, else built-in defaults)",
    )
    parser.add_argument("--version", action="version", version=f"glmttsd {__version__}")
    options = parser.parse_args(arguments)
    if os.getpid() == 1:
        _be_first_process()
    try:
        loaded = config.load(config.absolute(options.config or config.find()))
    except config.ConfigError as error:
        print("\n".join(error.problems), file=sys.stderr)
        return _EX_CONFIG
    _raise_descriptor_limit()
    # Recordings and speech come and go: their memory is not to stay.
    malloc.map_from(_LARGE)
    # A watchdog ends a loop that hangs by SIGABRT: where it hung is then in the log.
    faulthandler.enable()
    log = Logger(loaded.settings.daemon.log_level, loaded.settings.daemon.log_format)
    try:
        return Supervisor(loaded, log).run()
    except RuntimeDirError as error:
        log.error("daemon can't start", reason=str(error))
        return _EX_UNAVAILABLE
    except Exception as error:
        log.exception("daemon ends by an error of its own", error)  # noqa: PLE1205 (no logging.Logger)
        return _EX_SOFTWARE
    finally:
        log.close()


if __name__ == "__main__":
    sys.exit(main())
