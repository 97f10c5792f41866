"""Features of speech: how loud and how bright each hundredth of a second is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch


class Features(dict[str, Any]):
    """As a ``BatchFeature``: a mapping whose entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def to(self, device: Any) -> Features:
        return Features({name: tensor.to(device) for name, tensor in self.items()})


class WhisperFeatureExtractor:
    def __init__(self, hop_length: int = 160, n_fft: int = 400, **_: Any) -> None:
        self.hop_length = hop_length
        self.n_fft = n_fft

    @classmethod
    def from_pretrained(cls, folder: str, **_: Any) -> WhisperFeatureExtractor:
        return cls(**json.loads((Path(folder) / "preprocessor_config.json").read_text(encoding="utf-8")))

    def __call__(
        self,
        audios: list[Any],
        *,
        sampling_rate: int,
        device: Any = "cpu",
        pad_to_multiple_of: int = 1,
        **_: Any,
    ) -> Features:
        if sampling_rate != 16_000:
            raise ValueError(f"sampling_rate: {sampling_rate}")
        longest = -(-max(len(audio) for audio in audios) // pad_to_multiple_of) * pad_to_multiple_of
        window = torch.hann_window(self.n_fft, device=device)
        batch = torch.zeros(len(audios), longest, device=device)
        mask = torch.zeros(len(audios), longest // self.hop_length, dtype=torch.long, device=device)
        for row, audio in enumerate(audios):
            batch[row, : len(audio)] = torch.from_numpy(audio).to(device)
            mask[row, : -(-len(audio) // self.hop_length)] = 1
        half = self.n_fft // 2
        padded = torch.nn.functional.pad(batch, (half, half))
        spectrum = torch.stft(padded, self.n_fft, self.hop_length, window=window, center=False, return_complex=True)
        power = spectrum.abs()[..., : longest // self.hop_length].clamp(min=1e-5)
        loudness = power.mean(1).log()
        bins = torch.arange(power.shape[1], device=device, dtype=power.dtype)
        brightness = (power * bins[None, :, None]).sum(1) / power.sum(1)
        return Features(input_features=torch.stack([loudness, brightness], 1), attention_mask=mask)
