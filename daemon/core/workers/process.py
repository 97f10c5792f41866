"""One process of a worker, from its start until it is reaped, and the reason for its end."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct, field

from glmtts.protocol.system_words import exit_in_words
from glmtts.protocol.worker import Memory, Ready

from ..exit_causes import CAUSE_OF_STATUS, Cause
from .gpu_attribution import UNKNOWN, Share
from .memory_watch import IdleSample, MemoryWatch


class ExitReason(Struct, frozen=True):
    """Why a process ended or is to end: the cause, the details in words, and the time of the decision."""

    cause: Cause
    detail: str
    at: float


class Process(Struct, kw_only=True):
    """Everything that is true of one process alone: a new start has a new one, so nothing outlives the process.

    A place without a process has a blank one. Times are the core's clock, in seconds.
    """

    incarnation: int = 0
    #: The generation of the settings that it was started with (Pool.generation).
    generation: int = 0
    started_at: float = 0.0
    pid: int | None = None
    #: Its Ready message, once the model is loaded.
    ready: Ready | None = None
    ready_at: float = 0.0
    idle_since: float = 0.0
    #: Ids of its jobs, in the order in which it takes them on; a cancelled one stays until the process gives it back.
    #: Of those that are not suspended the first ``slots`` are begun, the others lie ready.
    jobs: list[str] = []
    #: Those of them that are suspended, the last one last; and those that were asked to be.
    suspended: list[str] = []
    #: Those of the suspended that can't resume, because they wait for their text.
    without_text: list[str] = []
    to_suspend: set[str] = set()
    #: Those beside which it works on no other.
    alone: list[str] = []
    #: Of a process that the core has failed: the jobs that may be to blame; one, where it is known.
    candidates: Sequence[str] | None = None
    #: When each begun job last made progress, and how many units were done then. While all are suspended: of these.
    moved: dict[str, tuple[float, int]] = {}
    jobs_taken: int = 0
    jobs_done: int = 0
    #: Why it ends, once it was asked to end or has failed.
    exit_reason: ExitReason | None = None
    #: Why another process is to take its place, and whether it must go before that one is loaded.
    replace_reason: ExitReason | None = None
    replace_at_once: bool = False
    #: SIGKILLs sent; and why it is no longer counted on, once several have not ended it.
    kills: int = 0
    stuck: str = ""
    #: The letter of /proc: ``D`` is a process that nothing can end.
    process_state: str = ""
    #: The pids of processes that it has started, as the last sample shows them.
    descendants: tuple[int, ...] = ()
    #: The last report of its memory, and the last one without working memory; its part of the GPU's, and torch's
    #: reserve when that was sampled.
    memory: Memory | None = None
    floor: Memory | None = None
    share: Share = UNKNOWN
    sampled_reserved: int | None = None
    #: Whether it has trimmed its memory since its last job.
    trimmed: bool = False
    watch: MemoryWatch = field(default_factory=MemoryWatch)
    #: The source of the GPU figures in ``watch``: ``process``, ``device``, or ``""`` for torch.
    watched_trust: str = ""
    #: The last idle sample given to ``watch`` without a new reading of the GPU, and when.
    idle_at: float = 0.0
    idle_memory: Memory | None = None
    #: The number of jobs done when ``watch`` last got a reading of the GPU; and, while busy, the last readings.
    sampled_jobs: int = -1
    busy_vram: list[int] = []

    # --- jobs

    @property
    def slots(self) -> int:
        """The number of jobs that it works on at once; one, beside a job that runs alone."""
        return 1 if self.ready is None or (self.alone and self.runs_alone) else self.ready.slots

    @property
    def runs_alone(self) -> bool:
        """Whether it works on a job that runs alone."""
        return any(job not in self.suspended for job in self.alone)

    @property
    def shares(self) -> bool:
        """Whether its engine works on several jobs at once."""
        return self.ready is not None and self.ready.slots > 1

    @property
    def at_hand(self) -> Sequence[str]:
        """Its jobs without the suspended ones."""
        return [id for id in self.jobs if id not in self.suspended] if self.suspended else self.jobs

    @property
    def begun(self) -> Sequence[str]:
        """The jobs that it works on."""
        return self.at_hand[: self.slots]

    @property
    def may_resume(self) -> bool:
        """Whether it has a suspended job that could resume, and a slot for that job or another."""
        can_resume = len(self.suspended) > len(self.without_text)
        return can_resume and len(self.jobs) - len(self.suspended) < self.slots

    def take(self, job: str, now: float, *, alone: bool = False) -> bool:
        """Add a job; one that runs ``alone`` only with nothing at hand. Returns whether it is begun at once."""
        self.jobs.append(job)
        if alone:
            self.alone.append(job)
        self.jobs_taken += 1
        begins = len(self.jobs) - len(self.suspended) <= self.slots
        if begins:
            self._work_on(job, now)
        return begins

    def begin_ready(self, now: float) -> list[str]:
        """Begin jobs that lie ready, as far as there are slots. Returns all begun jobs."""
        begun = list(self.begun)
        # With no other job, a suspended one resumes at once, or was cancelled and its end is due.
        for job in begun or [job for job in self.suspended if job not in self.without_text]:
            self.moved.setdefault(job, (now, -1))
        return begun

    def suspend(self, job: str, *, without_text: bool = False) -> None:
        """The process has suspended a job; ``without_text``: it can't resume before more of its text comes."""
        self.to_suspend.discard(job)
        self.suspended.append(job)
        self.moved.pop(job, None)
        if without_text:
            self.without_text.append(job)

    def has_text(self, job: str) -> None:
        """A job waits for its text no more: it has come, or the job ends."""
        if job in self.without_text:
            self.without_text.remove(job)

    def resume(self, job: str, now: float) -> None:
        """The process continues a suspended job."""
        self.suspended.remove(job)
        self._work_on(job, now)

    def _work_on(self, job: str, now: float) -> None:
        for other in self.suspended:
            self.moved.pop(other, None)
        self.moved[job] = (now, -1)

    def progressed(self, job: str, now: float, done: int | None = None) -> None:
        """A job has made progress, to ``done`` units; a beat with the same number again is no progress."""
        _, last = self.moved.get(job, (0.0, -1))
        if done is None or done != last:
            self.moved[job] = (now, last if done is None else done)

    def give_back(self, job: str) -> None:
        """A job has ended in the process."""
        self.jobs.remove(job)
        self.moved.pop(job, None)
        self.has_text(job)
        if job in self.suspended:
            self.suspended.remove(job)
        self.to_suspend.discard(job)
        if job in self.alone:
            self.alone.remove(job)

    def give_up_jobs(self) -> list[str]:
        """Drop all jobs, because the process has failed or ended. Returns them."""
        jobs, self.jobs = self.jobs, []
        self.moved, self.suspended, self.without_text, self.alone, self.to_suspend = {}, [], [], [], set()
        return jobs

    # --- memory

    def remember(self, memory: Memory | None) -> None:
        """The process has reported its memory after a job or a step.

        The figures are a floor if no job runs, or the engine says that they are without working memory. With one slot
        a process that has a job at hand now has none yet: the report came between two.
        """
        self.memory = memory or self.memory
        if memory is not None and (memory.settled or not self.jobs or not (self.shares or self.suspended)):
            self.floor = memory

    @property
    def vram_by_torch(self) -> int | None:
        """Bytes of its GPU in use now: the last sample, and torch's growth since; None where unknown."""
        reserved = self.memory.torch_reserved if self.memory else None
        if self.share.vram is None or reserved is None or self.sampled_reserved is None or not self.watched_trust:
            return None
        return max(reserved, self.share.vram + reserved - self.sampled_reserved)

    def idle_sample(self, memory: Memory, vram: int | None) -> IdleSample:
        """This memory as a sample for ``watch``."""
        return IdleSample(
            jobs=self.jobs_done,
            rss=memory.rss,
            vram=vram,
            torch_allocated=memory.torch_allocated,
            torch_reserved=memory.torch_reserved,
        )

    # --- its end

    def unexpected_exit(self, returncode: int, last_words: str, *, oom_killed: bool, now: float) -> ExitReason:
        """The reason for an end that was not asked for.

        Args:
            returncode: As in subprocess: negative for a signal.
            last_words: The last line of its stderr, the best hint at why it could not start.
            oom_killed: Whether the kernel killed it for want of memory.
        """
        detail = exit_in_words(returncode)
        if oom_killed:
            detail = f"{detail} by the kernel, because the host ran out of memory"
            return ExitReason(Cause.HOST_OOM, detail, now)
        cause = CAUSE_OF_STATUS.get(returncode, Cause.CRASHED if self.ready else Cause.START_FAILED)
        if self.ready is None and last_words:
            detail = f"{detail} while it started: {last_words}"
        return ExitReason(cause, detail, now)
