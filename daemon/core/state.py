"""The state that the parts of the core share: jobs, workers, GPUs, voices."""

from __future__ import annotations

from msgspec import Struct

from glmtts.protocol.events import Voice

from .alerts import Alerts
from .context import Context
from .inputs import StoredVoice
from .jobs.estimates import Estimator
from .jobs.job_table import JobTable
from .jobs.queue import WaitingQueue
from .jobs.usage import Usage
from .settings import Settings
from .shares import Removals
from .workers.autoscaler import Autoscaler
from .workers.gpus import Gpus
from .workers.pool import Pool
from .workers.recycler import Recycler


class Installation(Struct, frozen=True, kw_only=True):
    """Which daemon this is, and where its files are; an empty path: nowhere."""

    #: Begins the ids of this daemon's jobs.
    boot: str
    version: str
    config_file: str = ""
    state_folder: str = ""
    outputs_folder: str = ""
    #: Where results of durable jobs are kept until they are fetched.
    results_folder: str = ""
    #: Whether a service manager starts the daemon again when it ends with an error.
    managed: bool = False


#: Voices that an error names.
_NAMED = 12


class State:
    """Jobs and workers. Each part of the core takes this, and the parts below it that it calls."""

    def __init__(
        self,
        settings: Settings,
        installation: Installation,
        voices: dict[str, StoredVoice],
        *,
        now: float,
        wall: float,
        seed: int,
    ) -> None:
        self.context = Context(settings, now, wall, seed)
        self.installation = installation
        #: The registered voices by name.
        self.voices = voices
        self.removals = Removals()
        self.job_table = JobTable(self.removals)
        self.usage = Usage()
        self.queue = WaitingQueue(settings.queue.classes)
        self.estimator = Estimator(self.removals)
        self.alerts = Alerts(self.context)
        self.gpus = Gpus(self.context, self.alerts)
        self.pool = Pool(self.context, self.gpus, self.alerts)
        self.recycler = Recycler(self.context, self.pool, self.gpus)
        self.autoscaler = Autoscaler(self.context, self.pool, self.gpus, self.queue)

    def all_voices(self) -> list[Voice]:
        """Every voice: the engine's own, and the registered ones."""
        own, engine = self.pool.own_voices, self.pool.engine
        registered = [
            Voice(name=voice.name, language=voice.language, description=voice.description)
            for voice in self.voices.values()
            if voice.name not in own
        ]
        return (engine.voices if engine else []) + registered

    def known_voices(self) -> str:
        """The names of voices, for an error about one that is not there."""
        known = self.all_voices()
        if not known:
            return "none is registered yet (glmttsctl voice add)"
        more = f" and {len(known) - _NAMED} more" if len(known) > _NAMED else ""
        return f"there are {', '.join(voice.name for voice in known[:_NAMED])}{more}"
