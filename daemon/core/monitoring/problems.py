"""Problems for an operator, in plain words and with what to do: ``attention`` in ``status``, most serious first.

An alert says that a figure is bad; a problem says why, as far as the daemon can know. docs/operations.md has the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from msgspec import Struct, to_builtins

from ..exit_causes import POLICIES, Cause
from ..scheduling.scheduler import Scheduler
from ..state import State
from ..workers.circuit_breaker import BreakerState
from ..workers.placement import GPU_ENGINES
from ..workers.worker import Worker, WorkerState
from .alert_table import ALERTS, LOOK_AT_WORKER

#: ``down``: no requests are served. ``bad``: something is broken for some. ``slow``: jobs wait. ``note``: good to know.
Severity = Literal["down", "bad", "slow", "note"]
_ORDER: tuple[Severity, ...] = ("down", "bad", "slow", "note")

#: For this long the end of a process, or a client that does not read, is worth a look.
_LATELY_S = 600.0
#: A job that has waited for this long waits too long where no limit is configured.
_LONG_WAIT_S = 10.0
#: A job that has made no progress for this share of hang_timeout_s is worth a look.
_STILL = 0.25
#: One client is named if it has at least this many of the waiting jobs, and this share of them.
_MANY, _MOST = 4, 0.8

_NO_WORKER = ("unavailable", "no_worker_ready")
#: Problems that explain others, which are then left out.
_EXPLAINS: dict[str, tuple[str, ...]] = {
    "workers_crash": (*_NO_WORKER, "breaker_open", "crash_loop", "worker_died", "too_few_workers", "queue_long"),
    "loading": _NO_WORKER,
    "gpu_full": (*_NO_WORKER, "gpu_memory_high", "queue_long"),
    "gpu_lost": _NO_WORKER,
    "worker_waits": _NO_WORKER,
    "cpu": ("slower_than_real_time",),
    "no_progress": ("too_few_workers", "queue_long"),
    "one_client": ("queue_long",),
    "too_few_workers": ("queue_long",),
}


class Problem(Struct, frozen=True):
    """``what`` is wrong and what that means, and what to ``do``. ``name`` stays the same over versions."""

    name: str
    severity: Severity
    what: str
    do: str


class Problems:
    """Finds problems when it is asked. It owns only those that leave no other trace in the core."""

    def __init__(self, state: State, scheduler: Scheduler) -> None:
        self._context, self._queue, self._alerts = state.context, state.queue, state.alerts
        self._pool, self._autoscaler, self._gpus = state.pool, state.autoscaler, state.gpus
        self._durable_jobs, self._retries = scheduler.durable_jobs, scheduler.retries
        #: Keys whose new values, read from the file, take effect with the next start of the daemon.
        self.restart_needed: list[str] = []
        #: The time of the last stream that was ended because its client did not read, and the client.
        self._slow_reader: tuple[float, str] | None = None

    def does_not_read(self, client: str) -> None:
        """A client's stream was ended because it had left too much unread."""
        self._slow_reader = (self._context.now, client)

    def describe(self, state: str, facts: dict[str, Any]) -> list[dict[str, str]]:
        """All problems, as ``status`` shows them. ``facts`` are those of the shell."""
        found = [*self.unready(state), *self._alerted(), *self._workers(), *self._waiting(state), *self._noted(facts)]
        explained = {name for problem in found for name in _EXPLAINS.get(problem.name, ())}
        found = [problem for problem in found if problem.name not in explained]
        found.sort(key=lambda problem: _ORDER.index(problem.severity))
        # Of several with one name the first is the gravest.
        return list({problem.name: to_builtins(problem) for problem in reversed(found)}.values())[::-1]

    # --- no requests are served

    def unready(self, state: str) -> list[Problem]:
        """Why no new job would be spoken soon; empty where one would."""
        if state == "paused":
            waiting = len(self._queue)
            wait = "1 job waits" if waiting == 1 else f"{waiting} jobs wait"
            what = f"An operator has paused the queue: {wait}, and none is started."
            return [Problem("paused", "down", what, "glmttsctl resume")]
        if state in ("draining", "drained"):
            what = "An operator drains the daemon: accepted jobs are finished, and no new ones are accepted."
            return [Problem("draining", "down", what, "glmttsctl resume accepts jobs again; glmttsctl stop ends it.")]
        if state == "stopping":
            what = "The daemon stops: running jobs are finished, and no new ones are accepted."
            return [Problem("stopping", "down", what, "Nothing, or start it again when it has ended.")]
        if self._pool.serving or self.asleep:
            return []
        return [self._no_worker()]

    @property
    def asleep(self) -> bool:
        """Whether all workers were unloaded because no job came for long: the next job loads one."""
        return self._autoscaler.opened and not self._autoscaler.bounds()["wanted"]

    def _no_worker(self) -> Problem:
        workers = list(self._pool)
        last = _last_death(workers)
        name = last.name if last else ""
        if self._pool.circuit_breaker.state is not BreakerState.CLOSED:
            what = (
                "All workers keep crashing; no requests are being served. "
                f"{name or 'The last one'} died of this: {_death(last)}."
            )
            return Problem("workers_crash", "down", what, LOOK_AT_WORKER)
        if lost := [worker for worker in workers if self._gpus.is_lost(worker.gpu)]:
            what = f"No worker can run: {lost[0].reason or f'GPU {lost[0].gpu} is lost'}."
            return Problem("gpu_lost", "down", what, ALERTS["gpu_lost"].do)
        if waiting := [worker for worker in workers if worker.state is WorkerState.WAITING]:
            return self._waits(waiting[0], "down")
        if starting := [worker for worker in workers if worker.state is WorkerState.STARTING]:
            return self._loading(starting[0])
        if not workers:
            what = "GPU memory has not been sampled yet, so no worker has been started; no requests are being served."
            return Problem("loading", "down", what, "Wait for a few seconds; then glmttsctl gpus shows NVML's state.")
        what = f"No worker is ready; {name or workers[0].name} is started again after this: {_death(last)}."
        return Problem("workers_crash", "down", what, LOOK_AT_WORKER)

    def _loading(self, worker: Worker) -> Problem:
        seconds = self._context.now - worker.process.started_at
        died = f" again after {_death(worker)}" if worker.last_exit and worker.faults else ""
        what = (
            f"Worker {worker.name} has been loading the model{died} for {seconds:.0f} s; no requests are being served."
        )
        if worker.last_exit and worker.last_exit.cause is Cause.START_TIMEOUT:
            do = (
                "Raise [workers] start_timeout_s, and run glmttsctl reload: the model takes longer than that to load. "
                f"glmttsctl logs --worker {worker.name} shows how far it came."
            )
        else:
            do = (
                "Wait: a large model takes minutes, and [workers] start_timeout_s ends a start that takes longer. "
                f"glmttsctl logs -f --worker {worker.name} shows how far it is."
            )
        return Problem("loading", "down", what, do)

    def _waits(self, worker: Worker, severity: Severity) -> Problem:
        what = f"Worker {worker.name} is not started: {worker.reason}."
        gpu = self._gpus.find(worker.gpu)
        if gpu is not None and "MiB free" in worker.reason:
            what += " Other programs, or other workers, use the rest."
            do = (
                f"glmttsctl gpus shows which programs use GPU {worker.gpu}: end them, or name other GPUs in "
                "[workers] gpus. The worker starts by itself when there is room."
            )
            return Problem("gpu_full", severity, what, do)
        return Problem("worker_waits", severity, what, "glmttsctl workers and glmttsctl gpus have the details.")

    # --- something is wrong

    def _alerted(self) -> Iterator[Problem]:
        settings = self._context.settings
        for described in self._alerts.describe():
            name, _, _ = str(described["name"]).partition(".")
            alert = ALERTS[name]
            if (
                name == "slower_than_real_time"
                and settings.engine.name in GPU_ENGINES
                and settings.workers.gpus == "none"
            ):
                what = 'The workers speak on the CPU ([workers] gpus = "none"), slower than real time.'
                do = 'Set [workers] gpus = "all" and restart; glmttsctl doctor says whether the GPU can be used.'
                yield Problem("cpu", "slow", what, do)
            what = _sentence(str(described["message"]))
            yield Problem(str(described["name"]), "slow" if alert.slow else "bad", what, alert.do)
        journal = self._durable_jobs.describe()
        if not journal.get("ok", True):
            reason = journal.get("problem") or "the journal is being opened"
            what = f"Durable jobs, all batch jobs among them, are refused: {reason}"
            yield Problem("journal", "bad", _sentence(what), ALERTS["journal"].do)

    def _workers(self) -> Iterator[Problem]:
        now = self._context.now
        for worker in self._pool:
            if worker.state is WorkerState.WAITING and self._pool.serving:
                yield self._waits(worker, "slow")
            if (still_s := now - worker.moved_at(now)) >= _STILL * self._context.settings.workers.hang_timeout_s:
                yield self._no_progress(worker, still_s)
            death = worker.exit_reason
            if death is None or now - death.at > _LATELY_S:
                continue
            if death.cause in (Cause.LEAK, Cause.RECYCLED):
                why = "its memory grew with every job" if death.cause is Cause.LEAK else "it had reached a limit"
                what = f"Worker {worker.name} was replaced {now - death.at:.0f} s ago because {why}: {death.detail}."
                do = (
                    "No job is lost by that, but without room for a spare jobs wait while the next process loads. "
                    "glmttsctl workers -v shows what grows; if [workers.recycle] is too strict, raise its limits."
                )
                yield Problem("worker_replaced", "slow", what, do)
            elif POLICIES[death.cause].fault:
                what = f"Worker {worker.name} died {now - death.at:.0f} s ago: {_death(worker)}. It was started again."
                yield Problem("worker_died", "bad", what, LOOK_AT_WORKER)
            if replaced := worker.process.replace_reason:
                what = f"Worker {worker.name} is being replaced: {replaced.detail}."
                yield Problem("worker_leaves", "note", what, "Nothing: its spare and the other workers take the jobs.")

    def _no_progress(self, worker: Worker, still_s: float) -> Problem:
        timeout_s = self._context.settings.workers.hang_timeout_s
        what = (
            f"Worker {worker.name} has made no progress for {still_s:.0f} s: it hangs, or its process was stopped "
            f"(glmttsctl workers -v). After {timeout_s:g} s it is killed, and its job is retried or fails."
        )
        do = (
            "Nothing at once. If it happens again: glmttsctl quarantine list shows the texts, dmesg whether the GPU's "
            "driver hangs; [workers] hang_timeout_s is how long a job may make no progress."
        )
        return Problem("no_progress", "bad", what, do)

    # --- jobs wait

    def _waiting(self, state: str) -> Iterator[Problem]:
        count, now = len(self._queue), self._context.now
        if not count or state != "running":
            return
        oldest = self._queue.oldest()
        waits_s = 0.0 if oldest is None else now - oldest
        first = max(self._queue.clients(), key=lambda waiting: waiting.count, default=None)
        if count >= _MANY and first and first.count >= _MOST * count:
            client = first.client
            what = f"{first.count} of the {count} waiting jobs are from one client, {client.key} ({client.user})."
            do = (
                "Other clients are not held up: each client has its share of the workers, however many jobs wait. "
                f"glmttsctl queue shows the jobs, glmttsctl cancel --client {client.key} ends them, and "
                "[limits.clients] or [queue] max_share limits them."
            )
            yield Problem("one_client", "slow", what, do)
        serving, most = self._pool.serving, self._autoscaler.max
        urgent = self._queue.length("vip") + self._queue.length("interactive")
        if serving and (waits_s >= _LONG_WAIT_S or urgent >= (self._context.settings.queue.warn_waiting or _MANY)):
            what = (
                f"{count} jobs wait, the oldest for {waits_s:.0f} s: {serving} of at most {most} workers "
                f"{'is' if serving == 1 else 'are'} serving, too few for the load."
            )
            do = (
                "glmttsctl queue shows the clients. Add workers with glmttsctl scale --max N where a GPU has room "
                "(glmttsctl gpus), or add a GPU. Send long texts as batch jobs, so that urgent jobs go first."
            )
            yield Problem("too_few_workers", "slow", what, do)

    # --- good to know

    def _noted(self, facts: dict[str, Any]) -> Iterator[Problem]:
        now = self._context.now
        if self._slow_reader is not None and now - self._slow_reader[0] <= _LATELY_S:
            at, client = self._slow_reader
            what = f"A client, {client}, does not read its stream, which was ended {now - at:.0f} s ago."
            do = (
                "Its program must read while speech is made; other clients were not held up. "
                "[limits] send_buffer_mib is the limit of unread audio."
            )
            yield Problem("slow_reader", "note", what, do)
        if self.asleep:
            what = (
                "All workers were unloaded because no job came ([workers] idle_unload_s); the next job waits for one."
            )
            yield Problem("asleep", "note", what, "Set [workers] min to 1 if that wait is too long.")
        if self.restart_needed:
            keys = ", ".join(self.restart_needed)
            what = f"These keys of the configuration have new values that take effect after a restart: {keys}."
            do = "glmttsctl stop, and start it again: durable jobs continue by themselves."
            yield Problem("restart_needed", "note", what, do)
        if quarantined := self._retries.quarantined_count():
            texts = "1 text is" if quarantined == 1 else f"{quarantined} texts are"
            what = f"{texts} refused after repeated crashes of workers."
            do = "glmttsctl quarantine list shows them and their clients, and quarantine clear allows them again."
            yield Problem("quarantine", "note", what, do)
        if errors := facts.get("internal_errors"):
            what = f"The daemon has met {errors} internal {'error' if errors == 1 else 'errors'} and continued."
            do = "Please report the tracebacks: glmttsctl logs --level error."
            yield Problem("internal_errors", "note", what, do)
        if dropped := facts.get("log_lines_dropped"):
            what = (
                f"{dropped} lines of the log were lost: the daemon's stderr is read too slowly, or can't be written to."
            )
            do = "Fix its reader, or the disk that it is on, or log less (glmttsctl log-level warning)."
            yield Problem("log_lost", "note", what, do)


def _last_death(workers: list[Worker]) -> Worker | None:
    """The worker whose process ended last."""
    died = [(death.at, worker.name, worker) for worker in workers if (death := worker.exit_reason)]
    return max(died)[2] if died else None


def _death(worker: Worker | None) -> str:
    death = worker and worker.exit_reason
    return f"{death.detail} ({death.cause})" if death else "the reason is in the log"


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."
