"""Reads recordings and lists of jobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torchaudio


def load_wav(wav: str, target_sr: int) -> torch.Tensor:
    """The mean of the channels, of shape (1, n)."""
    speech, rate = torchaudio.load(wav)
    speech = speech.to("cuda").mean(dim=0, keepdim=True)
    if rate != target_sr:
        speech = torchaudio.transforms.Resample(orig_freq=rate, new_freq=target_sr).to("cuda")(speech).to("cuda")
    return speech


def get_jsonl(jsonl_file_path: str) -> list[dict[str, Any]]:
    names = ("uttid", "prompt_text", "prompt_speech", "syn_text")
    lines = map(json.loads, Path(jsonl_file_path).read_text(encoding="utf-8").splitlines())
    return [{name: line[name] for name in names} for line in lines]
