"""The common part of both engines of GLM-TTS: the loaded models, the text front end, and the voices."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glmtts.protocol.events import Voice

from .. import torch_memory
from ..base import EngineBase, EngineError, MemoryFigures, Reference, Utterance
from ..cloning import hum, no_voice
from ..options import GlmttsOptions
from . import checkpoint
from .device import choose
from .front_end import FrontEnd, Pending
from .speech import Choices
from .text import check_speakable
from .upstream import Upstream
from .voices import VoiceCache


class Models(EngineBase):
    """Loads upstream's models, and the text front end beside them.

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
        # It loads in a process of its own, while this one loads the models.
        self._front_end = FrontEnd(
            found.root, Path(cache_dir), settings["dictionary"], processes=settings["text_processes"], warn=warn
        )
        try:
            device = choose(found.weights_bytes(settings["dtype"]), needs_gpu=needs_gpu, share=vram_share)
            looked = time.monotonic()
            in_half = settings["dtype"] == "bf16"
            self._upstream = Upstream(found.root, rates=found.sample_rates, half_llm=in_half, cache_dir=Path(cache_dir))
            loaded = time.monotonic()
            self._front_end.until_ready()
        except BaseException:
            # The worker's last line names the reason.
            self._front_end.close()
            raise
        self._voices = VoiceCache(self._upstream, settings["voice_cache_mib"] << 20)
        self._defaults = {name: settings[name] for name in Choices.__struct_fields__}
        self._max_segment_s = float(settings["max_segment_s"])
        parts = {"torch": looked - begun, **self._upstream.took}
        parts["wait for the text front end"] = time.monotonic() - loaded
        took = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in parts.items())
        print(f"GLM-TTS {self.version} is loaded on {device} after {time.monotonic() - begun:.1f} s: {took}")

    @property
    def voices(self) -> list[Voice]:
        """None, as every voice is that of a recording."""
        return []

    def warm_up_reference(self) -> Reference:
        return hum()

    @classmethod
    def limit_memory(cls, share: float) -> None:
        torch_memory.keep_within(share)

    def trim(self) -> None:
        torch_memory.trim()

    def memory(self) -> MemoryFigures:
        return torch_memory.figures()

    def close(self) -> None:
        self._front_end.close()

    def _checked(self, utterance: Utterance) -> tuple[Reference, Choices]:
        """A job's recording, and its settings. Raises EngineError for a job that can't be spoken."""
        reference = utterance.reference
        if reference is None:
            raise no_voice("GLM-TTS")
        check_speakable(utterance.text)
        asked = {name: getattr(utterance.options, name) for name in self._defaults}
        return reference, Choices(**(self._defaults | {name: one for name, one in asked.items() if one is not None}))


def transcript_of(pending: Pending) -> str:
    """The normalised transcript of a recording, which has ended. Raises EngineError."""
    if (error := pending.error) is not None:
        # "text:" would point to the text of the job.
        words = error.message.removeprefix("text: ")
        message = f"the transcript of the recording: {words}"
        raise EngineError(error.code, message, fatal=error.fatal, quotes=error.quotes) from error
    assert pending.normalised is not None
    return pending.normalised


def check_pending(pending: Pending, *, is_all: bool) -> None:
    """Raise the error of a text; a later piece of a text may consist of marks and signs alone."""
    if (error := pending.error) is not None:
        harmless = pending.texts is None and not is_all and error.code == "bad_request"
        if not harmless:
            raise error
