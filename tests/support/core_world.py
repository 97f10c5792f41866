"""A machine with a clock of its own, and workers that do what the test says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any, Literal, TypeAlias, TypeVar

from msgspec import UNSET
from msgspec.structs import replace

from glmtts.daemon.core import effects, inputs
from glmtts.daemon.core.jobs.job import Account, Job, Subscriber
from glmtts.daemon.core.machine import Machine
from glmtts.daemon.core.settings import EngineSettings, LimitsSettings, Section, Settings, WorkersSettings
from glmtts.daemon.core.state import Installation
from glmtts.daemon.core.workers.pool import Pool
from glmtts.daemon.core.workers.process import ExitReason
from glmtts.daemon.core.workers.worker import Worker
from glmtts.protocol import events, requests
from glmtts.protocol import worker as wire

T = TypeVar("T")
MEMORY = wire.Memory(rss=100 << 20)
ALICE, BOB = inputs.Client("uid:1001", "alice"), inputs.Client("uid:1002", "bob")
OPERATOR = inputs.ReplyTo(1 << 40)


def settings(**sections: dict[str, Any]) -> Settings:
    """One worker of the fault engine and no rate limit, but for what the test sets: ``queue={"max_waiting": 2}``."""
    base = Settings(
        engine=EngineSettings(name="fault"),
        workers=WorkersSettings(gpus="none", max=1),
        limits=LimitsSettings(rate=""),
    )
    for section, values in sections.items():
        old = getattr(base, section)
        for key, value in values.items():
            within = isinstance(value, dict) and isinstance(getattr(old, key), Section)
            changed = replace(getattr(old, key), **value) if within else value
            old = replace(old, **{key: changed})
        base = replace(base, **{section: old})
    return base


def answered(effect: effects.Send | effects.SendStored) -> str:
    """The id of the request that an event answers."""
    return (effect.id if isinstance(effect, effects.Send) else "") or effect.event.id


class World:
    """Drives a machine step by step; ``done`` has every effect since the last :meth:`forget`.

    ``journal`` is how its journal does: it ``works`` at once, ``holds`` its answers until :meth:`write`, or ``fails``
    with a problem; ``none`` is there before it has said its first word. What it has is in ``rows`` and ``ends``.
    """

    def __init__(
        self,
        count: int = 1,
        *,
        journal: Literal["works", "holds", "fails", "none"] = "works",
        results_folder: str = "/results",
        managed: bool = False,
        **sections: Any,
    ) -> None:
        self.now = 100.0
        #: The wall clock less the core's, which a test may set.
        self.ahead_s = 1.7e9 - self.now
        sections["workers"] = {"max": count} | sections.get("workers", {})
        self.machine = Machine(
            settings(**sections),
            Installation(boot="b", version="1", outputs_folder="/out", results_folder=results_folder, managed=managed),
            now=self.now,
            wall=self.now + self.ahead_s,
            seed=1,
        )
        self.done: list[effects.Effect] = self.machine.open()
        self.journal = journal
        self.rows: dict[str, inputs.JournalRow] = {}
        self.ends: dict[str, effects.JournalEnd] = {}
        self._unwritten: list[effects.JournalAdd | effects.JournalEnd | effects.JournalFind] = []
        self._ids = 0
        #: Whether bugs of the core are expected; else they fail the test.
        self.may_fail = False
        if journal != "none":
            self.step(inputs.JournalChanged(""))

    # --- what happens

    def step(self, event: inputs.Input) -> list[effects.Effect]:
        todo = self.machine.step(event, self.now, self.now + self.ahead_s)
        self.done += todo
        for effect in todo:
            if isinstance(effect, effects.InternalError) and not self.may_fail:
                raise effect.error
            if isinstance(effect, effects.JournalAdd | effects.JournalEnd | effects.JournalFind):
                self._unwritten.append(effect)
        if self.journal != "holds":
            self.write()
        return todo

    def write(self) -> None:
        """The journal answers whatever it was asked, in its order."""
        while self._unwritten:
            effect = self._unwritten.pop(0)
            problem = "the disk is full" if self.journal == "fails" else ""
            answer: inputs.Input
            if isinstance(effect, effects.JournalAdd):
                answer = self._added(effect.row, problem)
            elif isinstance(effect, effects.JournalEnd):
                answer = inputs.JournalEnded(effect.job, problem)
                if not problem:
                    self.ends[effect.job] = effect
            else:
                answer = self._found(effect)
            self.step(answer)

    def _found(self, find: effects.JournalFind) -> inputs.JournalFound:
        asked = find.request
        assert isinstance(asked, requests.Wait | requests.Cancel | requests.GetJob)
        row, end = self.rows.get(asked.job), self.ends.get(asked.job)
        if row is not None and find.client not in (None, row.client, row.client.partition("/")[0]):
            row = None
        if row is not None and end is not None:
            row = replace(row, state=end.state, event=end.event, result=end.result)
        return inputs.JournalFound(find.to, asked, find.client, row)

    def _added(self, row: inputs.JournalRow, problem: str) -> inputs.JournalAdded:
        if problem:
            return inputs.JournalAdded(row.job, problem=problem)
        for other in self.rows.values():
            if row.request.key is not UNSET and (other.client, other.request.key) == (row.client, row.request.key):
                return inputs.JournalAdded(row.job, known=(other.job, other.content))
        self.rows[row.job] = row
        return inputs.JournalAdded(row.job)

    def pass_time(self, seconds: float) -> None:
        """Let time pass, with a step wherever a timer is due."""
        until = self.now + seconds
        while (due := self.machine.next_due) is not None and due <= until:
            self.now = max(self.now, due)
            self.step(inputs.TimePassed())
        self.now = until

    def forget(self) -> None:
        self.done = []

    def request(
        self, request: Any = None, *, client: inputs.Client = ALICE, connection: int = 1, body: Any = None, **keys: Any
    ) -> str:
        """A request, for speech unless another is given; returns its id."""
        self._ids += 1
        id = f"r{self._ids}"
        if request is None:
            keys.setdefault("text", "hello")
            request = requests.Synthesize(id=id, v=1, **keys)
        else:
            request = replace(request, id=id)
        envelope = (b"",) if connection < 0 else ()
        self.step(inputs.Requested(client, inputs.ReplyTo(connection, envelope), request, body))
        return id

    def operate(self, operation: type[Any], **keys: Any) -> str:
        self._ids += 1
        id = f"r{self._ids}"
        self.step(inputs.Controlled(OPERATOR, operation(id=id, v=1, **keys)))
        return id

    # --- workers

    def say(self, message: wire.WorkerMessage, body: bytes | None = None, worker: str = "w0") -> None:
        self.step(inputs.WorkerSaid(self.incarnation(worker), message, body))

    def ready(
        self,
        worker: str = "w0",
        slots: int = 1,
        *,
        memory: wire.Memory = MEMORY,
        voices: Sequence[str] = ("tone",),
        speeds: bool = True,
        **keys: Any,
    ) -> None:
        self.step(inputs.Spawned(self.incarnation(worker), self.pid(worker)))
        self.say(
            wire.Ready(
                engine="fault",
                engine_version=keys.pop("engine_version", "1"),
                sample_rates=[24_000],
                voices=[events.Voice(name=name) for name in voices],
                default_voice=voices[0] if voices else "",
                clones_voices=True,
                slots=slots,
                speeds=speeds,
                load_s=0.1,
                warmup_s=0.1,
                memory=memory,
                **keys,
            ),
            worker=worker,
        )

    def come_back(self, worker: str = "w0", slots: int = 1, **keys: Any) -> None:
        """The process of a worker that failed ends, and after its backoff another one is ready."""
        if self.worker(worker).state.value == "failed":
            self.die(-15, worker=worker)
        while self.worker(worker).state.value == "backoff":
            self.pass_time(0.1)
        self.ready(worker, slots, **keys)

    def finish(self, job: str, body: bytes | None = b"RIFF", worker: str = "w0", **keys: Any) -> None:
        message = wire.Finished(
            job=job,
            sample_rate=24_000,
            audio_s=keys.pop("audio_s", 1.0),
            synthesis_s=keys.pop("synthesis_s", 0.5),
            first_audio_s=0.1,
            voice="tone",
            sha256="0" * 64,
            chunks=keys.pop("chunks", 0),
            bytes=keys.pop("bytes", len(body or b"")),
            path=keys.pop("path", None),
            result=keys.pop("result", None),
            problem=keys.pop("problem", ""),
            work_s=keys.pop("work_s", 0.0),
            memory=keys.pop("memory", MEMORY),
        )
        self.say(message, body, worker=worker)

    def audio(self, job: str, seq: int, worker: str = "w0") -> None:
        self.say(wire.AudioChunk(job=job, seq=seq), f"{job}#{seq}".encode(), worker=worker)

    def die(self, returncode: int = -11, worker: str = "w0", last_words: str = "") -> None:
        self.step(inputs.ProcessEnded(self.incarnation(worker), returncode, last_words))

    def sample(self, *gpus: inputs.GpuReading, nvml: str = "ok", host_mib: int | None = 64_000, **keys: Any) -> None:
        """GPUs and processes were looked at, a moment ago."""
        available = None if host_mib is None else host_mib << 20
        reading = inputs.NvmlReading(state=nvml, detail=keys.pop("detail", ""))  # type: ignore[arg-type]
        at = keys.pop("at", self.now)
        self.step(
            inputs.Sampled(at=at, gpus=list(gpus), nvml=reading, host_total=available, host_available=available, **keys)
        )

    def gpu(
        self, index: int = 0, used_mib: int = 0, total_mib: int = 24_000, **processes: int | None
    ) -> inputs.GpuReading:
        """A reading of one GPU; ``w0=4_000`` is what NVML says that the process of this worker holds, in MiB."""
        return inputs.GpuReading(
            index=index,
            uuid=f"GPU-{index}",
            total=total_mib << 20,
            used=used_mib << 20,
            free=(total_mib - used_mib) << 20,
            processes={self.pid(name): size and size << 20 for name, size in processes.items()},
        )

    # --- what is there

    @property
    def live(self) -> dict[str, Job]:
        """The jobs that have not ended."""
        return self.machine.state.job_table.live

    @property
    def pool(self) -> Pool:
        return self.machine.state.pool

    def pid(self, worker: str = "w0") -> int:
        return 3_999 + self.incarnation(worker)

    def incarnation(self, worker: str = "w0") -> int:
        return self.worker(worker).incarnation

    def worker(self, name: str = "w0") -> Worker:
        return self.pool.workers[name]

    def death(self, name: str = "w0") -> ExitReason:
        """How the worker's last process ended."""
        death = self.worker(name).last_exit
        assert death is not None
        return death

    def effects(self, kind: type[T]) -> list[T]:
        return [effect for effect in self.done if isinstance(effect, kind)]

    def told(self, id: str) -> list[Any]:
        """The events for a request since the last forget()."""
        sent = (effects.Send, effects.SendStored)
        return [e.event for e in self.done if isinstance(e, sent) and answered(e) == id]

    def names(self, id: str) -> list[str]:
        return [type(event).__name__.lower() for event in self.told(id)]

    def last(self, id: str) -> Any:
        return self.told(id)[-1]

    def bodies(self, id: str) -> list[Any]:
        return [e.body for e in self.effects(effects.Send) if answered(e) == id and e.body is not None]

    def messages(self, kind: type[T]) -> list[T]:
        """What workers were told."""
        return [e.message for e in self.effects(effects.Tell) if isinstance(e.message, kind)]

    def started(self) -> list[str]:
        """The texts of jobs in the order in which workers got them."""
        return [message.text for message in self.messages(wire.SpeakJob)]

    def effects_codes(self) -> list[str]:
        """The codes of all errors that were sent."""
        return [e.event.code for e in self.effects(effects.Send) if isinstance(e.event, events.Error)]

    def job(self, id: str) -> str:
        """The job of a request."""
        return next(event.job for event in self.told(id) if isinstance(event, events.Accepted))

    def states(self) -> list[str]:
        return [worker.state.value for worker in self.pool.workers.values()]


_numbers: Iterator[int] = count(1)


def waiting_job(**keys: Any) -> Job:
    """A job that waits; ``keys`` are those of its request, and some of its own."""
    connection = keys.pop("connection", 1)
    client = keys.pop("client", ALICE)
    recording = keys.pop("recording", None)
    account = Account(cost_s=keys.pop("cost_s", 0.0))
    own: dict[str, Any] = {name: keys.pop(name) for name in ("deadline_at", "accepted_at", "attempts") if name in keys}
    keys.setdefault("text", "hello")
    request = requests.Synthesize(id="r", v=1, **keys)
    return Job(
        id=f"b-{next(_numbers)}",
        client=client,
        request=request,
        recording=recording,
        format="wav",
        sample_rate=None,
        streams=request.stream,
        created=0.0,
        account=account,
        **({"accepted_at": 0.0} | own),
        content="c" if request.key is not UNSET else "",
        subscribers=[Subscriber(inputs.ReplyTo(connection), "r", True)],
    )


#: What the fixtures of these names hand out.
MakeWorld: TypeAlias = Callable[..., World]
MakeJob: TypeAlias = Callable[..., Job]
MakeSettings: TypeAlias = Callable[..., Settings]
