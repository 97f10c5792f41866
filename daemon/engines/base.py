"""The contract between the worker process and an engine.

An engine lives in one worker process and is used from its main thread alone. Its constructor loads the model. The
worker speaks with a :class:`BatchEngine`; :class:`Engine` is the simpler contract for one that speaks one job at a
time, which one_at_a_time.py adapts.

:meth:`Engine.synthesize` is a generator: at each ``yield`` the worker can send audio and cancel the job, and where the
piece ends a segment it can suspend the job. So several generators may be open at a time. All but one of them are
suspended at the end of a segment; that one is advanced until it ends or is suspended too. Generators may be closed in
any order, but never while one of them runs.
"""

from __future__ import annotations

import abc
import select
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from glmtts.protocol.events import Voice

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .options import EspeakOptions, FaultOptions, GlmttsOptions, ServerOptions

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


def no_beat(done: int, expected: int | None = None) -> None:
    """Discards the progress of a warm-up."""


def _not_cancelled() -> bool:
    return False


def _no_record(stage: str, jobs: Collection[str]) -> None:
    """Discards notes for the flight recorder."""


@dataclass(slots=True)
class Utterance:
    """One job, as the engine sees it.

    ``voice``: one of the engine's own voices, unless ``reference`` is given. ``sample_rate``: a native rate of
    the engine, in Hz. ``options``: of the engine's own type.

    A generator calls ``beat(done, expected)`` at least every few hundred milliseconds as it progresses (tokens,
    chunks); a job without beats for ``hang_timeout_s`` counts as hung, and its process is killed. It returns when
    ``cancelled()`` is true. A BatchEngine has :class:`Handle` for the first, and ``cancel`` for the second.

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
    beat: Callable[..., None] = field(default=no_beat)
    cancelled: Callable[[], bool] = field(default=_not_cancelled)
    more: Callable[[], str | None] | None = None
    #: The id of the job, for the flight recorder.
    job: str = ""
    #: Others may be served before it.
    batch: bool = False


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
    """The text of a job, piece by piece; while the next has not come, a Piece with ``waits``, to be yielded."""
    yield utterance.text
    if utterance.more is None:
        return
    while (text := utterance.more()) is not None:
        yield text or _waiting()


def _waiting() -> Piece:
    import numpy as np

    return Piece(np.zeros(0, np.float32), 0, 0, False, waits=True)


class EngineBase(abc.ABC):
    """The contract that both kinds of engines share. The constructor loads the model and may take minutes."""

    #: As in ``[engine] name``.
    name: str
    version: str
    #: Native sample rates in Hz, the default first.
    sample_rates: tuple[int, ...]
    #: The type that ``options`` is converted to; see options.py.
    options: type[EspeakOptions] | type[FaultOptions] | type[GlmttsOptions] | type[ServerOptions]
    #: Whether the engine can clone the voice of a recording.
    clones_voices: bool = False
    #: Whether the same text, voice, options and seed give the same samples again, in another process too.
    repeats: bool = False
    #: The experimental part of its configuration, in words; empty for none.
    experimental: str = ""

    @property
    @abc.abstractmethod
    def voices(self) -> list[Voice]:
        """The engine's own voices, the default first."""

    def warm_up_reference(self) -> Reference | None:
        """The recording for the warm-up sentence, for an engine without voices of its own."""
        return None

    @abc.abstractmethod
    def synthesize(self, utterance: Utterance) -> Iterator[Piece]:
        """Speak one job, piece by piece."""

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


class Engine(EngineBase):
    """An engine that speaks one job at a time."""

    @abc.abstractmethod
    def synthesize(self, utterance: Utterance) -> Iterator[Piece]:
        """Speak, piece by piece. Closing the generator early ends the job and leaves the engine ready for the next.

        While a job is suspended at the end of a segment, other jobs run. So the generator owns everything that belongs
        to its job (caches, random generators, context of earlier sentences), and leaves shared state (weights, scratch
        buffers) usable by others whenever it yields the last piece of a segment.

        Raises EngineError for a job that can't be done, and any other exception for a failure.
        """


@dataclass(eq=False)
class Handle:
    """One job in a BatchEngine, from ``begin`` until its Ended or Broken, or until ``cancel``.

    ``done`` of about ``expected`` units (tokens, passes, chunks) are made. Unless the job is suspended or waits for
    text, ``done`` must keep growing, or the job counts as hung. ``work_s``: the seconds of engine time that it took:
    those of its own stages, and its part of each step that it shared.
    """

    utterance: Utterance
    done: int = 0
    expected: int | None = None
    work_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Spoken:
    """A piece of a job's audio. One with ``waits``: the job does nothing more before its text goes on.

    Then the worker suspends the job until it has text, or has some already, and the next step asks for it.
    """

    handle: Handle
    piece: Piece


@dataclass(frozen=True, slots=True)
class Ended:
    """All of a job is spoken."""

    handle: Handle


@dataclass(frozen=True, slots=True)
class Broken:
    """A job can't go on; the other jobs are not affected.

    An EngineError with ``fatal``, and a CUDA error that breaks the context, end the process with all jobs.
    """

    handle: Handle
    error: Exception


Event = Spoken | Ended | Broken


class SharedStepError(Exception):
    """A step that several jobs shared failed for good, and the process must end; raised by ``advance``.

    ``jobs``: the ids of the jobs in the step, one of which may have caused it. ``__cause__``: the error.
    """

    def __init__(self, jobs: list[str], error: Exception) -> None:
        super().__init__(str(error))
        self.jobs = jobs
        self.__cause__ = error


class BatchEngine(EngineBase):
    """An engine that speaks for up to ``slots`` jobs at once, a step at a time.

    Used from one thread alone. The worker calls ``advance`` again and again; between two calls it sends the results of
    the last one, and begins, suspends, resumes and cancels jobs. A call should take a few milliseconds, at most some
    tens: work that takes longer is cut into steps, or done in other threads or processes.
    """

    #: The most jobs that have steps at the same time; suspended ones are not counted.
    slots: int
    #: Notes a stage and the ids of the jobs in it before the engine begins it (daemon/flight_recorder.py).
    record: Callable[[str, Collection[str]], None] = staticmethod(_no_record)

    @abc.abstractmethod
    def begin(self, utterance: Utterance) -> Handle:
        """Take a job on, in a free slot. Quick: the work is done in ``advance``. Raises EngineError to refuse it."""

    @abc.abstractmethod
    def advance(self) -> list[Event]:
        """Do one step of work for the jobs that are not suspended. Returns its events, often none.

        Raises SharedStepError. Any other exception is a fault of the engine and ends the process, with all jobs as
        suspects.
        """

    @abc.abstractmethod
    def idle_s(self) -> float | None:
        """Seconds until ``advance`` has something to do: 0: now; None: not before ``fileno`` is readable, or a call."""

    def fileno(self) -> int | None:
        """A descriptor, always the same, that is readable when work in another thread or process has come to an end."""
        return None

    @abc.abstractmethod
    def suspend(self, handle: Handle) -> None:
        """Leave the job out of further steps; another may get its slot. Its state stays, so its samples do not change.

        Beside the jobs that wait for text, of which there may be any number, at most ``slots`` and
        ``protocol.worker.MAX_SUSPENDED`` are in the engine, suspended or not: a job whose audio can't be sent is
        suspended for a moment too, and no other gets its place.
        """

    @abc.abstractmethod
    def resume(self, handle: Handle) -> None:
        """Go on with a suspended job."""

    @abc.abstractmethod
    def cancel(self, handle: Handle) -> None:
        """Drop a job, also a suspended one. No event of it comes after this."""

    def synthesize(self, utterance: Utterance) -> Iterator[Piece]:
        """Speak one job while there is no other, piece by piece; for the warm-up. Raises the error of a Broken."""
        handle: Handle | None = self.begin(utterance)
        try:
            while handle is not None:
                for event in self.advance():
                    match event:
                        case Spoken():
                            yield event.piece
                        case Broken():
                            handle = None
                            raise event.error
                        case Ended():
                            handle = None
                if handle is not None and (idle_s := self.idle_s()) != 0:
                    fd = self.fileno()
                    select.select(() if fd is None else (fd,), (), (), idle_s)
        finally:
            if handle is not None:
                self.cancel(handle)

    @property
    def settled(self) -> bool:
        """Whether ``memory`` includes no working memory of jobs now, even if some run."""
        return True
