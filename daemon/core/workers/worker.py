"""A worker, its states, and the end of its processes.

::

    starting -> ready <-> busy
        |         |        |
        |         +--------+--> draining -> stopping -> (gone, stopped, waiting, starting)
        `---------+--------`--> failed -> backoff -> (waiting, starting)

    waiting -> starting       waiting: for memory of its GPU to be seen free, or for the breaker

A worker is a place with a name; processes come and go in it, each called by the number of its spawn. What a process
says after its worker has failed is not heard any more.
"""

from __future__ import annotations

import enum
import signal
from collections.abc import Sequence

from msgspec import Struct, field

from glmtts.protocol.worker import Memory, Ready

from ..exit_causes import Cause
from ..jobs.job import IllegalTransition
from .gpu_attribution import Share
from .memory_watch import MemoryWatch

#: Of a process that was not sampled yet.
NOBODY_KNOWS = Share(vram=None, trust="none")


class WorkerState(enum.StrEnum):
    STARTING = "starting"
    READY = "ready"
    BUSY = "busy"
    DRAINING = "draining"
    STOPPING = "stopping"
    FAILED = "failed"
    BACKOFF = "backoff"
    WAITING = "waiting"
    STOPPED = "stopped"


_S = WorkerState
TRANSITIONS: dict[WorkerState, frozenset[WorkerState]] = {
    _S.STARTING: frozenset({_S.READY, _S.STOPPING, _S.FAILED}),
    _S.READY: frozenset({_S.BUSY, _S.DRAINING, _S.STOPPING, _S.FAILED}),
    _S.BUSY: frozenset({_S.READY, _S.DRAINING, _S.STOPPING, _S.FAILED}),
    _S.DRAINING: frozenset({_S.STOPPING, _S.FAILED}),
    _S.STOPPING: frozenset({_S.STARTING, _S.WAITING, _S.STOPPED}),
    _S.FAILED: frozenset({_S.BACKOFF, _S.STOPPED}),
    _S.BACKOFF: frozenset({_S.STARTING, _S.WAITING, _S.STOPPED}),
    _S.WAITING: frozenset({_S.STARTING, _S.STOPPED}),
    _S.STOPPED: frozenset({_S.STARTING, _S.WAITING}),
}

#: States in which the worker holds a process.
WITH_PROCESS = frozenset({_S.STARTING, _S.READY, _S.BUSY, _S.DRAINING, _S.STOPPING, _S.FAILED})
#: States in which it speaks, or will soon by itself: nobody else need be started in its place.
COMING = frozenset({_S.STARTING, _S.STOPPING, _S.FAILED, _S.BACKOFF, _S.WAITING, _S.STOPPED})
SERVING = frozenset({_S.READY, _S.BUSY})


class Death(Struct, frozen=True):
    """The end of a process: its cause, the cause in words, and when."""

    cause: Cause
    detail: str
    at: float


class Worker(Struct, kw_only=True):
    """A place for one process at a time."""

    name: str
    gpu: int | None
    state: WorkerState = WorkerState.STOPPED
    incarnation: int = 0
    pid: int | None = None
    ready: Ready | None = None
    #: Ids of the jobs that the process has, in the order in which it takes them on; those included that were cancelled
    #: and are not given back yet. Of those that are not put aside the first ``slots`` are begun, any others lie ready.
    jobs: list[str] = []
    #: Those of them that are put aside, the last one last, and the one that is to be at its next border.
    aside: list[str] = []
    to_suspend: str = ""
    #: When each begun job was last seen to move, and how far it was then.
    moved: dict[str, tuple[float, int]] = {}
    #: Why the process is about to end, when we know before it does.
    doom: Death | None = None
    #: Why it is to be replaced, from when that is decided until it is drained for it.
    leaving: Death | None = None
    #: The memory will not last until a replacement is loaded: it goes at once.
    leaves_at_once: bool = False
    #: The worker in whose place this one is loaded.
    replaces: str | None = None
    #: Its process is being replaced without a spare: the others wait for their turn.
    renewing: bool = False
    #: It is not started again.
    retiring: bool = False
    #: By the settings of which generation its process was started (Pool.generation).
    generation: int = 0
    #: Its process does not end though it was killed: it can't be counted on, and another may stand in.
    stuck: bool = False
    #: Why it waits.
    reason: str = ""
    waits_since: float = 0.0
    spawned_at: float = 0.0
    ready_at: float = 0.0
    idle_since: float = 0.0
    kills: int = 0
    trimmed: bool = False
    #: Jobs that this process was given, and those that it has spoken.
    jobs_taken: int = 0
    jobs_done: int = 0
    #: The same of all processes in this place.
    jobs_done_in_all: int = 0
    restarts: int = 0
    #: Faults in a row, each of a process that had done no job and was ready for less than ``backoff_max_s``.
    faults: int = 0
    last_death: Death | None = None
    memory: Memory | None = None
    share: Share = NOBODY_KNOWS
    #: The letter of /proc: ``D`` is a process that nothing can end.
    process_state: str = ""
    watch: MemoryWatch = field(default_factory=MemoryWatch)
    #: Where the GPU figures come from that the watch has seen.
    watched_trust: str = ""
    #: When the watch was last given a floor, and what the process had said of itself then.
    floor_at: float = 0.0
    floor_memory: Memory | None = None
    #: Jobs done at the last sample of its GPU memory that was a floor, and what torch had reserved at the last of all.
    sampled_jobs: int = -1
    sampled_reserved: int | None = None
    #: The last samples of a worker that is never idle: the least of them is nearest to its floor.
    busy_vram: list[int] = []

    def enter(self, state: WorkerState) -> None:
        """Change the state. Raises IllegalTransition, and changes nothing, where the table does not allow it."""
        if state not in TRANSITIONS[self.state]:
            raise IllegalTransition(f"worker {self.name}: {self.state} -> {state}")
        self.state = state

    @property
    def slots(self) -> int:
        """How many jobs it works on at once."""
        return self.ready.slots if self.ready else 1

    @property
    def at_hand(self) -> Sequence[str]:
        """Its jobs but for those that are put aside."""
        return [id for id in self.jobs if id not in self.aside] if self.aside else self.jobs

    @property
    def begun(self) -> Sequence[str]:
        """The jobs that it works on."""
        return self.at_hand[: self.slots]

    @property
    def open(self) -> bool:
        """Whether it has put a job aside, and has a slot to go on with that or with another."""
        return bool(self.aside) and len(self.jobs) - len(self.aside) < self.slots

    @property
    def fresh(self) -> bool:
        """Whether it can take a job and has had none."""
        return self.state is WorkerState.READY and not self.jobs_taken

    @property
    def vram_by_torch(self) -> int | None:
        """What the process holds on its GPU now, from the last sample and what torch has reserved since."""
        reserved = self.memory.torch_reserved if self.memory else None
        if self.share.vram is None or reserved is None or self.sampled_reserved is None or not self.watched_trust:
            return None
        return max(reserved, self.share.vram + reserved - self.sampled_reserved)

    @property
    def has_process(self) -> bool:
        return self.state in WITH_PROCESS

    @property
    def serving(self) -> bool:
        """Whether it can speak, now or after its present job."""
        return self.state in SERVING

    def give_up_jobs(self) -> list[str]:
        """Nothing comes of its jobs any more; returns them."""
        jobs, self.jobs = self.jobs, []
        self.moved, self.aside, self.to_suspend = {}, [], ""
        return jobs

    def clear_process(self) -> None:
        """Nothing of its last process holds for the next."""
        self.pid = self.ready = self.doom = self.leaving = self.memory = None
        self.leaves_at_once = self.trimmed = self.stuck = False
        self.give_up_jobs()
        self.busy_vram = []
        self.kills = self.jobs_taken = self.jobs_done = 0
        self.sampled_jobs = -1
        self.sampled_reserved = self.floor_memory = None
        self.floor_at = 0.0
        self.reason = self.process_state = self.watched_trust = ""
        self.share = NOBODY_KNOWS
        self.watch = MemoryWatch()


def describe_exit(returncode: int) -> str:
    """How a process ended, in words: ``killed by SIGSEGV``, ``exited with status 3``."""
    if returncode >= 0:
        return f"exited with status {returncode}"
    try:
        return f"killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"killed by signal {-returncode}"
