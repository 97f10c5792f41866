"""Inputs of the core, a type for each thing that can happen to the daemon."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import force_setattr

from glmtts.protocol.audio_formats import AudioFormat
from glmtts.protocol.control import ControlRequest
from glmtts.protocol.events import Done, Error
from glmtts.protocol.requests import ClientRequest, JobState, Synthesize
from glmtts.protocol.worker import WorkerMessage

from .settings import Settings


class Client(Struct, frozen=True):
    """Who sent a request: ``owner`` as the kernel or a CURVE key proves it (``uid:1000``), and ``user`` in words.

    The ``user`` of a client by TCP has a colon in it, as no user of a machine has. ``operator``: root, or the user that
    the daemon runs as. ``on_behalf_of``: the customer that the owner, a gateway, speaks for. Limits and shares go by
    ``key`` (``uid:7/carol`` for a customer).
    """

    owner: str
    user: str
    operator: bool = False
    on_behalf_of: str = ""
    key: str = ""

    def __post_init__(self) -> None:
        key = f"{self.owner}/{self.on_behalf_of}" if self.on_behalf_of else self.owner
        force_setattr(self, "key", key)

    def may_see(self, client: Client) -> bool:
        """Whether it may see and cancel a client's jobs: its own, of all its customers unless it acts for one."""
        return self.owner == client.owner and self.on_behalf_of in ("", client.on_behalf_of)

    @classmethod
    def of(cls, key: str, user: str) -> Client:
        """The client with this key."""
        owner, _, on_behalf_of = key.partition("/")
        return cls(owner, user, on_behalf_of=on_behalf_of)


class ReplyTo(Struct, frozen=True):
    """Where answers go: a connection, and the frames that a REQ socket wants mirrored (empty for a DEALER)."""

    connection: int
    envelope: tuple[bytes, ...] = ()


class Requested(Struct):
    """A valid request came on the requests socket."""

    client: Client
    to: ReplyTo
    request: ClientRequest
    body: bytes | memoryview | None = None


class Controlled(Struct):
    """A valid operation came on the control socket. ``facts`` is what the shell adds to ``status``,
    and to ``limits``."""

    to: ReplyTo
    request: ControlRequest
    body: bytes | memoryview | None = None
    facts: dict[str, Any] = {}


class ConnectionClosed(Struct):
    """A client's connection has ended."""

    connection: int


class ConnectionOverrun(Struct):
    """The audio of ``job`` can't be sent: its client does not read, and the buffer for it is full."""

    connection: int
    job: str


class Spawned(Struct):
    """The process that a Spawn asked for runs."""

    incarnation: int
    pid: int


class SpawnFailed(Struct):
    """The process that a Spawn asked for could not be started."""

    incarnation: int
    reason: str


class WorkerSaid(Struct):
    """A worker process sent a message."""

    incarnation: int
    message: WorkerMessage
    body: bytes | memoryview | None = None


class WorkerGarbled(Struct):
    """A worker process sent something that is no message."""

    incarnation: int
    what: str


class ProcessEnded(Struct):
    """A worker process is gone and reaped; ``returncode`` as in subprocess: negative for a signal.

    ``last_words`` is the last line that it wrote to its stderr, the best hint at why it could not start.
    ``oom_killed``: the kernel killed it because the machine, or its control group, had no memory left. ``stage`` and
    ``jobs``: the last note in its flight recorder: the work that it had begun, and the jobs in it.
    """

    incarnation: int
    returncode: int
    last_words: str = ""
    oom_killed: bool = False
    stage: str = ""
    jobs: tuple[str, ...] = ()


class RecorderRead(Struct):
    """The flight recorder of a process that has failed and may still be there; as in ProcessEnded."""

    incarnation: int
    stage: str = ""
    jobs: tuple[str, ...] = ()


class Xids(Struct, frozen=True):
    """Errors that a GPU has reported since its first sample: those that programs bring about, and all others.

    ``last``, ``last_of_gpu``: the number of the newest of all, and of those others; 0: none.
    """

    of_programs: int = 0
    of_gpu: int = 0
    last: int = 0
    last_of_gpu: int = 0


class GpuReading(Struct, frozen=True, kw_only=True):
    """One GPU, or one MIG instance, as NVML shows it. Sizes in bytes, None where NVML does not say.

    ``index`` is its number in ``[workers] gpus``: GPUs in NVML's order (by PCI address), and where MIG is on, each
    instance instead of its GPU. ``uuid`` is what CUDA_VISIBLE_DEVICES takes. ``processes`` has the memory of every
    process that NVML lists, by pid as this process sees it; None where NVML says nothing, or the zero that it says in
    containers instead.
    """

    index: int
    uuid: str
    name: str = ""
    state: Literal["ok", "failing", "lost"] = "ok"
    #: NVML's words, where the state is not ok.
    detail: str = ""
    total: int | None = None
    used: int | None = None
    free: int | None = None
    #: Percent.
    utilization: int | None = None
    #: Degrees Celsius.
    temperature: int | None = None
    mig: bool = False
    processes: dict[int, int | None] = {}
    xids: Xids = Xids()


class ProcessReading(Struct, frozen=True, kw_only=True):
    """A worker's process as /proc shows it: ``rss`` in bytes, ``state`` the letter (``D``: can't be killed now).

    ``descendants``: the pids of the processes that it and its children have started.
    """

    incarnation: int
    pid: int
    rss: int | None = None
    state: str = ""
    descendants: tuple[int, ...] = ()


class NvmlReading(Struct, frozen=True, kw_only=True):
    """How NVML itself does. ``absent``: there is no driver here; ``blocked``: a call has not returned for long."""

    state: Literal["ok", "absent", "failing", "blocked"] = "absent"
    detail: str = ""
    driver: str = ""
    version: str = ""


class Sampled(Struct, kw_only=True):
    """A sample of GPUs, worker processes and the host. ``at`` is when it began, on the core's clock.

    Where NVML is not ok, ``gpus`` has the last reading of each GPU, with its state.
    """

    at: float
    gpus: list[GpuReading] = []
    processes: list[ProcessReading] = []
    nvml: NvmlReading = NvmlReading()
    #: Bytes; of the control group that the daemon runs in, if that has less than the machine.
    host_total: int | None = None
    host_available: int | None = None


class OutputsMeasured(Struct):
    """What the output files of each client take, in bytes, and what is free above the reserve; None: unknown."""

    by_client: dict[str, int]
    free: int | None


class ConnectionsCrowded(Struct):
    """Connections had to end lately because too many were open, and whose; ``""``: not any more."""

    problem: str


class MetricsServed(Struct):
    """The metrics can be fetched over HTTP (``problem`` is ``""``), or they can't, and why."""

    problem: str


class StopAsked(Struct):
    """SIGTERM or SIGINT came."""

    signal: str


class SettingsRead(Struct):
    """The configuration was read again: ``settings``, or None and what is wrong. ``to`` waits for the answer.

    ``authorised_keys``: the file of the keys that may connect by TCP now, ``""`` where none was read.
    """

    settings: Settings | None
    problems: list[str]
    to: ReplyTo | None = None
    id: str = ""
    authorised_keys: str = ""


class VoiceStored(Struct):
    """A voice was added, removed, or could not be: ``error`` is (code, message). ``to`` waits for the answer.

    ``owner`` is that of the StoreVoice.
    """

    to: ReplyTo
    id: str
    name: str
    voice: StoredVoice | None = None
    error: tuple[str, str] | None = None
    owner: str = ""


class StoredVoice(Struct, frozen=True):
    """A registered voice: ``path`` is the file of its recording, ``text`` the words in it.

    ``owner``: the key of the client whose own it is; empty for a voice for all. ``added``: in seconds since 1970.
    """

    name: str
    path: str
    text: str
    language: str = ""
    description: str = ""
    seconds: float = 0.0
    owner: str = ""
    bytes: int = 0
    added: float = 0.0


class JournalRow(Struct, kw_only=True):
    """A durable job as the journal keeps it. Its times are spans, as of when the row is handed over.

    ``client`` and ``user`` are those of :class:`Client`. ``attempts`` counts those that were begun, one that the end of
    a daemon broke off included. ``event`` is the last event of a job that has ended, ``result`` the path of the file
    with its audio, or ``""``; both are empty while it lives.
    """

    job: str
    client: str
    user: str
    request: Synthesize
    content: str
    format: AudioFormat
    sample_rate: int | None
    #: Seconds since 1970, to be shown.
    created: float
    age_s: float = 0.0
    deadline_in_s: float | None = None
    attempts: int = 0
    recording: bytes | memoryview | None = None
    state: JobState = "waiting"
    event: Done | Error | None = None
    result: str = ""
    #: Characters; of an ended job the request has the beginning of its text alone.
    text_length: int = 0


class Spoken(Struct):
    """An amount of speech."""

    jobs: int = 0
    characters: int = 0
    audio_s: float = 0.0

    def add(self, other: Spoken) -> None:
        """Add an amount to this one."""
        self.jobs += other.jobs
        self.characters += other.characters
        self.audio_s += other.audio_s


class UsageRow(Struct, frozen=True):
    """What one client had spoken on one day, which counts from 1970-01-01. ``client`` is its key.

    The customers of ``uid:7`` that have no row of their own are ``uid:7/`` together, and clients that have none ``/``.
    """

    client: str
    day: int
    spoken: Spoken


class JournalChanged(Struct):
    """The journal can be used (``problem`` is ``""``), or it can't, and why: also the first word about it.

    ``rows`` are the jobs of an earlier daemon that have not ended, the oldest first; ``usage`` is what earlier daemons
    have counted. Each is handed over once.
    """

    problem: str
    rows: list[JournalRow] = []
    usage: list[UsageRow] = []


class JournalAdded(Struct):
    """The row of a JournalAdd is on disk; or it can't be (``problem``), or nothing was added because that client has
    another job with the same idempotency key: ``known`` is its (id, content).
    """

    job: str
    problem: str = ""
    known: tuple[str, str] | None = None


class JournalEnded(Struct):
    """The end of a JournalEnd is on disk, or can't be yet (``problem``): then the journal keeps trying."""

    job: str
    problem: str = ""


class JournalFound(Struct):
    """What a JournalFind found: None if the job is not there, or not that client's; ``problem``: it can't be read."""

    to: ReplyTo
    request: ClientRequest
    client: str | None
    row: JournalRow | None = None
    problem: str = ""


class JournalRemoved(Struct):
    """A table of the journal was full (``journal`` or ``durable_results``, see shares.TABLES): ``count`` rows of the
    client that held most were removed before their time, ``shared`` with other clients.
    """

    table: str
    client: str
    count: int
    shared: bool


class StoredLost(Struct):
    """The file of a SendStored could not be read; ``job`` is empty for the recording of a voice."""

    to: ReplyTo
    id: str
    job: str
    problem: str


class SurroundingsSeen(Struct):
    """What the daemon needs and is gone or can't be used now: a message for each, by name.

    ``out_of_reach``: no new client can find the daemon. ``taken``: another daemon holds its runtime folder.
    """

    problems: dict[str, str]
    out_of_reach: bool = False
    taken: bool = False


class EffectFailed(Struct):
    """``effect`` (one of effects.Effect) raised an exception in the shell, and was not carried out."""

    effect: object
    problem: str


class StoodStill(Struct):
    """The daemon did not run for ``seconds``, of which ``now`` says nothing: suspended, stopped, frozen, or starved."""

    seconds: float


class TimePassed(Struct):
    """A timer may be due."""


Input = (
    Requested | Controlled | ConnectionClosed | ConnectionOverrun | Spawned | SpawnFailed | WorkerSaid
    | WorkerGarbled | ProcessEnded | RecorderRead | Sampled | MetricsServed | StopAsked | SettingsRead | VoiceStored
    | JournalChanged | JournalAdded | JournalEnded | JournalFound | JournalRemoved | StoredLost | SurroundingsSeen
    | OutputsMeasured | ConnectionsCrowded | EffectFailed | StoodStill | TimePassed
)  # fmt: skip
