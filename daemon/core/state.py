"""The state that the parts of the core share: jobs, workers, GPUs, voices."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import UNSET, Struct

from glmtts.protocol.events import Voice
from glmtts.protocol.requests import Synthesize

from .alerts import Alerts
from .context import Context
from .inputs import StoredVoice
from .jobs.estimates import Estimator
from .jobs.job_table import JobTable
from .jobs.queue import WaitingQueue
from .own_voices import OwnVoices
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
        voices: Iterable[StoredVoice],
        *,
        now: float,
        wall: float,
        seed: int,
    ) -> None:
        self.context = Context(settings, now, wall, seed)
        self.installation = installation
        #: The registered voices for all by name, and those that clients have for themselves.
        self.voices = {voice.name: voice for voice in voices if not voice.owner}
        self.own_voices = OwnVoices(voice for voice in voices if voice.owner)
        self.removals = Removals()
        self.job_table = JobTable(self.removals)
        self.queue = WaitingQueue(settings.queue.classes)
        self.estimator = Estimator(self.removals)
        self.alerts = Alerts(self.context)
        self.gpus = Gpus(self.context, self.alerts)
        self.pool = Pool(self.context, self.gpus, self.alerts)
        self.recycler = Recycler(self.context, self.pool, self.gpus)
        self.autoscaler = Autoscaler(self.context, self.pool, self.gpus, self.queue)

    def recording_of(self, client: str, request: Synthesize) -> StoredVoice | None:
        """The recording that a client names with a voice: one of its own first. None for an engine's voice, or none."""
        if request.prompt is not UNSET:
            return None
        name = self.context.settings.voices.default
        if request.voice is not UNSET:
            name = request.voice
            if (own := self.own_voices.find(client, name)) is not None:
                return own
        return None if name in self.pool.own_voices else self.voices.get(name)

    def all_voices(self, client: str) -> list[Voice]:
        """Every voice that a client can name: the engine's own, the registered ones, and those of the client alone."""
        engines, engine = self.pool.own_voices, self.pool.engine
        own = {voice.name: _listed(voice) for voice in self.own_voices.of(client)}
        shared = [_listed(voice) for voice in self.voices.values() if voice.name not in engines]
        for_all = (engine.voices if engine else []) + shared
        return [voice for voice in for_all if voice.name not in own] + list(own.values())

    def known_voices(self, client: str) -> str:
        """The names of voices, for an error about one that is not there."""
        known = self.all_voices(client)
        if not known:
            return "none is registered yet (glmttsctl voice add)"
        more = f" and {len(known) - _NAMED} more" if len(known) > _NAMED else ""
        return f"there are {', '.join(voice.name for voice in known[:_NAMED])}{more}"


def _listed(voice: StoredVoice) -> Voice:
    owner = "own" if voice.owner else "shared"
    return Voice(name=voice.name, language=voice.language, description=voice.description, owner=owner, sample=True)
