"""The numbers of the stand-in's tokens: far fewer for text than upstream has, and as many for audio."""

from __future__ import annotations

import re
import zlib

from mischief import NUMBERS

#: Text is hashed into these: a Chinese character, or up to three Latin letters, is one token.
TEXT = 1_000
END_OF_TEXT = 1_000
USER = 1_007
BEGIN_OF_AUDIO = 1_010
MISCHIEF = 1_020
PHONEMES = 1_100
FIRST_AUDIO = 2_048
AUDIO = 32_768
SIZE = FIRST_AUDIO + AUDIO + 64

INITIALS = tuple("b c ch d f g h j k l m n p q r s sh t x z zh".upper().split())
FINALS = tuple(
    (
        "a ai an ang ao e ei en eng er i ia ian iang iao ie ii in ing iong iou o ong ou u ua uai uan uang uei uen ueng "
        "uo v van ve vn"
    )
    .upper()
    .split()
)
PHONEME_NAMES = [*INITIALS, *(f"{final}{tone}" for final in FINALS for tone in range(1, 6))]

_PIECES = re.compile(r"<\|[^|<>]*\|>|" + "|".join(map(re.escape, NUMBERS)) + r"|\s?[A-Za-z]{1,3}|.", re.DOTALL)


def special_tokens() -> dict[str, int]:
    """Every token that has a name."""
    names = {"<|endoftext|>": END_OF_TEXT, "<|user|>": USER, "<|begin_of_audio|>": BEGIN_OF_AUDIO}
    names |= {f"<|{name}|>": PHONEMES + number for number, name in enumerate(PHONEME_NAMES)}
    return names | {f"<|audio_{number}|>": FIRST_AUDIO + number for number in range(AUDIO)}


def encode(text: str, special: dict[str, int]) -> list[int]:
    """The tokens of a text."""
    tokens = []
    for piece in _PIECES.findall(text):
        if piece in special:
            tokens.append(special[piece])
        elif piece in NUMBERS:
            tokens.append(MISCHIEF + NUMBERS[piece])
        elif piece.startswith("<|"):
            tokens += encode("<", special) + encode(piece[1:], special)
        else:
            tokens.append(zlib.crc32(piece.encode("utf-8", "surrogatepass")) % TEXT)
    return tokens
