"""The contract between the worker process and an engine.

An engine lives in one worker process and is used from its main thread alone. Its constructor loads the model.
:meth:`Engine.synthesize` is a generator: at each ``yield`` the worker can send audio and cancel the job, and where the
piece ends a segment it can suspend the job.

So several generators may be open at a time. All but one of them are suspended at the end of a segment; that one is
advanced until it ends or is suspended too. Generators may be closed in any order, but never while one of them runs.
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
    """The engine can't do this job. ``code``: of the protocol; ``fatal``: the process must end.

    ``quotes``: the message quotes the text, so it goes to the client but not to the log. Any other exception of an
    engine becomes ``synthesis_failed`` with the exception's message.
    """

    def __init__(self, code: str, message: str, *, fatal: bool = False, quotes: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.fatal = fatal
        self.quotes = quotes


@dataclass(frozen=True, slots=True)
class Reference:
    """A decoded reference recording: mono float32 samples of shape (n,) in -1..1, and its transcript.

    ``digest``: the SHA-256 of the recording's bytes, as a key for cached features.
    """

    samples: Samples
    sample_rate: int
    text: str
    digest: str


def _no_beat(done: int, expected: int | None = None) -> None:
    """Discards the progress of a warm-up."""


def _not_cancelled() -> bool:
    return False


@dataclass(slots=True)
class Utterance:
    """One job, as the engine sees it.

    ``voice``: one of the engine's own voices, unless ``reference`` is given. ``sample_rate``: a native rate of
    the engine, in Hz. ``options``: of the engine's own type.

    The engine calls ``beat(done, expected)`` at least every few hundred milliseconds as it progresses (tokens, chunks);
    a job without beats for ``hang_timeout_s`` counts as hung, and its process is killed. The engine returns when
    ``cancelled()`` is true.

    ``more`` is there for a job whose text comes in pieces, of which ``text`` is the first. Each ends where a sentence
    does. When the engine has spoken what it has, it calls ``more()``, which returns the next piece, ``""`` while there
    is none, and None after the last. Where there is none, the engine yields a Piece with ``waits`` and calls it again.
    """

    text: str
    voice: str | None
    reference: Reference | None
    sample_rate: int
    seed: int
    options: Any
    beat: Callable[..., None] = field(default=_no_beat)
    cancelled: Callable[[], bool] = field(default=_not_cancelled)
    more: Callable[[], str | None] | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the audio: mono float32 samples of shape (n,), in -1..1, at the utterance's sample rate.

    ``segment`` counts from 0 and never decreases; ``ends_segment`` marks a segment's last piece; ``segments`` is their
    expected number, which grows with a text that comes in pieces.
    """

    samples: Samples
    segment: int
    segments: int
    ends_segment: bool
    #: There is no audio before more text comes; the job may be suspended here.
    waits: bool = False


@dataclass(frozen=True, slots=True)
class MemoryFigures:
    """What a torch engine's allocator holds, in bytes (``torch.cuda.memory_allocated`` and ``memory_reserved``)."""

    torch_allocated: int | None = None
    torch_reserved: int | None = None


def texts_of(utterance: Utterance) -> Iterator[str | Piece]:
    """The text of a job, piece by piece; between them, while the next has not come, what to yield meanwhile."""
    yield utterance.text
    if utterance.more is None:
        return
    while (text := utterance.more()) is not None:
        yield text or _waiting()


def _waiting() -> Piece:
    import numpy as np

    return Piece(np.zeros(0, np.float32), 0, 0, False, waits=True)


class Engine(abc.ABC):
    """Base of all engines. The constructor loads the model and may take minutes."""

    #: As in ``[engine] name``.
    name: str
    version: str
    #: Native sample rates in Hz, the default first.
    sample_rates: tuple[int, ...]
    #: The type that ``options`` is converted to; see options.py.
    options: type[EspeakOptions] | type[FaultOptions] | type[GlmttsOptions]
    #: Whether the engine can clone the voice of a recording.
    clones_voices: bool = False
    #: The number of jobs that the engine takes at once.
    slots: int = 1

    @property
    @abc.abstractmethod
    def voices(self) -> list[Voice]:
        """The engine's own voices, the default first."""

    def warm_up_reference(self) -> Reference | None:
        """The recording for the warm-up sentence, for an engine without voices of its own."""
        return None

    @abc.abstractmethod
    def synthesize(self, utterance: Utterance) -> Iterator[Piece]:
        """Speak, piece by piece. Closing the generator early ends the job and leaves the engine ready for the next.

        While a job is suspended at the end of a segment, other jobs run. So the generator owns everything that belongs
        to its job (caches, random generators, context of earlier sentences), and leaves shared state (weights, scratch
        buffers) usable by others whenever it yields the last piece of a segment.

        Raises EngineError for a job that can't be done, and any other exception for a failure.
        """

    @classmethod  # noqa: B027 - optional
    def limit_memory(cls, share: float) -> None:
        """Use at most this share of the GPU's memory, 0..1; 0: no limit. Called before the constructor.

        An engine that exceeds it runs out of memory, which ends this process alone.
        """

    def trim(self) -> None:  # noqa: B027 - optional
        """Release cached memory."""

    def memory(self) -> MemoryFigures:
        """The figures of the engine's allocator."""
        return MemoryFigures()

    def close(self) -> None:  # noqa: B027 - optional
        """Release what the end of the process would not."""
