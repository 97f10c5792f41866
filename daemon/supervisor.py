"""The supervisor: builds the parts of the daemon, turns events into inputs of the core, and carries out its effects.

It decides nothing. ``glmttsd --config FILE``, or ``python -m glmtts.daemon.supervisor``.
"""

from __future__ import annotations

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
from pathlib import Path
from typing import Any

import zmq

from glmtts.protocol import endpoints, events
from glmtts.protocol.control import ControlRequest, GetLimits
from glmtts.protocol.inherited import put_right
from glmtts.protocol.system_words import error_in_words

from . import __version__, config, malloc
from .clock import STANDSTILL_S
from .core import effects, inputs
from .core.machine import Machine
from .core.workers.placement import asks_nvml
from .flight_recorder import Note
from .gpu.sampler import Sampler
from .log.logger import Logger
from .log.worker_output import understood
from .loop import Background, Loop
from .metrics.metrics import Metrics
from .processes.manager import Processes, WorkerProcess
from .processes.orphans import Records
from .processes.own_process import signals_to_hear
from .service.systemd import ServiceManager, inherited
from .service.watchdog import SelfCheck
from .start import EX_SOFTWARE, EX_UNAVAILABLE, StartRefusedError, installation, prepare, prepare_outputs, warn
from .storage import outputs
from .storage.deliveries import Deliveries
from .storage.journal import Journal
from .storage.output_owners import OutputOwners
from .storage.pause import PauseFile
from .surroundings import LOOK_S, Surroundings
from .tasks.operator_tasks import OperatorTasks
from .tasks.voice_tasks import VoiceTasks
from .transport.client_listeners import ClientListeners
from .transport.event_publisher import EventPublisher
from .transport.listeners import IO_THREADS, RuntimeDir, RuntimeDirError, check_state_folder
from .transport.worker_router import WorkerRouter

#: Messages taken from the workers' socket in one turn.
_BATCH = 64
#: Operators' requests that may wait in the background thread.
_MAX_OPERATOR_TASKS = 64
#: Blocks of at least this size, in bytes, return to the system when they are freed.
_LARGE = 1 << 20
#: Time to send the last answers when the daemon ends, in seconds.
_LINGER_S = 1.0
#: After a standstill, milliseconds to wait for what workers have said.
_LAST_WORDS_MS = 20


class Supervisor:
    """Owns the parts of one daemon, feeds inputs to the core, and carries out its effects."""

    def __init__(self, loaded: config.Config, log: Logger) -> None:
        """Open the sockets. Raises RuntimeDirError."""
        settings = loaded.settings
        self._config = loaded
        self._settings = settings
        self._log = log
        self._loop = loop = Loop(log)
        self._service = ServiceManager(clock=loop.clock)
        check_state_folder(config.state_dir(settings))
        self._runtime = RuntimeDir(endpoints.runtime_dir(settings.daemon.runtime_dir), inherited())
        self._zmq: zmq.Context[zmq.Socket[bytes]] = zmq.Context(IO_THREADS if loaded.tcp else 1)
        self._background = Background(loop.wakeup_fd, _MAX_OPERATOR_TASKS)
        self._clients = ClientListeners(
            self._zmq,
            loop,
            log,
            runtime=self._runtime,
            settings=settings,
            access=loaded.tcp,
            step=self._step,
            facts=self._facts,
        )
        self._events = EventPublisher(
            self._zmq, loop, self._runtime, settings.daemon.admin_group, on_watched=self._on_watched
        )
        self._records = Records(self._runtime.path)
        self._processes = Processes(
            settings,
            self._runtime.endpoint(endpoints.WORKERS),
            config.engine_python(settings),
            self._records,
            watch=loop.watch,
            unwatch=loop.unwatch,
            on_ended=self._on_process_ended,
            on_line=self._on_worker_line,
            clock=loop.clock,
        )
        self._workers = WorkerRouter(
            self._zmq,
            self._runtime.listen(endpoints.WORKERS, 0o600),
            self._runtime.endpoint(endpoints.WORKERS),
            self._processes,
            log,
        )
        loop.watch(self._workers.socket, self._on_workers)
        self._service.starting("ending processes of an earlier daemon")
        self._records.end_orphans(log)
        self._sampler = Sampler(loop.wakeup_fd, time.monotonic, use_nvml=asks_nvml(settings))
        self._voices = VoiceTasks(
            config.voices_dir(settings),
            config.own_voices_dir(settings),
            wakeup_fd=loop.wakeup_fd,
            operators=self._background,
            step=self._step,
            limits=settings.limits,
        )
        self._pause = PauseFile(config.state_dir(settings))
        warn(config.state_dir(settings), self._pause.read(), log)
        self._operator_tasks = OperatorTasks(
            self._background,
            self._on_operator_task,
            config_file=loaded.file,
            pause=self._pause,
            admit=self._clients.tcp.admit if self._clients.tcp else None,
            warn=lambda problem: log.warning("the configuration is probably mistaken", reason=problem),
            warn_of_pause=lambda problem: log.warning("the next daemon will not know of this pause", reason=problem),
        )
        self._journal = Journal(
            config.state_dir(settings), loop.wakeup_fd, on_warning=lambda line: log.warning("journal", reason=line)
        )
        self._first_of_journal = self._journal.open(on_wait=lambda: self._service.starting("reading the journal"))
        self._deliveries = Deliveries(
            loop.wakeup_fd,
            log,
            receivers=self._clients,
            send=lambda send: self._do([send]),
            step=self._step,
            owners=OutputOwners(config.outputs_dir(settings), config.state_dir(settings) / "outputs.owners"),
            keep_free=lambda: self._machine.settings.limits.disk_reserve_mib << 20,
        )
        instance = outputs.instance_of(config.state_dir(settings))
        prepare_outputs(config.outputs_dir(settings), self._first_of_journal, instance, log)
        self._machine = Machine(
            settings,
            installation(loaded, instance, managed=self._service.wanted),
            now=loop.clock(),
            wall=time.time(),
            seed=secrets.randbits(64),
            voices=self._voices.load(instance, log),
            paused_since=self._pause.read(),
        )
        self._metrics = Metrics(
            settings.metrics,
            loop.wakeup_fd,
            log,
            background=self._background,
            core=self._machine.measure,
            facts=self._facts,
            journal=self._journal.figures,
            send=lambda send: self._do([send]),
        )
        #: Inputs that effects caused; stepped before the loop continues.
        self._later: deque[inputs.Input] = deque()
        self._surroundings = Surroundings(
            settings,
            loaded.file,
            log,
            background=Background(loop.wakeup_fd, 1),
            restore=self._restore_sockets,
            can_be_found=lambda: self._runtime.can_be_found,
            step=self._step,
            processes=self._processes,
            journal=self._journal,
            voices=self._machine.state.voices.shared.values,
            manager=lambda: self._service.problem,
            reached_by_tcp=self._clients.tcp is not None,
        )
        self._next_look = loop.clock() + LOOK_S
        self._status: int | None = None
        self._effects: dict[type, Callable[[Any], None]] = {
            effects.Send: self._clients.send,
            effects.Tell: self._workers.tell,
            effects.Spawn: self._spawn,
            effects.ReadRecorder: self._read_recorder,
            effects.Signal: lambda e: self._processes.signal(e.incarnation, e.signal),
            effects.Sample: lambda _: self._sampler.now(),
            effects.Publish: self._events.publish,
            effects.Log: lambda e: log.log(e.level, e.message, **e.fields),
            effects.ChangeLogLevel: self._change_log_level,
            effects.UseSettings: self._use_settings,
            effects.KeepPause: self._operator_tasks.keep_pause,
            effects.ReadSettings: self._read_settings,
            effects.StoreVoice: self._voices.store,
            effects.WriteMetrics: self._metrics.write,
            effects.ReadLog: self._read_log,
            effects.JournalAdd: self._journal.add,
            effects.JournalStart: self._journal.start,
            effects.JournalEnd: self._journal.end,
            effects.KeepUsage: self._journal.keep_usage,
            effects.JournalFind: self._journal.find,
            effects.SendStored: self._deliveries.send_stored,
            effects.SettleOutput: self._deliveries.settle,
            effects.MeasureOutputs: lambda _: self._deliveries.measure_soon(),
            effects.InternalError: lambda e: self._loop.report(e.error),
            effects.Exit: self._exit,
        }
        #: The service manager's watchdog ends a daemon that fails this check.
        self._self_check = (
            SelfCheck(self._zmq, self._runtime.endpoint(endpoints.CONTROL), loop.clock)
            if self._service.watches
            else None
        )
        if self._self_check:
            loop.watch(self._self_check.socket, self._self_check.receive)
        if self._service.problem:
            log.warning("the service manager can't be reached", reason=self._service.problem)

    # --- the loop

    def run(self) -> int:
        """Serve until an operator or a signal ends it; returns the exit status."""
        self._loop.on_wakeup(signals_to_hear(), self._on_wakeup)
        self._log.info(
            "daemon serves",
            version=__version__,
            pid=os.getpid(),
            requests=self._runtime.endpoint(endpoints.REQUESTS),
            **(self._clients.tcp.described() if self._clients.tcp else {}),
            engine=self._settings.engine.name,
            config=str(self._config.file or "built-in defaults"),
        )
        self._operator_tasks.look_up_names(self._config)
        self._metrics.open()
        self._deliveries.measure_outputs()
        self._do(self._machine.open())
        self._step(self._first_of_journal)
        self._first_of_journal.rows = []
        # Objects that live as long as the daemon need not be visited by every collection.
        gc.freeze()
        self._loop.running.start()
        try:
            while self._status is None:
                self._turn()
        finally:
            self._processes.kill_all()
            self._close()
        return self._status

    def _turn(self) -> None:
        """Wait for events and handle them."""
        loop, machine = self._loop, self._machine
        dues = (machine.next_due, self._service.next_due(), self._next_look, self._clients.retry_due)
        began = loop.wait(min(due for due in dues if due is not None))
        for number in self._clients.closed():
            self._step(inputs.ConnectionClosed(number))
        if (crowd := self._clients.new_crowd()) is not None:
            self._step(inputs.ConnectionsCrowded(crowd))
        due = machine.next_due
        if loop.running.stood_still or (due is not None and due <= loop.clock()):
            # Messages of workers come before their timeouts: the loop itself may have been late.
            loop.guarded(self._on_workers)
            self._step(inputs.TimePassed())
        if loop.clock() >= self._next_look:
            self._next_look = loop.clock() + LOOK_S
            loop.guarded(self._surroundings.look)
            loop.guarded(self._deliveries.measure_outputs)
            # A SIGCHLD is lost where the wakeup pipe is full.
            loop.guarded(self._processes.tidy)
        self._clients.flush()
        loop.guarded(self._deliveries.advance)
        self._metrics.lag.add(time.monotonic() - began)
        if self._service.wanted:
            loop.guarded(self._report_to_service_manager)

    def _step(self, event: inputs.Input) -> None:
        running = self._loop.running
        now = running.turn()
        if running.stood_still and not isinstance(event, inputs.WorkerSaid | inputs.WorkerGarbled):
            self._catch_up()
            now = running.turn()
        self._do(self._machine.step(event, now, time.time()))

    def _catch_up(self) -> None:
        """The loop runs again after a standstill: workers are heard before the time has passed for their jobs."""
        running = self._loop.running
        seconds = running.take_standstill()
        if seconds >= STANDSTILL_S:
            # ZeroMQ's thread stood still as well, and has what they said in a moment.
            self._workers.socket.poll(_LAST_WORDS_MS)
        self._loop.guarded(self._on_workers)
        self._service.stood_still()
        self._do(self._machine.step(inputs.StoodStill(seconds), running.turn(), time.time()))

    def _do(self, todo: list[effects.Effect]) -> None:
        """Carry out effects in their order. An exception in one loses no other, and the core hears of it."""
        for effect in todo:
            try:
                self._effects[type(effect)](effect)
            except Exception as error:
                self._loop.report(error)
                self._later.append(inputs.EffectFailed(effect, f"{type(error).__name__}: {error}"))
        # Inputs from effects come first: a stream that lost a chunk must not end as done with the next message of its
        # worker.
        overruns = self._clients.overruns
        while overruns:
            self._later.append(inputs.ConnectionOverrun(*overruns.popleft()))
        while self._later:
            self._step(self._later.popleft())

    def _restore_sockets(self) -> str:
        """Make the runtime folder and its sockets again if they were removed. Raises RuntimeDirError."""
        return self._runtime.restore(
            {
                endpoints.REQUESTS: self._clients.requests.socket,
                endpoints.CONTROL: self._clients.control.socket,
                endpoints.EVENTS: self._events.socket,
                endpoints.WORKERS: self._workers.socket,
            },
            self._log,
        )

    def _report_to_service_manager(self) -> None:
        machine = self._machine
        self._service.turn(lambda: machine.summary, machine.stopping, self._is_well)

    def _is_well(self) -> bool:
        """Whether the daemon works, as far as a restart would improve it."""
        if self._self_check is None or self._self_check.well():
            return True
        self._log.error("daemon is not well, and its service manager may end it", reason=self._self_check.problem)
        return False

    # --- inputs

    def _on_wakeup(self, signals: bytes) -> None:
        for number in signals:
            if number in (signal.SIGTERM, signal.SIGINT):
                self._step(inputs.StopAsked(signal.Signals(number).name))
            elif number == signal.SIGHUP:
                self._read_settings(effects.ReadSettings())
            elif number == signal.SIGCHLD:
                self._loop.guarded(self._processes.tidy)
        for part in (self._background, self._voices, self._deliveries, self._surroundings):
            self._loop.guarded(part.collect)
        for sampled in self._sampler.collect():
            # On the core's clock: what is as old as this may have been longer ago, where the loop stood still.
            sampled.at += self._loop.clock() - time.monotonic()
            self._step(sampled)
        for event in self._journal.collect():
            self._step(event)
        # Last: a failure here must not delay the others.
        for event in self._metrics.collect():
            self._step(event)

    def _on_watched(self, watched: bool) -> None:
        self._machine.watched = watched

    def _on_workers(self) -> None:
        for event in self._workers.receive(_BATCH):
            self._step(event)

    def _on_process_ended(self, process: WorkerProcess, returncode: int, oom_killed: bool, note: Note) -> None:
        # Its messages come first: an answer that has arrived must not be lost.
        self._on_workers()
        self._workers.forget(process)
        self._sampler.unwatch(process.incarnation)
        words = process.last_words
        self._step(inputs.ProcessEnded(process.incarnation, returncode, words, oom_killed, note.stage, note.jobs))

    def _on_worker_line(self, process: WorkerProcess, line: str) -> None:
        said = understood(line, by_default="debug" if process.ready else "info")
        about = {"job": said.job} if said.job else {}
        self._log.log(said.level, "worker output", worker=process.name, pid=process.pid, **about, line=said.words)

    def _on_operator_task(self, event: inputs.Input) -> None:
        self._step(event)
        if isinstance(event, inputs.SettingsRead):
            self._service.reloaded()

    def _facts(self, request: ControlRequest | None = None) -> dict[str, Any]:
        """The shell's part of ``status``, or of the answer to ``limits``."""
        if isinstance(request, GetLimits):
            return self._journal.tables(self._machine.settings.queue.keep_durable_mib << 20) | self._clients.tables()
        rss = int(Path("/proc/self/statm").read_bytes().split()[1]) * resource.getpagesize()
        return {
            "pid": os.getpid(),
            "memory": {"rss": rss},
            **self._clients.facts(),
            "internal_errors": self._loop.internal_errors,
            "log_lines_dropped": self._log.dropped,
        }

    # --- effects

    def _spawn(self, effect: effects.Spawn) -> None:
        try:
            pid = self._processes.start(effect)
        except OSError as error:
            self._later.append(inputs.SpawnFailed(effect.incarnation, error_in_words(error, starting=True)))
        else:
            self._sampler.watch(effect.incarnation, pid)
            self._later.append(inputs.Spawned(effect.incarnation, pid))

    def _read_recorder(self, effect: effects.ReadRecorder) -> None:
        process = self._processes.find(effect.incarnation)
        # Of one that has just ended, ProcessEnded brings the note.
        if process is not None:
            note = process.note
            self._later.append(inputs.RecorderRead(effect.incarnation, note.stage, note.jobs))

    def _change_log_level(self, effect: effects.ChangeLogLevel) -> None:
        self._log.level = effect.level

    def _use_settings(self, effect: effects.UseSettings) -> None:
        self._log.format = effect.settings.daemon.log_format
        self._processes.use(effect.settings, config.engine_python(effect.settings))
        self._voices.limits = effect.settings.limits
        self._surroundings.use(effect.settings)

    def _read_settings(self, effect: effects.ReadSettings) -> None:
        self._service.reloading()
        self._operator_tasks.read_settings(effect)

    def _read_log(self, effect: effects.ReadLog) -> None:
        values = self._log.recent.describe(effect.request) | {"pid": os.getpid(), "journal": self._log.in_journal}
        self._clients.send(effects.Send(effect.to, events.Result(id=effect.request.id, values=values)))

    def _exit(self, effect: effects.Exit) -> None:
        self._status = effect.status

    # --- the end

    def _close(self) -> None:
        """Send the last answers and remove the sockets."""
        self._clients.drain(_LINGER_S)
        self._metrics.close()
        self._sampler.close()
        self._journal.close()
        self._runtime.close()
        self._clients.close(int(_LINGER_S * 1000))
        self._events.close()
        self._workers.socket.close(0)
        if self._self_check:
            self._self_check.close()
        self._zmq.term()
        self._log.info("daemon ended", status=self._status)
        self._service.close()


def main(arguments: list[str] | None = None) -> int:
    """Run the daemon in the foreground; returns its exit status."""
    put_right()
    try:
        loaded = prepare(arguments)
    except StartRefusedError as error:
        print(error, file=sys.stderr)
        return error.status
    # Return the memory of large recordings and results to the system when they are freed.
    malloc.map_from(_LARGE)
    # A watchdog ends a hung loop with SIGABRT; the traceback is then in the log.
    faulthandler.enable()
    log = Logger(loaded.settings.daemon.log_level, loaded.settings.daemon.log_format)
    try:
        return Supervisor(loaded, log).run()
    except RuntimeDirError as error:
        log.error("daemon can't start", reason=str(error))
        return EX_UNAVAILABLE
    except Exception as error:
        log.exception("daemon ends after an internal error", error)  # noqa: PLE1205 (no logging.Logger)
        return EX_SOFTWARE
    finally:
        log.close()


if __name__ == "__main__":
    sys.exit(main())
