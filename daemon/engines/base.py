"""What an engine is: the contract between the worker process and whatever makes the speech.

An engine lives in one worker process and is used from its main thread alone. Making it loads the model;
:meth:`Engine.synthesize` is a generator, and each ``yield`` gives the worker a place to send audio, to cancel, and,
where the yielded piece ends a segment, to put the job aside and go on with it later.

So several generators may be open at a time, each at the end of a segment but for one: that one alone is advanced, to
its end or its own border, before another is. They may be closed in any order, but never while one of them runs.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from glmtts.protocol.events import Voice

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .options import EspeakOptions, FaultOptions, GlmttsOptions

    Samples = NDArray[np.float32]


class EngineError(Exception):
    """The engine can't do this job; ``code`` is a code of the protocol, ``fatal`` ends the process.

    ``quotes``: the message has something of the text in it, which its client may see and the log may not. Any other
    exception that an engine raises becomes ``synthesis_failed`` with the exception's own words.
    """

    def __init__(self, code: str, message: str, *, fatal: bool = False, quotes: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.fatal = fatal
        self.quotes = quotes


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference recording, decoded and checked: mono float32 samples of shape (n,) in -1..1, and what is said in it.

    ``digest`` is the SHA-256 of the recording's bytes, by which features can be cached.
    """

    samples: Samples
    sample_rate: int
    text: str
    digest: str


def _no_beat(done: int, expected: int | None = None) -> None:
    """Progress that nobody asked for."""


def _not_cancelled() -> bool:
    return False


@dataclass(slots=True)
class Utterance:
    """One job, as the engine sees it.

    ``voice`` is the name of one of the engine's own voices; ``reference`` is given instead of it for a cloned voice.
    ``sample_rate`` is one of the engine's native rates. ``beat(done, expected)`` is to be called at least every few
    hundred milliseconds while work gets done (tokens, chunks): a job without beats for ``hang_timeout_s`` is taken for
    hung and the process is killed. ``cancelled()`` may be asked between beats; when it is true, the engine returns.
    """

    text: str
    voice: str | None
    reference: Reference | None
    sample_rate: int
    seed: int
    options: Any
    beat: Callable[..., None] = field(default=_no_beat)
    cancelled: Callable[[], bool] = field(default=_not_cancelled)


@dataclass(frozen=True, slots=True)
class Piece:
    """Audio as it is made: mono float32 samples of shape (n,), in -1..1, at the utterance's sample rate.

    ``segment`` counts from 0 and never falls; ``ends_segment`` marks the segment's last piece, ``segments`` is how many
    there will be, as far as known.
    """

    samples: Samples
    segment: int
    segments: int
    ends_segment: bool


@dataclass(frozen=True, slots=True)
class MemoryFigures:
    """What a torch engine's allocator holds, in bytes (``torch.cuda.memory_allocated`` and ``memory_reserved``)."""

    torch_allocated: int | None = None
    torch_reserved: int | None = None


class Engine(abc.ABC):
    """Base of all engines. Making an instance loads the model and may take minutes."""

    #: As in ``[engine] name``.
    name: str
    version: str
    #: Native sample rates in Hz, the default first.
    sample_rates: tuple[int, ...]
    #: The type that ``options`` is converted to; see options.py.
    options: type[EspeakOptions] | type[FaultOptions] | type[GlmttsOptions]
    #: Whether a reference recording can be spoken with.
    clones_voices: bool = False
    #: How many jobs the engine takes at once.
    slots: int = 1

    @property
    @abc.abstractmethod
    def voices(self) -> list[Voice]:
        """The engine's own voices, the default first."""

    def warm_up_reference(self) -> Reference | None:
        """What the warm-up sentence is spoken with by an engine that has no voices of its own."""
        return None

    @abc.abstractmethod
    def synthesize(self, utterance: Utterance) -> Iterator[Piece]:
        """Speak, piece by piece. Closing the generator early ends the work and leaves the engine ready for the next.

        While one waits at the end of a segment, others may be made, advanced and closed: what belongs to a job (caches,
        random generators, what is known of the sentences before) is the generator's own, and what is shared (weights,
        scratch buffers) is left as any other job would have it whenever a piece that ends a segment is yielded.
        Raises EngineError for a job that can't be done, anything else for a failure.
        """

    @classmethod  # noqa: B027 - an engine without a GPU has nothing to limit
    def limit_memory(cls, share: float) -> None:
        """Use at most this share of the GPU's memory, 0..1; 0: no limit. Called before the engine is made.

        Beyond it the engine runs out of memory, which ends this process alone.
        """

    def trim(self) -> None:  # noqa: B027 - an engine that caches nothing has nothing to do
        """Give cached memory back."""

    def memory(self) -> MemoryFigures:
        """The allocator's figures, where there is one."""
        return MemoryFigures()

    def close(self) -> None:  # noqa: B027 - the end of the process is enough for most
        """Free what the process would not free by ending."""
