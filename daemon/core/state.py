"""The state that the parts of the core share: jobs, workers, GPUs, voices."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from .alerts import Alerts
from .context import Context
from .inputs import StoredVoice
from .jobs.estimates import Estimator
from .jobs.job_table import JobTable
from .jobs.queue import WaitingQueue
from .jobs.usage import Usage
from .settings import Settings
from .shares import Removals
from .voices.voices import Voices
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
        self.removals = Removals()
        self.job_table = JobTable(self.removals)
        self.usage = Usage()
        self.queue = WaitingQueue(settings.queue.classes)
        self.estimator = Estimator(self.removals)
        self.alerts = Alerts(self.context)
        self.gpus = Gpus(self.context, self.alerts)
        self.pool = Pool(self.context, self.gpus, self.alerts)
        self.voices = Voices(self.context, self.pool, voices)
        self.recycler = Recycler(self.context, self.pool, self.gpus)
        self.autoscaler = Autoscaler(self.context, self.pool, self.gpus, self.queue)
