"""A recording's features, extracted once and cached in host memory.

10 s of a recording are 160 KiB for each rate: copying them is quick beside the seconds of a segment, and the use of GPU
memory does not depend on the number of voices.
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

#: The input rate of the speech tokenizer and the speaker model, in Hz.
_LISTENING_RATE = 16_000
#: Most elements of torchaudio's filter for resampling. Usual rates need far fewer (441 x 640 for 11,025 to 16,000 Hz);
#: the filter for 11,127 Hz takes 24 s to make.
_LARGEST_FILTER = 1_000_000
_BYTES_PER_TOKEN = 8


@dataclass(slots=True)
class VoiceFeatures:
    """A recording's features, shared by the jobs that use them, which copy what upstream modifies.

    ``text_tokens``: of shape (1, t); ``speech_tokens``: 25 a second; ``speaker``: of shape (1, 192); ``mels``: by rate,
    of shape (1, t, 80) with t 50 a second; ``modulations``: the flow model's, kept once it has computed them.
    """

    text: str
    text_tokens: Any
    speech_tokens: tuple[int, ...]
    speaker: Any
    mels: dict[int, Any] = field(default_factory=dict)
    modulations: tuple[Any, ...] | None = None

    def bytes(self) -> int:
        """Their size in memory, about."""
        tensors = (self.text_tokens, self.speaker, *self.mels.values(), *(self.modulations or ()))
        return _BYTES_PER_TOKEN * len(self.speech_tokens) + sum(int(one.nbytes) for one in tensors)


class VoiceCache:
    """Extracts features, and keeps the most recently used ones, up to ``max_bytes``."""

    def __init__(self, upstream: Upstream, max_bytes: int) -> None:
        self._upstream = upstream
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[str, str], VoiceFeatures] = OrderedDict()

    def features(self, reference: Reference, text: str, rate: int, beat: Callable[[], None]) -> VoiceFeatures:
        """The features of a recording, including the mel for ``rate``.

        ``text``: the recording's normalised transcript; ``beat``: called between steps of some tenths of a second.
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
        """The size of all cached features."""
        return sum(features.bytes() for features in self._kept.values())

    def _extract(self, reference: Reference, text: str, beat: Callable[[], None]) -> VoiceFeatures:
        samples = self._at(reference, _LISTENING_RATE)
        beat()
        speech_tokens = self._upstream.speech_tokens(samples)
        beat()
        speaker = self._upstream.speaker(samples).cpu()
        # Upstream puts a blank between the transcript and the text.
        return VoiceFeatures(text, self._upstream.text_tokens(text + " ").cpu(), tuple(speech_tokens), speaker)

    def _make_room(self) -> None:
        size = self.bytes()
        # Modulations are many times larger than the rest, and a GPU computes them again in milliseconds.
        for features in self._kept.values():
            if size > self._max_bytes:
                size -= features.bytes()
                features.modulations = None
                size += features.bytes()
        while size > self._max_bytes and self._kept:
            _, oldest = self._kept.popitem(last=False)
            size -= oldest.bytes()

    def _at(self, reference: Reference, rate: int) -> Any:
        """The recording as a tensor of shape (1, n) at ``rate``, on the engine's device."""
        return resampled(reference.samples, reference.sample_rate, rate, self._upstream.device)


def resampled(samples: NDArray[np.float32], rate: int, to: int, device: Any) -> Any:
    """Mono samples of shape (n,) as a tensor of shape (1, n) at another rate, with upstream's own resampler."""
    import torch

    # A copy, because samples may be read-only.
    tensor = torch.from_numpy(samples.copy()).unsqueeze(0)
    if rate == to:
        return tensor.to(device)
    common = math.gcd(rate, to)
    if (rate // common) * (to // common) <= _LARGEST_FILTER and (torchaudio := _torchaudio()) is not None:
        return torchaudio.transforms.Resample(orig_freq=rate, new_freq=to).to(device)(tensor.to(device))
    import soxr

    return torch.from_numpy(soxr.resample(samples, rate, to).astype(np.float32)).unsqueeze(0).to(device)


def _torchaudio() -> Any:
    """torchaudio if upstream has imported it, which gives upstream's own samples."""
    return sys.modules.get("torchaudio")
