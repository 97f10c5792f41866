"""What GLM-TTS needs of a recording, extracted once and kept as long as there is room.

It is kept in host memory: 10 s are 160 KiB for each rate, little to copy beside the seconds that a segment takes, and
so the GPU's memory does not depend on how many voices are in use.
"""

from __future__ import annotations

import math
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..base import Reference

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .upstream import Upstream

#: What the speech tokenizer and the speaker model listen to.
_LISTENING_RATE = 16_000
#: Elements of the filter with which torchaudio resamples between two rates. Between those that recordings have it is
#: far smaller (441 x 640 for 11,025 and 16,000 Hz); for 11,127 Hz it takes 24 s to make.
_LARGEST_FILTER = 1_000_000
#: What a list of small numbers takes for each.
_BYTES_PER_TOKEN = 8


@dataclass(slots=True)
class VoiceFeatures:
    """What was extracted; shared by all jobs that speak with it, which copy what upstream would change.

    ``text_tokens``: of shape (1, t); ``speech_tokens``: 25 a second; ``speaker``: of shape (1, 192); ``mels``: by rate,
    of shape (1, t, 80) with t 50 a second.
    """

    text: str
    text_tokens: Any
    speech_tokens: tuple[int, ...]
    speaker: Any
    mels: dict[int, Any] = field(default_factory=dict)

    def bytes(self) -> int:
        """The memory that it takes, less what is nothing beside it."""
        tensors = (self.text_tokens, self.speaker, *self.mels.values())
        return _BYTES_PER_TOKEN * len(self.speech_tokens) + sum(int(one.nbytes) for one in tensors)


class VoiceCache:
    """Extracts features, and keeps those that were used last, up to ``max_bytes``."""

    def __init__(self, upstream: Upstream, max_bytes: int) -> None:
        self._upstream = upstream
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[str, str], VoiceFeatures] = OrderedDict()

    def features(self, reference: Reference, text: str, rate: int, beat: Callable[[], None]) -> VoiceFeatures:
        """Those of a recording in which ``text`` is said, with the mel for ``rate`` among them.

        ``text`` is normalised; ``beat`` is called between the steps, which take tenths of a second.
        """
        key = (reference.digest, text)
        features = self._kept.pop(key, None) or self._extract(reference, text, beat)
        if rate not in features.mels:
            beat()
            features.mels[rate] = self._upstream.mel(self._at(reference, rate), rate).cpu()
        self._kept[key] = features
        self._make_room()
        return features

    def bytes(self) -> int:
        """The memory that all take together."""
        return sum(features.bytes() for features in self._kept.values())

    def _extract(self, reference: Reference, text: str, beat: Callable[[], None]) -> VoiceFeatures:
        samples = self._at(reference, _LISTENING_RATE)
        beat()
        speech_tokens = self._upstream.speech_tokens(samples)
        beat()
        speaker = self._upstream.speaker(samples).cpu()
        # Upstream puts a blank between what was said and what is to be said.
        return VoiceFeatures(text, self._upstream.text_tokens(text + " ").cpu(), tuple(speech_tokens), speaker)

    def _make_room(self) -> None:
        size = self.bytes()
        while size > self._max_bytes and self._kept:
            _, oldest = self._kept.popitem(last=False)
            size -= oldest.bytes()

    def _at(self, reference: Reference, rate: int) -> Any:
        """The recording as a tensor of shape (1, n) at ``rate``, on the engine's device."""
        return resampled(reference.samples, reference.sample_rate, rate, self._upstream.device)


def resampled(samples: NDArray[np.float32], rate: int, to: int, device: Any) -> Any:
    """Mono samples of shape (n,) as a tensor of shape (1, n) at another rate, by what upstream does it with too."""
    import torch

    # A copy, because samples may be read-only, which tensors can't be.
    tensor = torch.from_numpy(samples.copy()).unsqueeze(0)
    if rate == to:
        return tensor.to(device)
    common = math.gcd(rate, to)
    if (rate // common) * (to // common) <= _LARGEST_FILTER and (torchaudio := _torchaudio()) is not None:
        return torchaudio.transforms.Resample(orig_freq=rate, new_freq=to).to(device)(tensor.to(device))
    import soxr

    return torch.from_numpy(soxr.resample(samples, rate, to).astype(np.float32)).unsqueeze(0).to(device)


def _torchaudio() -> Any:
    """torchaudio, if upstream could import it: then its samples are upstream's own."""
    return sys.modules.get("torchaudio")
