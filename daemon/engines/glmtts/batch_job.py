"""One job of the batching engine: its text, its segments at each stage, and the prompt of the next one."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..base import EngineError, Handle, Utterance
from .speech import LONGEST_STEP_S, STEPS_PER_CHARACTER, TOKENS_PER_TEXT_TOKEN, Choices

if TYPE_CHECKING:
    from torch import Generator

    from .flow_batch import FlowRun
    from .front_end import Pending
    from .llm_batch import Reading
    from .voices import VoiceFeatures

#: Segments of a job whose tokens are drawn before the flow model has come to them.
_AHEAD = 2
#: Seconds after which a job that waits for others reports progress, so that its wait does not count as a hang.
_MOVES_S = 0.5
#: A job with this many seconds of audio ahead of its listener is no more urgent than a batch job.
_AHEAD_S = 30.0


@dataclass(eq=False, slots=True)
class Segment:
    """A segment between the language model and the vocoder. ``tokens``: counted from the first one of audio."""

    text_tokens: list[int]
    generator: Generator
    tokens: list[int]
    work_s: float = 0.0
    run: FlowRun | None = None


class BatchJob(Handle):
    """The state of one job.

    Its segments go through the front end, the language model, the flow model and the vocoder, in this order; each stage
    may be at another segment. ``history``: text tokens and speech tokens, of the voice first, then of each segment.
    """

    def __init__(self, utterance: Utterance, choices: Choices, begun: float) -> None:
        super().__init__(utterance)
        self.choices = choices
        self.begun = self.moved = begun
        self.suspended = False
        #: The transcript of its voice, and then the voice.
        self.transcript: Pending | None = None
        self.voice: VoiceFeatures | None = None
        #: All of its text that came, and the part that the front end works on; None between two of them.
        self.whole = ""
        self.text: Pending | None = None
        self.text_is_all = True
        self.counted = False
        self.complete = False
        self.said_waits = False
        self.history: list[tuple[list[int], list[int]]] = []
        self.reading: Reading | None = None
        self.read_segment: Segment | None = None
        self.flowing: deque[Segment] = deque()
        self.known = self.spoken = 0
        self.audio_s = 0.0
        self.first_audio_at = 0.0

    @property
    def may_read(self) -> bool:
        """Whether its next segment may go into the language model."""
        return self.voice is not None and self.reading is None and len(self.flowing) < _AHEAD

    @property
    def in_flight(self) -> bool:
        """Whether a segment is on its way."""
        return self.reading is not None or bool(self.flowing)

    def has_work(self, *, has_room: bool) -> bool:
        """Whether the engine's next step can do something for it.

        ``has_room``: a segment can join the language model.
        """
        if self.suspended:
            return False
        if self.in_flight:
            return True
        if self.voice is None:
            return self.transcript is not None and self.transcript.ended
        if self.text is None:
            return not self.said_waits
        if self.text.ready:
            return has_room
        return self.text.ended or (self.text.texts is not None and not self.counted)

    def ahead_s(self, now: float) -> float:
        """Seconds of audio that a listener from the start has yet to hear; negative while that listener waits."""
        if not self.spoken:
            return self.begun - now
        return self.audio_s - (now - self.first_audio_at)

    def is_urgent(self, now: float) -> bool:
        """Whether its segments go before those of batch jobs."""
        return not self.utterance.batch and self.ahead_s(now) < _AHEAD_S

    def expect(self, characters: int) -> None:
        """Add the length of a text to the expected units."""
        self.expected = self.done + STEPS_PER_CHARACTER * max(characters, 1)

    def move(self, now: float, units: int = 1) -> None:
        """Count units of work as done."""
        self.done += units
        self.moved = now

    def waits(self, now: float) -> None:
        """Report progress for a job that waits for others, if it is time."""
        if now - self.moved >= _MOVES_S:
            self.move(now)
            if self.expected is not None:
                # It is no nearer to its end.
                self.expected += 1

    def prompt(self, text_tokens: list[int], longest: int) -> tuple[list[int], list[int]]:
        """Text tokens and speech tokens before a segment, as upstream's ``get_cached_prompt`` finds them.

        Segments beyond ``longest`` speech tokens are dropped for good, the oldest first; the voice's own part stays.
        """
        if self.choices.use_cache and len(self.history) > 1:
            spoken = sum(len(speech) for _, speech in self.history)
            said = sum(len(text) for text, _ in self.history)
            expected = int(spoken / (said or 1.0) * len(text_tokens))
            while spoken + expected > longest and len(self.history) > 1:
                spoken -= len(self.history.pop(1)[1])
            history = self.history
        else:
            history = self.history[:1]
        return [one for text, _ in history for one in text], [one for _, speech in history for one in speech]

    def most(self, text_tokens: int) -> int:
        """The most tokens of a segment: upstream's bound, or the job's."""
        most = TOKENS_PER_TEXT_TOKEN * text_tokens
        return min(most, self.choices.max_tokens) if self.choices.max_tokens else most

    def charge(self, segment: Segment | None, seconds: float, max_segment_s: float) -> None:
        """Charge the job for engine time. Raises EngineError if a segment has taken over ``max_segment_s``."""
        seconds = min(seconds, LONGEST_STEP_S)
        self.work_s += seconds
        if segment is not None:
            segment.work_s += seconds
            if segment.work_s > max_segment_s:
                raise EngineError(
                    "synthesis_failed",
                    f"a segment was not done within {max_segment_s:g} s (max_segment_s in [engine.glmtts]); try "
                    "shorter sentences, another seed or a lower max_tokens",
                )
