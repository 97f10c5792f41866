"""The configuration of the speech tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace


class WhisperVQConfig(SimpleNamespace):
    @classmethod
    def from_pretrained(cls, folder: str) -> WhisperVQConfig:
        return cls(**json.loads((Path(folder) / "config.json").read_text(encoding="utf-8")))
