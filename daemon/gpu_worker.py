"""The worker process: loads an engine, takes jobs from the supervisor, and speaks as many at once as the engine can.

``python -m glmtts.daemon.gpu_worker``, started by the supervisor with its configuration as JSON in ``GLMTTS_WORKER``
(see WorkerConfig). It sends hello, loads, warms up, sends ready, and then waits for messages. The main thread does all
of it, so a beat proves that the work progresses, not just that the process exists. protocol/exit_codes.py lists its
exit codes.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from glmtts.protocol import exit_codes, inherited
from glmtts.protocol.worker import Bye, Hello, Ready, WorkerProtocolError

from . import confinement
from .engines import CONFINED, load
from .engines.base import BatchEngine
from .engines.cuda_errors import fatal_kind
from .engines.one_at_a_time import OneAtATime
from .flight_recorder import Recorder
from .storage.outputs import started
from .worker import lifeline, log
from .worker.connection import SupervisorConnection

if TYPE_CHECKING:
    from .confinement import Confinement
    from .worker.runner import JobRunner

ENVIRONMENT_VARIABLE = "GLMTTS_WORKER"


class WorkerConfig(msgspec.Struct, kw_only=True):
    """The configuration of one worker. ``engine_settings``: the section ``[engine.NAME]`` of the daemon's."""

    name: str
    endpoint: str
    token: str
    daemon_pid: int
    #: The read end of the daemon's lifeline pipe; see lifeline.py.
    lifeline_fd: int | None
    engine: str
    engine_settings: dict[str, Any] = {}
    warmup_text: str = ""
    recording_min_s: float = 1.0
    recording_max_s: float = 30.0
    default_sample_rate: int = 24_000
    #: The share of the GPU's memory that the engine may use, 0..1; 0: no limit.
    vram_share: float = 0.0
    #: Whether the glmtts engine fails without a GPU.
    needs_gpu: bool = False
    #: A folder that all workers share; its contents can be deleted at any time.
    cache_dir: str = ""
    #: At most this many jobs at once; 0: as many as the engine takes.
    slots: int = 0
    #: The memory of flight_recorder.py.
    recorder_fd: int | None = None
    #: Whether an engine in C is confined, and the folders in which it makes files nevertheless.
    confine: bool = False
    outputs_dir: str = ""
    results_dir: str = ""


def take_config(environment: dict[str, str] | os._Environ[str]) -> WorkerConfig:
    """Read the configuration and remove it from the environment, so that the engine's children don't get the token.

    Raises ValueError.
    """
    try:
        text = environment.pop(ENVIRONMENT_VARIABLE)
    except KeyError:
        raise ValueError(f"{ENVIRONMENT_VARIABLE} is not set: glmttsd starts the workers, not people") from None
    return msgspec.json.decode(text, type=WorkerConfig)


def main() -> NoReturn:
    inherited.put_right()
    _print_line_by_line()
    try:
        config = take_config(os.environ)
    except ValueError as error:
        _exit(exit_codes.USAGE, f"{ENVIRONMENT_VARIABLE}: {error}")
    # A terminal sends Ctrl-C to the daemon too, which stops its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        lifeline.tie(config.lifeline_fd, config.daemon_pid)
    except lifeline.DaemonGoneError as error:
        _exit(exit_codes.DAEMON_GONE, str(error))
    # numpy's BLAS would start a busy thread per core; no engine multiplies matrices with it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with contextlib.suppress(OSError):
        confinement.no_new_privileges()
    confined = _confine(config) if config.confine and config.engine in CONFINED else None
    connection = SupervisorConnection(config.endpoint, watched=confined is not None)
    signal.signal(signal.SIGTERM, lambda *_: connection.terminate())
    code, reason = exit_codes.STOPPED, ""
    try:
        code, reason = run(config, connection, confined)
    except WorkerProtocolError as error:
        code, reason = exit_codes.PROTOCOL, f"the supervisor sent a message that this version does not know: {error}"
    except Exception as error:
        log.report(error)
        code, reason = exit_codes.ENGINE_BROKEN, log.safe_words(error)
    connection.send(Bye(reason=reason or exit_codes.MEANING[code]))
    connection.close()
    _exit(code, reason)


def run(config: WorkerConfig, connection: SupervisorConnection, confined: Confinement | None = None) -> tuple[int, str]:
    """Everything between hello and bye. Returns an exit code, and a reason where the code does not say it."""
    own = os.getpid()
    connection.send(Hello(token=config.token, pid=own, started=started(own), python=sys.version.partition(" ")[0]))
    try:
        engine, runner = _start(config, connection, confined)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        code = exit_codes.OF_FATAL_ERROR.get(fatal_kind(error), exit_codes.ENGINE_UNAVAILABLE)
        return code, log.in_words(error)
    code = runner.run(config.warmup_text)
    if code:
        # A broken engine may hang in its cleanup; the supervisor retries the suspended jobs.
        return code, ""
    engine.close()
    return exit_codes.STOPPED, ""


def _confine(config: WorkerConfig) -> Confinement:
    """Take the files that the worker does not need, before ZeroMQ starts the first thread."""
    with contextlib.suppress(Exception):
        # Now, because soundfile may look for its library with other programs, and packages may be links to anywhere.
        # A failure here is reported where it happens again.
        from .worker import runner  # noqa: F401

        importlib.import_module(CONFINED[config.engine])
    outputs, results = Path(config.outputs_dir), Path(config.results_dir)
    for folder, mode in ((outputs, 0o750), (results, 0o700)):
        with contextlib.suppress(OSError):
            # A rule can't be made for a folder that is not there.
            folder.mkdir(mode=mode, exist_ok=True)
    return confinement.confine_files(write=[results], read_write=[outputs])


def _start(
    config: WorkerConfig, connection: SupervisorConnection, confined: Confinement | None
) -> tuple[BatchEngine, JobRunner]:
    begun = time.monotonic()
    loaded_engine = load(
        config.engine,
        config.engine_settings,
        send_raw=connection.send_raw,
        vram_share=config.vram_share,
        needs_gpu=config.needs_gpu,
        cache_dir=config.cache_dir,
        slots=config.slots,
        warmup_text=config.warmup_text,
        warn=lambda line: log.say(log.WARNING, line),
    )
    engine = loaded_engine if isinstance(loaded_engine, BatchEngine) else OneAtATime(loaded_engine)
    loaded = time.monotonic()
    from .worker import speed
    from .worker.runner import JobRunner

    runner = JobRunner(
        engine,
        connection,
        default_sample_rate=config.default_sample_rate,
        recording_min_s=config.recording_min_s,
        recording_max_s=config.recording_max_s,
        confined=confined,
        slots=config.slots,
        record=Recorder(config.recorder_fd).note if config.recorder_fd is not None else None,
    )
    runner.maintenance.warm_up(config.warmup_text)
    lacking = ""
    if confined is not None:
        # Texts of clients come after "ready".
        connection.until_connected()
        lacking = "; ".join(filter(None, (confined.lacking, confinement.confine_calls())))
        if lacking:
            log.say(log.INFO, f"the engine can't be confined fully: {lacking}")
    connection.send(
        Ready(
            engine=engine.name,
            engine_version=engine.version,
            sample_rates=list(engine.sample_rates),
            voices=engine.voices,
            default_voice=engine.voices[0].name if engine.voices else "",
            clones_voices=engine.clones_voices,
            slots=runner.slots,
            repeats=engine.repeats,
            experimental=engine.experimental,
            confined="" if confined is None else f"not {lacking}" if lacking else "yes",
            speeds=speed.is_there(),
            load_s=loaded - begun,
            warmup_s=time.monotonic() - loaded,
            memory=runner.maintenance.memory(),
        )
    )
    return engine, runner


def _print_line_by_line() -> None:
    """Flush each line to the daemon's log, and print any character without an error."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]


def _exit(code: int, reason: str) -> NoReturn:
    """End at once: sys.exit would wait for the engine's threads and run the libraries' exit handlers."""
    with contextlib.suppress(OSError, ValueError):
        if reason:
            log.say(log.WARNING, f"worker ends with code {code}: {reason}")
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
