"""A checkpoint's files as torch itself writes them; all else of them is tested without torch."""

from __future__ import annotations

from pathlib import Path

import torch

from glmtts.daemon.engines.glmtts.checkpoint import look

from ..engines.glmtts import glmtts_root as made


def test_what_torch_saves_is_counted_and_believed(tmp_path: Path) -> None:
    root = made.make(tmp_path / "GLM-TTS")
    torch.save({"model": {"a": torch.zeros(30, 7), "b": torch.ones(11)}}, root / "ckpt/flow/flow.pt")
    torch.save({"a": torch.ones(90)}, root / "ckpt/hift/hift.pt", _use_new_zipfile_serialization=False)
    found = look(root).parameters
    assert found["flow"] == 221
    assert 90 <= found["hift"] < 1_000, "before torch 1.6 no zip file: its size alone is known"
