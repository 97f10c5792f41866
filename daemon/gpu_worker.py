"""The worker process: loads an engine, takes jobs from the supervisor, and speaks one at a time.

``python -m glmtts.daemon.gpu_worker``, started by the supervisor, with its configuration as JSON in ``GLMTTS_WORKER``
(see WorkerConfig). It says hello, loads, warms up, says ready, and then sleeps until it is spoken to. The main thread
does it all: a beat says that the work moves, not that the process exists. exit_codes.py lists how it ends.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from glmtts.protocol import exit_codes
from glmtts.protocol.worker import (
    Bye,
    CancelJob,
    Check,
    Hello,
    Job,
    Ready,
    ResumeJob,
    StopWorker,
    Trim,
    Trimmed,
    WorkerProtocolError,
)

from . import malloc
from .engines import load
from .engines.cuda_errors import judge
from .storage.outputs import started
from .worker import lifeline, log
from .worker.connection import Wire

if TYPE_CHECKING:
    from .engines.base import Engine

ENVIRONMENT_VARIABLE = "GLMTTS_WORKER"


class WorkerConfig(msgspec.Struct, kw_only=True):
    """What a worker is started with. ``engine_settings`` is the section ``[engine.NAME]`` of the configuration."""

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
    #: Whether the glmtts engine may not run without a GPU.
    needs_gpu: bool = False
    #: The folder for what all workers may share and anybody may delete.
    cache_dir: str = ""


def take_config(environment: dict[str, str] | os._Environ[str]) -> WorkerConfig:
    """Read the configuration and remove it, so that the token is not handed on to the engine's children.

    Raises ValueError.
    """
    try:
        text = environment.pop(ENVIRONMENT_VARIABLE)
    except KeyError:
        raise ValueError(f"{ENVIRONMENT_VARIABLE} is not set; glmttsd starts the workers, people don't") from None
    return msgspec.json.decode(text, type=WorkerConfig)


def main() -> NoReturn:
    _speak_line_by_line()
    try:
        config = take_config(os.environ)
    except ValueError as error:
        _exit(exit_codes.USAGE, f"{ENVIRONMENT_VARIABLE}: {error}")
    # A terminal's Ctrl-C goes to the daemon, which tells its workers what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        lifeline.tie(config.lifeline_fd, config.daemon_pid)
    except lifeline.DaemonGoneError as error:
        _exit(exit_codes.DAEMON_GONE, str(error))
    # numpy's BLAS starts a thread per core, which spin for a while; no engine has matrices for them on the CPU.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    wire = Wire(config.endpoint)
    signal.signal(signal.SIGTERM, lambda *_: wire.terminate())
    code, reason = exit_codes.STOPPED, ""
    try:
        code, reason = run(config, wire)
    except WorkerProtocolError as error:
        code, reason = exit_codes.PROTOCOL, f"the supervisor said what this version does not know: {error}"
    except Exception as error:
        log.report(error)
        code, reason = exit_codes.ENGINE_BROKEN, log.safe_words(error)
    wire.send(Bye(reason=reason or exit_codes.MEANING[code]))
    wire.close()
    _exit(code, reason)


def run(config: WorkerConfig, wire: Wire) -> tuple[int, str]:
    """The worker's life between hello and bye. Returns an exit code and the reason for it, if there is more to say."""
    own = os.getpid()
    wire.send(Hello(token=config.token, pid=own, started=started(own), python=sys.version.partition(" ")[0]))
    try:
        engine, runner = _start(config, wire)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        code = exit_codes.OF_FATAL_ERROR.get(judge(error), exit_codes.ENGINE_UNAVAILABLE)
        return code, log.in_words(error)
    code = 0
    while not code and (message := wire.next_message()) is not None:
        match message:
            case Job():
                code = runner.run(message, wire.take_body())
            case ResumeJob():
                code = runner.resume(message.job)
            case CancelJob():
                runner.cancel(message.job)
            case Check():
                code = runner.check(message.check, config.warmup_text)
            case Trim():
                engine.trim()
                _return_free_memory()
                wire.send(Trimmed(memory=runner.memory()))
            case StopWorker():
                break
    if code:
        # A broken engine may hang when it is asked to tidy up: leave that, and the jobs put aside, to others.
        return code, ""
    runner.cancel_all()
    engine.close()
    return exit_codes.STOPPED, ""


def _start(config: WorkerConfig, wire: Wire) -> tuple[Engine, Any]:
    begun = time.monotonic()
    engine = load(
        config.engine,
        config.engine_settings,
        send_raw=wire.send_raw,
        vram_share=config.vram_share,
        needs_gpu=config.needs_gpu,
        cache_dir=config.cache_dir,
        warn=lambda line: log.say(log.WARNING, line),
    )
    loaded = time.monotonic()
    from .worker.runner import JobRunner

    runner = JobRunner(
        engine,
        wire,
        default_sample_rate=config.default_sample_rate,
        recording_min_s=config.recording_min_s,
        recording_max_s=config.recording_max_s,
    )
    runner.warm_up(config.warmup_text)
    wire.send(
        Ready(
            engine=engine.name,
            engine_version=engine.version,
            sample_rates=list(engine.sample_rates),
            voices=engine.voices,
            default_voice=engine.voices[0].name if engine.voices else "",
            clones_voices=engine.clones_voices,
            slots=engine.slots,
            load_s=loaded - begun,
            warmup_s=time.monotonic() - loaded,
            memory=runner.memory(),
        )
    )
    return engine, runner


def _return_free_memory() -> None:
    gc.collect()
    malloc.give_back()


def _speak_line_by_line() -> None:
    """Lines reach the daemon's log when they are printed, and no character of a text can make printing fail."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]


def _exit(code: int, reason: str) -> NoReturn:
    """End at once: the interpreter's own way waits for the engine's threads and runs what libraries left to do."""
    with contextlib.suppress(OSError, ValueError):
        if reason:
            log.say(log.WARNING, f"worker ends with code {code}: {reason}")
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
