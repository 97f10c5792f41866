"""The engine: GLM-TTS speaks with the voice of a recording, segment by segment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from glmtts.protocol.events import Voice

from ... import malloc
from .. import torch_memory
from ..base import Engine, EngineError, MemoryFigures, Piece, Reference, Utterance, texts_of
from ..options import GlmttsOptions
from . import checkpoint, pronunciation
from .device import choose
from .speech import Choices, Speech, SpeechCancelledError, Steps
from .text import Texts, check_speakable
from .token_watch import Watch
from .upstream import Upstream
from .voices import VoiceCache

_WARM_UP_TEXT = "你好。"


class GlmttsEngine(Engine):
    """Segments have 30 to 60 characters, as upstream cuts a text; each is a run of upstream's ``generate_long``.

    The constructor raises CheckpointError, UpstreamError and NoGpuError, and ValueError for the dictionary.
    """

    name = "glmtts"
    options = GlmttsOptions
    clones_voices = True

    def __init__(
        self,
        settings: dict[str, Any],
        *,
        vram_share: float,
        needs_gpu: bool,
        cache_dir: str,
        warn: Callable[[str], None],
    ) -> None:
        self._warn = warn
        begun = time.monotonic()
        found = checkpoint.look(Path(settings["root"]))
        self.version = found.version
        self.sample_rates = found.sample_rates
        device = choose(found.weights_bytes(settings["dtype"]), needs_gpu=needs_gpu, share=vram_share)
        looked = time.monotonic()
        in_half = settings["dtype"] == "bf16"
        upstream = Upstream(found.root, rates=found.sample_rates, half_llm=in_half, cache_dir=Path(cache_dir))
        self._upstream = upstream
        self._watch = Watch(upstream.llm, upstream.flow)
        self._texts = Texts(upstream.text_frontend)
        with upstream.quiet():
            self._texts.warm()
        self._dictionary = pronunciation.Dictionary(upstream.pronunciations(settings["dictionary"]))
        self._voices = VoiceCache(upstream, settings["voice_cache_mib"] << 20)
        self._defaults = {name: settings[name] for name in Choices.__struct_fields__}
        self._max_segment_s = float(settings["max_segment_s"])
        parts = {"torch": looked - begun, **upstream.took}
        took = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in parts.items())
        print(f"GLM-TTS {self.version} is loaded on {device} after {time.monotonic() - begun:.1f} s: {took}")

    @property
    def voices(self) -> list[Voice]:
        """None, as every voice is that of a recording."""
        return []

    def warm_up_reference(self) -> Reference:
        """A hum, as this project includes no recording, and the licence of upstream's own does not permit every use."""
        rate = 24_000
        seconds = np.arange(3 * rate, dtype=np.float64) / rate
        hum = sum((np.sin(2 * np.pi * 140 * one * seconds) / one for one in range(1, 12)), np.zeros_like(seconds))
        loudness = 0.1 * (1 + np.sin(2 * np.pi * 4 * seconds))
        return Reference((hum * loudness).astype(np.float32), rate, _WARM_UP_TEXT, digest="")

    def synthesize(self, utterance: Utterance) -> Iterator[Piece]:
        reference = utterance.reference
        if reference is None:
            raise EngineError(
                "bad_request",
                "voice: GLM-TTS speaks with the voice of a recording: name a registered voice (glmttsctl voice add "
                "registers one), send a prompt, or have [voices] default set",
            )
        check_speakable(utterance.text)
        steps = Steps(utterance, self._max_segment_s)
        try:
            said = self._said(reference, steps)
            voice = self._voices.features(reference, said, utterance.sample_rate, steps)
            speech = Speech(
                self._upstream,
                self._watch,
                voice,
                utterance,
                choices=self._choices(utterance.options),
                texts=self._texts,
                dictionary=self._dictionary,
                warn=self._warn,
            )
            said_so_far, spoken, known = "", 0, 0
            for text in texts_of(utterance):
                if isinstance(text, Piece):
                    yield text
                    continue
                said_so_far += text
                segments = self._segments(said_so_far, text, steps)
                known += len(segments)
                for segment in segments:
                    yield Piece(speech.segment(segment, steps), spoken, known, True)
                    spoken += 1
        except SpeechCancelledError:
            return
        finally:
            # Tensors of changing sizes fragment the heap: 184 MiB after 160 jobs on a CPU; with this, 2 after 100.
            malloc.trim()

    @classmethod
    def limit_memory(cls, share: float) -> None:
        torch_memory.keep_within(share)

    def trim(self) -> None:
        torch_memory.trim()

    def memory(self) -> MemoryFigures:
        return torch_memory.figures()

    def _segments(self, whole: str, text: str, steps: Steps) -> list[str]:
        """The segments of ``text``, the end of ``whole``, which has to be one that GLM-TTS speaks."""
        check_speakable(whole)
        try:
            segments = self._texts.segments(self._normalised(text, steps))
        except EngineError as error:
            if whole == text or error.code != "bad_request":
                raise
            # Marks and signs alone, in a text that has words.
            segments = []
        steps.expect(sum(map(len, segments)))
        return segments

    def _said(self, reference: Reference, steps: Steps) -> str:
        try:
            return self._normalised(reference.text, steps)
        except EngineError as error:
            # "text:" would point to the text of the job.
            words = error.message.removeprefix("text: ")
            raise EngineError(error.code, f"the transcript of the recording: {words}") from error

    def _normalised(self, text: str, steps: Steps) -> str:
        with self._upstream.quiet():
            return self._texts.normalise(text, steps)

    def _choices(self, options: GlmttsOptions) -> Choices:
        asked = {name: getattr(options, name) for name in self._defaults}
        return Choices(**(self._defaults | {name: one for name, one in asked.items() if one is not None}))
