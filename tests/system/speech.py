"""What a job of the fault engine must sound like, byte for byte, and which ends each of its faults may have."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, get_args

from glmtts.daemon.engines import load
from glmtts.daemon.engines.base import Utterance
from glmtts.daemon.engines.options import FaultName, FaultOptions
from glmtts.daemon.worker import audio

if TYPE_CHECKING:
    from glmtts.daemon.engines.base import EngineBase

FAULTS: tuple[str, ...] = get_args(FaultName)
#: Faults that cost time or memory, not the job.
HARMLESS = frozenset(
    {"audio", "sleep", "leak_ram", "flood_stdout", "fork_child", "use_vram", "cache_vram", "leak_vram", "leak_outside"}
)

#: A job may meet any of these through no fault of its own: others kill its worker, or fill the queue.
DISRUPTED = frozenset({"worker_crashed", "hung", "unavailable", "queue_full"})
#: What may become of a job that kills its workers.
_DEADLY = frozenset({"quarantined"})
_KILLS_BY_MEMORY = _DEADLY | {"out_of_memory"}
#: Without a GPU: an error; with one: there may be no more memory on it.
_ON_GPU = frozenset({"bad_request", "out_of_memory"})
#: Ends that are a fault's own, beside audio where it is harmless.
_ENDS: dict[str, frozenset[str]] = {
    "audio": frozenset(),
    "sleep": frozenset(),
    "leak_ram": frozenset(),
    "flood_stdout": frozenset(),
    "fork_child": frozenset(),
    "use_vram": _ON_GPU,
    "cache_vram": _ON_GPU,
    "leak_vram": _ON_GPU,
    "leak_outside": _ON_GPU,
    "raise": frozenset({"synthesis_failed"}),
    "nan": frozenset({"synthesis_failed"}),
    "quote": frozenset({"synthesis_failed"}),
    "quote_fatal": _DEADLY,
    "exit": _DEADLY,
    "segv": _DEADLY,
    "abort": _DEADLY,
    "kill": _DEADLY,
    "hang": _DEADLY,
    "hang_gil": _DEADLY,
    "beat_still": _DEADLY,
    "runaway": _DEADLY,
    "garbage": _DEADLY,
    "oom": _KILLS_BY_MEMORY,
    "oom_vram": _KILLS_BY_MEMORY | _ON_GPU,
    "illegal_access": _DEADLY | _ON_GPU,
}


@dataclass(frozen=True, slots=True)
class Speech:
    """A job: what is to be said, and what is to go wrong meanwhile."""

    text: str
    voice: str = "tone"
    seed: int = 0
    format: str = "wav"
    sample_rate: int = 24_000
    stream: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def fault(self) -> str:
        return str(self.options.get("fault", "audio"))

    @property
    def ends(self) -> frozenset[str]:
        """The error codes that it may end with."""
        return DISRUPTED | _ENDS[self.fault]

    @property
    def may_succeed(self) -> bool:
        return self.fault in HARMLESS

    def request(self) -> dict[str, Any]:
        """Keys of the request for it."""
        names = ("text", "voice", "seed", "format", "sample_rate", "stream", "options")
        return {name: getattr(self, name) for name in names}

    def audio(self) -> bytes:
        """The whole of its audio."""
        # How long a "sleep" sleeps is not how long it sounds.
        seconds = None if self.fault == "sleep" else self.options.get("seconds")
        utterance = Utterance(self.text, self.voice, None, self.sample_rate, self.seed, FaultOptions(seconds=seconds))
        encoder = audio.encoder(self.format, self.sample_rate)
        # The clients are threads, and an engine is used from one at a time.
        with _one_at_a_time:
            for piece in _engine().synthesize(utterance):
                encoder.add(piece.samples)
        return encoder.finish()


_one_at_a_time = threading.Lock()


@cache
def _engine() -> EngineBase:
    return load("fault", {}, send_raw=lambda _: None)
