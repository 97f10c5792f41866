"""The tokenizer, from the files that upstream's has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vocabulary import encode


class Tokenizer:
    """Knows its special tokens by ``tokenizer_config.json``."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        self._special = {token["content"]: int(id) for id, token in config["added_tokens_decoder"].items()}
        if not (folder / "tokenizer.model").read_bytes():
            raise ValueError(f"{folder}/tokenizer.model is empty")

    def encode(self, text: str, **_: Any) -> list[int]:
        return encode(text, self._special)

    def get_added_vocab(self) -> dict[str, int]:
        return dict(self._special)


class AutoTokenizer:
    @staticmethod
    def from_pretrained(folder: str, trust_remote_code: bool = False, **_: Any) -> Tokenizer:
        if not trust_remote_code:
            raise ValueError(f"{folder} has code of its own: trust_remote_code=True is needed")
        return Tokenizer(Path(folder))
