"""The engine: GLM-TTS speaks with the voice of a recording, segment by segment."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ... import malloc
from ..base import Engine, Piece, Reference, Utterance, texts_of
from .front_end import Pending
from .models import Models, check_pending, transcript_of
from .speech import Choices, Speech, SpeechCancelledError, Steps
from .text import check_speakable
from .text_tasks import Prepared
from .token_watch import Watch


class GlmttsEngine(Models, Engine):
    """Segments have 30 to 60 characters, as upstream cuts a text; each is a run of upstream's ``generate_long``.

    The constructor raises the exceptions of Models.
    """

    def __init__(self, settings: dict[str, Any], **given: Any) -> None:
        super().__init__(settings, **given)
        self._watch = Watch(self._upstream.llm, self._upstream.flow)

    def synthesize(self, utterance: Utterance) -> Iterator[Piece]:
        reference, choices = self._checked(utterance)
        steps = Steps(utterance, self._max_segment_s)
        try:
            said = self._said(reference, steps)
            voice = self._voices.features(reference, said, utterance.sample_rate, steps)
            speech = Speech(
                self._upstream,
                self._watch,
                voice,
                utterance,
                choices=choices,
                warn=self._warn,
            )
            said_so_far, spoken, known = "", 0, 0
            for text in texts_of(utterance):
                if isinstance(text, Piece):
                    yield text
                    continue
                said_so_far += text
                with self._asked(said_so_far, text, choices, steps) as pending:
                    known += len(pending.texts or ())
                    while (segment := self._next(pending, steps)) is not None:
                        yield Piece(speech.segment(segment, steps), spoken, known, True)
                        spoken += 1
        except SpeechCancelledError:
            return
        finally:
            # Tensors of changing sizes fragment the heap: 184 MiB after 160 jobs on a CPU; with this, 2 after 100.
            malloc.trim()

    @contextlib.contextmanager
    def _asked(self, whole: str, text: str, choices: Choices, steps: Steps) -> Iterator[Pending]:
        """``text``, the end of ``whole``, which has to be one that GLM-TTS speaks, with its segments known."""
        check_speakable(whole)
        pending = self._front_end.ask(text, use_phoneme=choices.use_phoneme)
        try:
            self._front_end.wait(lambda: pending.texts is not None or pending.ended, steps)
            check_pending(pending, is_all=whole == text)
            steps.expect(sum(map(len, pending.texts or ())))
            yield pending
        finally:
            self._front_end.drop(pending)

    def _next(self, pending: Pending, steps: Steps) -> Prepared | None:
        """The next segment; None after the last."""
        self._front_end.wait(lambda: bool(pending.ready) or pending.ended, steps)
        segment = pending.take()
        if segment is None:
            check_pending(pending, is_all=False)
        return segment

    def _said(self, reference: Reference, steps: Steps) -> str:
        pending = self._front_end.ask_transcript(reference.text)
        try:
            self._front_end.wait(lambda: pending.ended, steps)
        finally:
            self._front_end.drop(pending)
        return transcript_of(pending)
