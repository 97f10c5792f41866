"""The engine: GLM-TTS speaks with the voice of a recording, segment by segment."""

from __future__ import annotations

import contextlib
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
from . import checkpoint
from .device import choose
from .front_end import FrontEnd, Pending
from .speech import Choices, Speech, SpeechCancelledError, Steps
from .text import check_speakable
from .text_tasks import Prepared
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
        # It loads while this process does.
        self._front_end = FrontEnd(
            found.root, Path(cache_dir), settings["dictionary"], processes=settings["text_processes"], warn=warn
        )
        device = choose(found.weights_bytes(settings["dtype"]), needs_gpu=needs_gpu, share=vram_share)
        looked = time.monotonic()
        in_half = settings["dtype"] == "bf16"
        upstream = Upstream(found.root, rates=found.sample_rates, half_llm=in_half, cache_dir=Path(cache_dir))
        self._upstream = upstream
        self._watch = Watch(upstream.llm, upstream.flow)
        loaded = time.monotonic()
        self._front_end.until_ready()
        self._voices = VoiceCache(upstream, settings["voice_cache_mib"] << 20)
        self._defaults = {name: settings[name] for name in Choices.__struct_fields__}
        self._max_segment_s = float(settings["max_segment_s"])
        parts = {"torch": looked - begun, **upstream.took, "wait for the text front end": time.monotonic() - loaded}
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
        choices = self._choices(utterance.options)
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

    @classmethod
    def limit_memory(cls, share: float) -> None:
        torch_memory.keep_within(share)

    def trim(self) -> None:
        torch_memory.trim()

    def memory(self) -> MemoryFigures:
        return torch_memory.figures()

    def close(self) -> None:
        self._front_end.close()

    @contextlib.contextmanager
    def _asked(self, whole: str, text: str, choices: Choices, steps: Steps) -> Iterator[Pending]:
        """``text``, the end of ``whole``, which has to be one that GLM-TTS speaks, with its segments known."""
        check_speakable(whole)
        pending = self._front_end.ask(text, use_phoneme=choices.use_phoneme)
        try:
            self._front_end.wait(lambda: pending.texts is not None or pending.ended, steps)
            # Marks and signs alone are no error in a text that has words.
            if pending.error is not None and (whole == text or pending.error.code != "bad_request"):
                raise pending.error
            steps.expect(sum(map(len, pending.texts or ())))
            yield pending
        finally:
            self._front_end.drop(pending)

    def _next(self, pending: Pending, steps: Steps) -> Prepared | None:
        """The next segment; None after the last."""
        self._front_end.wait(lambda: bool(pending.ready) or pending.ended, steps)
        segment = pending.take()
        if segment is None and pending.error is not None and pending.texts is not None:
            raise pending.error
        return segment

    def _said(self, reference: Reference, steps: Steps) -> str:
        pending = self._front_end.ask_transcript(reference.text)
        try:
            self._front_end.wait(lambda: pending.ended, steps)
        finally:
            self._front_end.drop(pending)
        if (error := pending.error) is not None:
            # "text:" would point to the text of the job.
            words = error.message.removeprefix("text: ")
            message = f"the transcript of the recording: {words}"
            raise EngineError(error.code, message, fatal=error.fatal, quotes=error.quotes) from error
        assert pending.normalised is not None
        return pending.normalised

    def _choices(self, options: GlmttsOptions) -> Choices:
        asked = {name: getattr(options, name) for name in self._defaults}
        return Choices(**(self._defaults | {name: one for name, one in asked.items() if one is not None}))
