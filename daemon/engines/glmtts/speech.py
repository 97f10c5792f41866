"""One job in GLM-TTS: its own state, so that other jobs can run between its segments."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec import Struct

from ..base import EngineError, Utterance
from .text_tasks import Prepared
from .token_watch import Watch
from .upstream import Upstream
from .voices import VoiceFeatures

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Upstream's own bound of its token loop, in speech tokens for each token of the text.
TOKENS_PER_TEXT_TOKEN = 20
#: Tokens and passes of the flow model for a character, about; for the progress of a job.
STEPS_PER_CHARACTER = 8


class SpeechCancelledError(Exception):
    """The job was cancelled."""


#: A step counts for at most this long, in seconds: a process may have been stopped or frozen meanwhile.
LONGEST_STEP_S = 5.0


class Choices(Struct, frozen=True, kw_only=True):
    """The options of a job: GlmttsOptions with all defaults filled in."""

    use_phoneme: bool
    use_cache: bool
    sampling: str
    top_k: int
    max_tokens: int


class Steps:
    """Called at every step of the work: reports progress, and ends a job that is cancelled or takes too long."""

    def __init__(self, utterance: Utterance, max_segment_s: float) -> None:
        self._utterance = utterance
        self._max_segment_s = max_segment_s
        self._done = 0
        self._expected: int | None = None
        self._left_s = max_segment_s
        self._last = time.monotonic()

    def __call__(self) -> None:
        """Raises SpeechCancelledError, and EngineError when time is up."""
        self._done += 1
        self._utterance.beat(self._done, self._expected)
        if self._utterance.cancelled():
            raise SpeechCancelledError
        now = time.monotonic()
        self._left_s -= min(now - self._last, LONGEST_STEP_S)
        self._last = now
        if self._left_s < 0:
            raise EngineError(
                "synthesis_failed",
                f"a segment was not done within {self._max_segment_s:g} s (max_segment_s in [engine.glmtts]); try "
                "shorter sentences, another seed or a lower max_tokens",
            )

    def expect(self, characters: int) -> None:
        """Set the length of the text."""
        self._expected = self._done + STEPS_PER_CHARACTER * max(characters, 1)

    def begin_segment(self) -> None:
        """Start the time limit of the next segment."""
        self._left_s, self._last = self._max_segment_s, time.monotonic()


class Speech:
    """Speaks the segments of one job; with ``choices.use_cache``, each with the earlier ones as its prompt."""

    def __init__(
        self,
        upstream: Upstream,
        watch: Watch,
        voice: VoiceFeatures,
        utterance: Utterance,
        *,
        choices: Choices,
        warn: Callable[[str], None],
    ) -> None:
        import torch

        self._upstream = upstream
        self._watch = watch
        self._choices = choices
        self._warn = warn
        self._rate = utterance.sample_rate
        self._seed = utterance.seed
        device = upstream.device
        # Copies, because upstream modifies them, and other jobs share the voice's features.
        self._speaker = voice.speaker.to(device, copy=True)
        self._mel = voice.mels[self._rate].to(device, copy=True)
        self._prompt_tokens = torch.tensor([voice.speech_tokens], dtype=torch.int32, device=device)
        self._cache = {
            "cache_text": [voice.text],
            "cache_text_token": [voice.text_tokens.to(device, copy=True)],
            "cache_speech_token": [list(voice.speech_tokens)],
            "use_cache": choices.use_cache,
        }

    def segment(self, segment: Prepared, steps: Steps) -> NDArray[np.float32]:
        """The samples of the next segment, of shape (n,). Upstream seeds all random numbers anew for each.

        Raises what ``steps`` raises, EngineError, and whatever upstream raises.
        """
        import torch

        steps.begin_segment()
        self._watch.step = steps
        try:
            with self._upstream.quiet(), torch.inference_mode():
                speech, *_ = self._upstream.inference.generate_long(
                    frontend=self._upstream.frontend,
                    text_frontend=_OneSegment(segment),
                    llm=self._upstream.llm,
                    flow=self._upstream.vocoders[self._rate],
                    text_info=["", segment.text],
                    cache=self._cache,
                    device=self._upstream.device,
                    embedding=self._speaker,
                    seed=self._seed,
                    sample_method=self._choices.sampling,
                    flow_prompt_token=self._prompt_tokens,
                    speech_feat=self._mel,
                    local_llm_forward=self._draw_tokens,
                    use_phoneme=True,
                )
        finally:
            self._watch.release()
        return np.ascontiguousarray(speech.squeeze(0).float().cpu().numpy())

    def _draw_tokens(
        self, *, llm: Any, prompt_text_token: Any, tts_text_token: Any, prompt_speech_token: Any, sample_method: str
    ) -> list[int]:
        """Upstream's ``local_llm_forward``, with the job's ``max_tokens`` and ``top_k``."""
        import torch

        def length(tokens: Any) -> Any:
            return torch.tensor([tokens.shape[1]], dtype=torch.int32, device=tokens.device)

        text_tokens = tts_text_token.shape[1]
        most = TOKENS_PER_TEXT_TOKEN * text_tokens
        if self._choices.max_tokens:
            most = min(most, self._choices.max_tokens)
        tokens: list[int] = llm.inference(
            text=tts_text_token,
            text_len=length(tts_text_token),
            prompt_text=prompt_text_token,
            prompt_text_len=length(prompt_text_token),
            prompt_speech_token=prompt_speech_token,
            prompt_speech_token_len=length(prompt_speech_token),
            beam_size=1,
            sampling=self._choices.top_k,
            sample_method=sample_method,
            # The half protects the multiplication that makes it an integer again.
            max_token_text_ratio=(most + 0.5) / text_tokens,
            spk=None,
        )[0].tolist()
        if len(tokens) >= most:
            self._warn(f"a segment was cut off after {most} tokens; the model had not ended it")
        return tokens


class _OneSegment:
    """Upstream's text front end for a single segment, which is prepared already."""

    def __init__(self, segment: Prepared) -> None:
        self._segment = segment

    def split_by_len(self, _: str) -> list[str]:
        return [self._segment.text]

    def text_normalize(self, _: str) -> str:
        return self._segment.normalised

    def g2p_infer(self, _: str) -> str:
        return self._segment.spoken
