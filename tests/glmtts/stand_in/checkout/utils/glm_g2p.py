"""Phonemes of Chinese characters: not the right ones, but always the same."""

from __future__ import annotations

import logging

from vocabulary import FINALS, INITIALS

logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")


def is_chinese(char: str) -> bool:
    return "\u3400" <= char <= "\u4dbf" or "\u4e00" <= char <= "\u9fff" or "\U00020000" <= char <= "\U000323af"


class G2P_zh:
    def __call__(self, text: str | list[str]) -> list[list[str]]:
        return [
            [phoneme for char in one for phoneme in _of(char)] for one in ([text] if isinstance(text, str) else text)
        ]


def process_one(text: str, tokenizer: G2P_zh) -> list[str]:
    return tokenizer([text.strip()])[0]


def _of(char: str) -> list[str]:
    code = ord(char)
    return [INITIALS[code % len(INITIALS)], f"{FINALS[code % len(FINALS)]}{1 + code % 5}"]
