"""Mel spectrograms. The filters are kept by their highest frequency and device: the second rate raises RuntimeError."""

from __future__ import annotations

import torch

mel_basis: dict[str, torch.Tensor] = {}
hann_window: dict[str, torch.Tensor] = {}


def mel_spectrogram(
    y: torch.Tensor,
    n_fft: int,
    num_mels: int,
    sampling_rate: int,
    hop_size: int,
    win_size: int,
    fmin: float,
    fmax: float,
    center: bool = False,
) -> torch.Tensor:
    if torch.min(y) < -1.0:
        print("min value is ", torch.min(y))
    if torch.max(y) > 1.0:
        print("max value is ", torch.max(y))
    key, device = f"{fmax}_{y.device}", str(y.device)
    if key not in mel_basis:
        mel_basis[key] = _filters(sampling_rate, n_fft, num_mels, fmin, fmax).to(y.device)
        hann_window[device] = torch.hann_window(win_size).to(y.device)
    edge = (n_fft - hop_size) // 2
    padded = torch.nn.functional.pad(y.unsqueeze(1), (edge, edge), mode="reflect").squeeze(1)
    spectrum = torch.stft(
        padded,
        n_fft,
        hop_length=hop_size,
        win_length=win_size,
        window=hann_window[device],
        center=center,
        return_complex=True,
    )
    power = (mel_basis[key] @ spectrum.abs()).clamp(min=1e-5)
    return power.log()


def _filters(rate: int, n_fft: int, count: int, lowest: float, highest: float) -> torch.Tensor:
    """Triangles, equally wide on the mel scale."""

    def mel(hz: float) -> torch.Tensor:
        return 1_127 * torch.log1p(torch.tensor(hz / 700.0))

    edges = 700 * torch.expm1(torch.linspace(float(mel(lowest)), float(mel(highest)), count + 2) / 1_127)
    bins = torch.linspace(0, rate / 2, n_fft // 2 + 1)
    rise = (bins[None] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins[None]) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rise, fall).clamp(min=0) * (2 / (edges[2:] - edges[:-2]))[:, None]
