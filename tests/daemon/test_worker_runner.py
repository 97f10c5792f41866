"""In whatever order messages arrive and steps go wrong, each job hears its own, and ends once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest

from glmtts.daemon.engines.base import (
    BatchEngine,
    Broken,
    Ended,
    EngineError,
    Event,
    Handle,
    Piece,
    SharedStepError,
    Spoken,
    Utterance,
)
from glmtts.daemon.engines.options import FaultOptions
from glmtts.daemon.worker.connection import SupervisorConnection
from glmtts.daemon.worker.runner import JobRunner
from glmtts.protocol import exit_codes
from glmtts.protocol.events import Voice
from glmtts.protocol.worker import (
    AudioChunk,
    CancelJob,
    Failed,
    Finished,
    Message,
    ResumeJob,
    SegmentDone,
    SpeakJob,
    StopWorker,
    SupervisorMessage,
    SuspendJob,
    Trim,
    Trimmed,
    WorkerMessage,
)

#: Messages of the supervisor that arrive together.
Turn = Sequence[Message]
SEGMENTS = 4


class Wire:
    """A connection on which the messages of one turn of the loop come after those of another."""

    terminated = False

    def __init__(self, turns: Sequence[Turn]) -> None:
        self._turns = iter([*turns, [StopWorker()]])
        self.sent: list[WorkerMessage] = []
        self.unsent: list[WorkerMessage] = []
        self.has_room = True

    def receive(self) -> Iterator[tuple[SupervisorMessage, bytes | None]]:
        for message in next(self._turns, ()):
            yield cast("SupervisorMessage", message), None

    def send(self, message: WorkerMessage, _body: Any = None) -> None:
        (self.sent if self.has_room else self.unsent).append(message)

    def try_send(self, message: WorkerMessage) -> None:
        """Beats depend on the time."""

    def flush(self) -> None:
        if self.has_room:
            self.sent += self.unsent
            self.unsent = []

    def has_unsent(self, job: str) -> bool:
        return any(getattr(message, "job", "") == job for message in self.unsent)

    def drop_audio(self, job: str) -> None:
        self.unsent = [message for message in self.unsent if getattr(message, "job", "") != job]

    def wait(self, *_: Any) -> None:
        """The next turn's messages are there."""


class Steps(BatchEngine):
    """Speaks a segment of each job in each step. ``goes_wrong``: the errors of jobs by their text."""

    name, version, sample_rates, options = "fault", "1", (24_000,), FaultOptions

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.jobs: dict[Handle, int] = {}
        self.running: list[Handle] = []
        self.goes_wrong: dict[str, Exception] = {}
        self.most = 0

    @property
    def voices(self) -> list[Voice]:
        return [Voice(name="tone", language="", description="")]

    def begin(self, utterance: Utterance) -> Handle:
        handle = Handle(utterance)
        self.jobs[handle] = 0
        self.running.append(handle)
        return handle

    def advance(self) -> list[Event]:
        self.most = max(self.most, len(self.running))
        events: list[Event] = []
        for handle in list(self.running):
            if (error := self.goes_wrong.get(handle.utterance.text)) is not None:
                if isinstance(error, SharedStepError):
                    raise error
                self.cancel(handle)
                events.append(Broken(handle, error))
                continue
            segment = self.jobs[handle]
            self.jobs[handle] += 1
            events.append(Spoken(handle, Piece(np.full(240, 0.5, np.float32), segment, SEGMENTS, ends_segment=True)))
            if segment == SEGMENTS - 1:
                self.cancel(handle)
                events.append(Ended(handle))
        return events

    def idle_s(self) -> float | None:
        return 0 if self.running else None

    def suspend(self, handle: Handle) -> None:
        self.running.remove(handle)

    def resume(self, handle: Handle) -> None:
        assert handle in self.jobs
        self.running.append(handle)

    def cancel(self, handle: Handle) -> None:
        del self.jobs[handle]
        self.running = [one for one in self.running if one is not handle]


@dataclass
class Played:
    """What came of a script."""

    sent: list[WorkerMessage]
    code: int
    engine: Steps
    left: list[Any] = field(default_factory=list)

    def of(self, job: str) -> list[str]:
        """The kinds of the messages about a job, and the code of its failure."""
        kinds = [
            f"failed {message.code}" if isinstance(message, Failed) else type(message).__name__.lower()
            for message in self.sent
            if getattr(message, "job", None) == job and not isinstance(message, AudioChunk | SegmentDone)
        ]
        assert len([kind for kind in kinds if kind.startswith(("finished", "failed"))]) <= 1
        return kinds

    def segments(self, job: str) -> int:
        return sum(isinstance(message, SegmentDone) and message.job == job for message in self.sent)


def speak(job: str, *, text: str = "x", stream: bool = True) -> SpeakJob:
    return SpeakJob(job=job, text=text, voice=None, format="wav", sample_rate=None, stream=stream, seed=0, options={})


def play(*turns: Turn, slots: int = 1, wire: Wire | None = None, **goes_wrong: Exception) -> Played:
    wire = wire or Wire(turns)
    engine = Steps(slots)
    engine.goes_wrong = goes_wrong
    runner = JobRunner(engine, cast("SupervisorConnection", wire))
    code = runner.run("")
    left = [runner._jobs, runner._active, runner._marked, runner._by_handle]
    return Played(wire.sent, code, engine, [*left, engine.jobs])


def test_a_cancellation_that_crosses_the_suspension_is_not_lost() -> None:
    played = play([speak("a"), SuspendJob(job="a")], [], [CancelJob(job="a"), SuspendJob(job="a"), Trim()])
    assert played.of("a") == ["suspended", "failed cancelled"]
    assert isinstance(played.sent[-1], Trimmed) and not any(played.left)


def test_a_job_that_is_resumed_and_cancelled_at_once_is_not_wanted() -> None:
    at_once = [ResumeJob(job="a"), SuspendJob(job="a"), CancelJob(job="a")]
    played = play([speak("a"), SuspendJob(job="a")], [], [speak("b")], at_once)
    assert played.of("a") == ["suspended", "failed cancelled"] and played.segments("a") == 1
    assert played.of("b") == ["finished"] and not any(played.left)


def test_a_job_that_is_cancelled_and_then_resumed_ends_once() -> None:
    crossing = [CancelJob(job="a"), ResumeJob(job="a"), CancelJob(job="a"), Trim(), Trim()]
    played = play([speak("a"), SuspendJob(job="a")], [], crossing)
    assert played.of("a") == ["suspended", "failed cancelled"] and not any(played.left)


def test_suspended_jobs_can_be_cancelled_while_another_is_spoken() -> None:
    suspended = [turn for name in "abc" for turn in ([speak(name), SuspendJob(job=name)], [])]
    cancelled = [CancelJob(job=name) for name in ("a", "c", "a", "unknown")]
    played = play(*suspended, [speak("d")], cancelled, [ResumeJob(job="b")])
    assert [played.of(name) for name in "ac"] == [["suspended", "failed cancelled"]] * 2
    kinds = [getattr(message, "job", "") for message in played.sent if isinstance(message, Failed | Finished)]
    assert kinds == ["a", "c", "d", "b"] and not any(played.left)


@pytest.mark.parametrize("slots", [1, 2])
def test_a_job_is_suspended_again_and_again(slots: int) -> None:
    turns = [turn for _ in range(3) for turn in ([ResumeJob(job="a"), SuspendJob(job="a")], [])]
    played = play([speak("a"), SuspendJob(job="a")], [], *turns, [ResumeJob(job="a")], slots=slots)
    # Each time it has had a step. In the last it ends before it can be suspended.
    assert played.of("a") == ["suspended"] * 3 + ["finished"]
    assert played.segments("a") == SEGMENTS and not any(played.left)


def test_a_job_of_several_is_cancelled_before_the_next_step() -> None:
    played = play([speak(name) for name in "abcdefgh"], [CancelJob(job="c")], slots=8)
    assert played.of("c") == ["failed cancelled"] and played.segments("c") == 1
    assert all(played.of(name) == ["finished"] for name in "abdefgh") and not any(played.left)
    # All at once: four steps.
    assert played.engine.most == 8


def test_an_error_of_one_job_ends_it_alone() -> None:
    played = play([speak("a"), speak("b", text="bad"), speak("c")], slots=4, bad=ValueError("no"))
    assert [played.of(name) for name in "abc"] == [["finished"], ["failed synthesis_failed"], ["finished"]]
    assert played.code == 0 and not any(played.left)


def test_memory_that_one_job_lacked_ends_the_process_in_its_name() -> None:
    played = play([speak("a"), speak("b", text="bad"), speak("c")], slots=4, bad=MemoryError())
    assert played.of("b") == ["failed out_of_memory"] and played.of("a") == played.of("c") == []
    assert played.code == exit_codes.OUT_OF_MEMORY
    assert played.segments("c") == 1  # what the step had made of the others is sent


def test_an_error_in_a_step_of_several_jobs_names_them_all_and_blames_none() -> None:
    error = SharedStepError(["a", "c"], EngineError("cuda_context", "CUDA error 700", fatal=True))
    played = play([speak("a"), speak("b"), speak("c", text="bad")], slots=4, bad=error)
    (failed,) = [message for message in played.sent if isinstance(message, Failed)]
    assert (failed.job, failed.suspects, failed.code, failed.fatal) == ("", ["a", "c"], "cuda_context", True)
    assert played.code == exit_codes.CUDA_CONTEXT


def test_jobs_wait_for_a_slot_in_their_order() -> None:
    played = play([speak(name) for name in "abcde"], [CancelJob(job="d")], slots=2)
    ends = [message.job for message in played.sent if isinstance(message, Failed | Finished)]
    assert ends == ["a", "b", "d", "c", "e"]
    assert played.engine.most == 2 and played.of("d") == ["failed cancelled"]


def test_a_stream_that_can_t_be_sent_holds_up_no_other_job() -> None:
    class Full(Wire):
        most = 0

        def flush(self) -> None:
            if any(isinstance(message, Finished) for message in self.sent):
                self.has_room = True
            super().flush()

        def send(self, message: WorkerMessage, _body: Any = None) -> None:
            # Full for the stream, and not for the file.
            self.has_room = self.has_room and getattr(message, "job", "") != "a"
            if getattr(message, "job", "") == "a":
                super().send(message)
                self.most = max(self.most, len(self.unsent))
            else:
                self.sent.append(message)

    wire = Full([[speak("a"), speak("b", stream=False)]])
    played = play(wire=wire, slots=2)
    ends = [message.job for message in played.sent if isinstance(message, Finished)]
    assert ends == ["b", "a"] and played.segments("a") == SEGMENTS
    # The stream was held with what a step makes: a chunk, a boundary, and in the last step its end.
    assert wire.most <= 3
