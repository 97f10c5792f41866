"""What an operator should look at now, in plain words, with what to do: ``attention`` in ``status``, the gravest first.

Alerts say that a figure is bad; this says why, as far as the daemon can know. docs/operations.md has the table of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from msgspec import Struct, to_builtins

from ..alerts import Alerts
from ..context import Context
from ..exit_causes import POLICIES, Cause
from ..jobs.queue import WaitingQueue
from ..scheduling.durable import DurableJobs
from ..scheduling.retry import Retries
from ..workers.autoscaler import Autoscaler
from ..workers.circuit_breaker import BreakerState
from ..workers.gpus import Gpus
from ..workers.placement import GPU_ENGINES
from ..workers.pool import Pool
from ..workers.worker import Death, Worker, WorkerState
from .attention_words import AFTER_ALERT, LOOK_AT_WORKER, SAID_WITH, SLOW_ALERTS

#: ``down``: nobody is spoken to. ``bad``: something is broken for some. ``slow``: people wait. ``note``: good to know.
Severity = Literal["down", "bad", "slow", "note"]
_ORDER: tuple[Severity, ...] = ("down", "bad", "slow", "note")

#: For so long a death, or a client that does not read, is worth a look.
_LATELY_S = 600.0
#: A job that has waited for so long waits for too long where nobody has said what is too long.
_LONG_WAIT_S = 10.0
#: A job that has not moved for this share of the time after which it is taken for hung is worth a look.
_STILL = 0.25
#: What is told of one client has to be about so many jobs, and about this share of all that wait.
_MANY, _MOST = 4, 0.8


class Problem(Struct, frozen=True):
    """``what`` is wrong and what that means, and what to ``do``. ``name`` stays the same over versions."""

    name: str
    severity: Severity
    what: str
    do: str


class Problems:
    """Looks at everything when it is asked, and remembers only what leaves no other trace."""

    def __init__(
        self,
        context: Context,
        queue: WaitingQueue,
        pool: Pool,
        *,
        autoscaler: Autoscaler,
        gpus: Gpus,
        durable_jobs: DurableJobs,
        retries: Retries,
        alerts: Alerts,
    ) -> None:
        self._context = context
        self._queue = queue
        self._pool = pool
        self._autoscaler = autoscaler
        self._gpus = gpus
        self._durable_jobs = durable_jobs
        self._retries = retries
        self._alerts = alerts
        #: Keys whose new values, read from the file, are held back until the daemon is started again.
        self.restart_needed: list[str] = []
        #: When a client's stream was last ended because it did not read, and whose.
        self._slow_reader: tuple[float, str] | None = None

    def does_not_read(self, client: str) -> None:
        """A client's stream was ended because it had left too much unread."""
        self._slow_reader = (self._context.now, client)

    def describe(self, state: str, facts: dict[str, Any]) -> list[dict[str, str]]:
        """All of it, as ``status`` shows it. ``facts`` are what the shell knows."""
        found = [*self.unready(state), *self._alerted(), *self._workers(), *self._waiting(state), *self._noted(facts)]
        # What is said twice is said by the first: the graver, and the nearer to the cause.
        said = {name for problem in found for name in SAID_WITH.get(problem.name, ())}
        found = [problem for problem in found if problem.name not in said]
        found.sort(key=lambda problem: _ORDER.index(problem.severity))
        return list({problem.name: to_builtins(problem) for problem in reversed(found)}.values())[::-1]

    # --- nobody is spoken to

    def unready(self, state: str) -> list[Problem]:
        """Why no job that comes now would be spoken soon; nothing where one would."""
        if state == "paused":
            what = f"An operator has paused the queue: {len(self._queue)} jobs wait, and none is started."
            return [Problem("paused", "down", what, "glmttsctl resume")]
        if state in ("draining", "drained"):
            what = "An operator drains the daemon: what was accepted is finished, and nothing new is accepted."
            return [
                Problem("draining", "down", what, "glmttsctl resume takes it back; glmttsctl stop ends the daemon.")
            ]
        if state == "stopping":
            what = "The daemon stops: it finishes what is being spoken, and nothing new is accepted."
            return [Problem("stopping", "down", what, "Nothing, or start it again when it has ended.")]
        if self._pool.serving or self.asleep:
            return []
        return [self._no_worker()]

    @property
    def asleep(self) -> bool:
        """Whether no worker is loaded because nobody has needed one for long: the next job loads one."""
        return self._autoscaler.opened and not self._autoscaler.bounds()["wanted"]

    def _no_worker(self) -> Problem:
        workers = list(self._pool)
        if self._pool.circuit_breaker.state is not BreakerState.CLOSED:
            last = _last_death(workers)
            what = (
                "No worker can be kept alive, so nobody is spoken to. "
                f"{last.name if last else 'The last one'} died of this: {_death(last)}."
            )
            return Problem("workers_crash", "down", what, LOOK_AT_WORKER)
        if lost := [worker for worker in workers if self._gpus.is_lost(worker.gpu)]:
            what = f"No worker can run: {lost[0].reason or f'GPU {lost[0].gpu} is lost'}."
            return Problem("gpu_lost", "down", what, AFTER_ALERT["gpu_lost"])
        if waiting := [worker for worker in workers if worker.state is WorkerState.WAITING]:
            return self._waits(waiting[0], "down")
        if starting := [worker for worker in workers if worker.state is WorkerState.STARTING]:
            worker = starting[0]
            seconds = self._context.now - worker.spawned_at
            died = f" after {_death(worker)}" if worker.last_death and worker.faults else ""
            what = (
                f"Worker {worker.name} loads the model{died}, for {seconds:.0f} s now; until then nobody is spoken to."
            )
            if worker.last_death and worker.last_death.cause is Cause.START_TIMEOUT:
                do = (
                    "Raise [workers] start_timeout_s, and glmttsctl reload: the model takes longer than that, and is "
                    f"never loaded else. glmttsctl logs --worker {worker.name} shows how far it came."
                )
                return Problem("loading", "down", what, do)
            do = (
                "Wait: a large model takes minutes, and [workers] start_timeout_s ends what takes "
                "longer. glmttsctl logs "
                f"-f --worker {worker.name} shows how far it is."
            )
            return Problem("loading", "down", what, do)
        if not workers:
            what = "The GPUs have not been looked at yet, so no worker is started; until then nobody is spoken to."
            return Problem("loading", "down", what, "Wait for a few seconds; then glmttsctl gpus says how NVML does.")
        last = _last_death(workers)
        name = last.name if last else workers[0].name
        what = f"No worker can speak now; {name} is started again after this: {_death(last)}."
        return Problem("workers_crash", "down", what, LOOK_AT_WORKER)

    def _waits(self, worker: Worker, severity: Severity) -> Problem:
        what = f"Worker {worker.name} is not started: {worker.reason}."
        gpu = self._gpus.find(worker.gpu)
        if gpu is not None and "MiB free" in worker.reason:
            what += " Other programs, or other workers, have the rest."
            do = (
                f"glmttsctl gpus shows who has GPU {worker.gpu}: end those programs, or name other "
                "GPUs in [workers] gpus. "
                "It is started by itself when there is room."
            )
            return Problem("gpu_full", severity, what, do)
        return Problem("worker_waits", severity, what, "glmttsctl workers and glmttsctl gpus say more.")

    # --- something is wrong

    def _alerted(self) -> Iterator[Problem]:
        for alert in self._alerts.describe():
            name, _, _ = str(alert["name"]).partition(".")
            severity: Severity = "slow" if name in SLOW_ALERTS else "bad"
            if name == "slower_than_real_time" and self._on_cpu:
                yield Problem("cpu", "slow", _ON_CPU, _ON_CPU_DO)
            yield Problem(
                str(alert["name"]), severity, _sentence(str(alert["message"])), AFTER_ALERT.get(name, _ALERTS)
            )
        journal = self._durable_jobs.describe()
        if not journal.get("ok", True):
            what = (
                f"Durable jobs, batch jobs among them, are refused: {journal.get('problem') or 'the journal is opened'}"
            )
            yield Problem("journal", "bad", _sentence(what), AFTER_ALERT["journal"])

    @property
    def _on_cpu(self) -> bool:
        settings = self._context.settings
        return settings.engine.name in GPU_ENGINES and settings.workers.gpus == "none"

    def _workers(self) -> Iterator[Problem]:
        now = self._context.now
        for worker in self._pool:
            if worker.state is WorkerState.WAITING and self._pool.serving:
                yield self._waits(worker, "slow")
            if (still_s := self._pool.stands_still_s(worker)) >= _STILL * self._context.settings.workers.hang_timeout_s:
                yield self._stands_still(worker, still_s)
            death = _death_of(worker)
            if death is None or now - death.at > _LATELY_S:
                continue
            if death.cause in (Cause.LEAK, Cause.RECYCLED):
                what = (
                    f"Worker {worker.name} was replaced {now - death.at:.0f} s ago, because it {_why(death.cause)}: "
                    f"{death.detail}."
                )
                do = (
                    "No job is lost by that, but where there is no room for a spare, people wait "
                    "while the next one loads. "
                    "glmttsctl workers -v shows what grows; if it is [workers.recycle] that is too strict, raise it."
                )
                yield Problem("worker_replaced", "slow", what, do)
            elif POLICIES[death.cause].fault:
                what = f"Worker {worker.name} died {now - death.at:.0f} s ago: {_death(worker)}. It was started again."
                yield Problem("worker_died", "bad", what, LOOK_AT_WORKER)
            if worker.leaving is not None:
                what = f"Worker {worker.name} is being replaced: {worker.leaving.detail}."
                yield Problem("worker_leaves", "note", what, "Nothing: jobs go on, by the others and by its spare.")

    def _stands_still(self, worker: Worker, still_s: float) -> Problem:
        timeout_s = self._context.settings.workers.hang_timeout_s
        what = (
            f"Worker {worker.name} has made no progress for {still_s:.0f} s: it hangs, or somebody has stopped it "
            f"(glmttsctl workers -v). After {timeout_s:g} s it is killed, and its job tried again or its client told."
        )
        do = (
            "Nothing at once. If it comes again: glmttsctl quarantine list shows the texts that did it, dmesg whether "
            "the GPU's driver hangs; [workers] hang_timeout_s is how long it may stand still."
        )
        return Problem("no_progress", "bad", what, do)

    # --- people wait

    def _waiting(self, state: str) -> Iterator[Problem]:
        count, now = len(self._queue), self._context.now
        if not count or state != "running":
            return
        oldest = self._queue.oldest()
        waits_s = 0.0 if oldest is None else now - oldest
        clients = sorted(self._queue.clients(), key=lambda waiting: -waiting.count)
        if count >= _MANY and clients and clients[0].count >= _MOST * count:
            first = clients[0]
            what = (
                f"{first.count} of the {count} jobs that wait are of one client, {first.client.key} "
                f"({first.client.user})."
            )
            do = (
                "Other clients are not held up by that: each has its share of the workers, whoever has more waiting. "
                f"glmttsctl queue shows them, glmttsctl cancel --client {first.client.key} ends them, and "
                "[limits.clients] or [queue] max_share bounds them."
            )
            yield Problem("one_client", "slow", what, do)
        serving, most = self._pool.serving, self._autoscaler.max
        for_people = self._queue.length("vip") + self._queue.length("interactive")
        many = self._context.settings.queue.warn_waiting or _MANY
        if serving and (waits_s >= _LONG_WAIT_S or for_people >= many):
            what = (
                f"{count} jobs wait, the first of them for {waits_s:.0f} s: {serving} of at most {most} workers "
                f"{'is' if serving == 1 else 'are'} at work, and more is asked for than they can speak."
            )
            do = (
                "glmttsctl queue shows for whom. More workers: glmttsctl scale --max N where a GPU has room (glmttsctl "
                "gpus), or another GPU. Long texts as batch jobs leave the workers to those who wait."
            )
            yield Problem("too_few_workers", "slow", what, do)

    # --- good to know

    def _noted(self, facts: dict[str, Any]) -> Iterator[Problem]:
        now = self._context.now
        if self._slow_reader is not None and now - self._slow_reader[0] <= _LATELY_S:
            at, client = self._slow_reader
            what = f"A client, {client}, does not read what it asked for: its stream was ended {now - at:.0f} s ago."
            do = (
                "Have its program read while it is spoken to; the others were not held up. [limits] "
                "send_buffer_mib bounds it."
            )
            yield Problem("slow_reader", "note", what, do)
        if self.asleep:
            what = (
                "No worker is loaded, because nobody needed one for long ([workers] idle_unload_s); the "
                "next job waits for it."
            )
            yield Problem("asleep", "note", what, "Set [workers] min to 1 if that wait is too long.")
        if self.restart_needed:
            keys = ", ".join(self.restart_needed)
            what = f"These keys of the configuration have new values that wait for a restart: {keys}."
            do = "glmttsctl stop, and start it again: durable jobs go on by themselves."
            yield Problem("restart_needed", "note", what, do)
        if quarantined := self._retries.quarantined_count():
            texts = "1 text is" if quarantined == 1 else f"{quarantined} texts are"
            what = f"{texts} refused, because workers died of what was to be spoken."
            yield Problem(
                "quarantine", "note", what, "glmttsctl quarantine list shows whose, and quarantine clear lets them in."
            )
        if errors := facts.get("internal_errors"):
            what = f"The daemon met {errors} {'error' if errors == 1 else 'errors'} of its own, and went on."
            yield Problem(
                "internal_errors", "note", what, "Please report the tracebacks: glmttsctl logs --level error."
            )
        if dropped := facts.get("log_lines_dropped"):
            what = f"{dropped} lines of the log were lost, because whoever reads it is too slow."
            yield Problem(
                "log_lost", "note", what, "See what reads the daemon's stderr; log less (glmttsctl log-level warning)."
            )


_ALERTS = "docs/alerts.md says what each alert means, and what to do."
_ON_CPU = 'The workers speak on the CPU ([workers] gpus = "none"), and take longer for speech than it lasts.'
_ON_CPU_DO = 'Set [workers] gpus = "all" and restart; glmttsctl doctor says whether the GPU can be used.'


def _death_of(worker: Worker) -> Death | None:
    """What its process dies of, or its last one has."""
    return worker.doom if worker.state is WorkerState.FAILED else worker.last_death


def _last_death(workers: list[Worker]) -> Worker | None:
    """The worker that died last."""
    died = [(death.at, worker.name, worker) for worker in workers if (death := _death_of(worker))]
    return max(died)[2] if died else None


def _death(worker: Worker | None) -> str:
    death = worker and _death_of(worker)
    return f"{death.detail} ({death.cause})" if death else "the reason is in the log"


def _why(cause: Cause) -> str:
    return "grew with every job" if cause is Cause.LEAK else "was due"


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."
