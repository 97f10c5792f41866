"""The core by itself, with one scripted worker: no process, no socket, no clock but the bench's."""

from __future__ import annotations

from glmtts.daemon.core import effects, inputs
from glmtts.daemon.core.machine import Machine
from glmtts.daemon.core.settings import EngineSettings, LimitsSettings, QueueSettings, Settings, WorkersSettings
from glmtts.daemon.core.state import Installation
from glmtts.protocol import events, requests
from glmtts.protocol import worker as wire

_MEMORY = wire.Memory(rss=100 << 20)
#: Room for whatever a measurement puts into the queue.
ROOM = 1_000_000


def settings(places: int = ROOM) -> Settings:
    """One worker, no rate, and ``places`` in the queue that one client may have all of."""
    return Settings(
        engine=EngineSettings(name="fault"),
        workers=WorkersSettings(gpus="none", max=1),
        queue=QueueSettings(max_waiting=places, max_waiting_batch=places, max_per_client=ROOM, max_share=1.0),
        limits=LimitsSettings(rate=""),
    )


class CoreWorld:
    """A machine whose only worker is ready."""

    def __init__(self, places: int = ROOM) -> None:
        self.now = 100.0
        here = Installation(boot="b", version="1")
        self.machine = Machine(settings(places), here, now=self.now, wall=1.7e9 + self.now, seed=1)
        self.machine.open()
        self.running = ""
        self._spawn = 1
        self._ids = 0
        self.step(inputs.Spawned(self._spawn, 4_000))
        ready = wire.Ready(
            engine="fault",
            engine_version="1",
            sample_rates=[24_000],
            voices=[events.Voice(name="tone")],
            default_voice="tone",
            clones_voices=True,
            slots=1,
            load_s=0.1,
            warmup_s=0.1,
            memory=_MEMORY,
        )
        self.step(inputs.WorkerSaid(self._spawn, ready))

    def step(self, event: inputs.Input) -> list[effects.Effect]:
        """One step; the worker takes the job that it is given."""
        todo = self.machine.step(event, self.now, 1.7e9 + self.now)
        for effect in todo:
            if isinstance(effect, effects.Tell) and isinstance(effect.message, wire.SpeakJob):
                self.running = effect.message.job
        return todo

    def request(self, client: str, text: str, deadline_s: float = 0.0, *, final: bool = False) -> inputs.Requested:
        """A request for speech."""
        self._ids += 1
        request = requests.Synthesize(id=f"{self._ids:08d}", v=1, text=text, events="final" if final else "all")
        if deadline_s:
            request.deadline_s = deadline_s
        return inputs.Requested(inputs.Client(client, client), inputs.ReplyTo(1), request)

    def finished(self, seconds: float) -> inputs.WorkerSaid:
        """The worker is through with the job that it has, which took so long."""
        done = wire.Finished(
            job=self.running,
            sample_rate=24_000,
            audio_s=4 * seconds,
            synthesis_s=seconds,
            first_audio_s=seconds / 2,
            voice="tone",
            sha256="0" * 64,
            chunks=0,
            bytes=4,
            path=None,
            memory=_MEMORY,
        )
        return inputs.WorkerSaid(self._spawn, done, b"RIFF")
