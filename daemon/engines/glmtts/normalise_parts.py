"""Cut a text into parts that upstream's normaliser takes one by one, and put together what it made of them.

Normalising holds the GIL from beginning to end, so a long text would stop all beats. A part is normalised with a word
behind it that stands for the text that follows and is taken off again: so upstream doesn't take its end for the end of
the text, and reads a part of a Chinese text as Chinese even where it has no Chinese character of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from ..sentences import cut

#: What upstream takes for Chinese; one such character and all of a text is read by its Chinese normaliser.
HAN = re.compile("[一-鿿]")
#: Estimated milliseconds that a part may take. Measured: 0.3-0.6 s on a core at rest.
LIMIT_MS = 300.0

_DIGIT = re.compile(r"\d")
_CLAUSE = re.compile(r"[^,，、:：]*[,，、:：]+\s*|[^,，、:：]+")
_WORD = re.compile(r"\s*\S+\s*|\s+")
_ALNUM = re.compile(r"[^\W_]")
_OF_WORDS = re.compile(r"[^\W_一-鿿]")

#: Stand for what follows a part: words that no rule of the normalisers changes or joins with what is before them.
_ENGLISH = "and"
_CHINESE = "好"
_MARKS = "。？！；：、.?!;:，,"


@dataclass(frozen=True, slots=True)
class Part:
    """A part, and what is to be normalised in its place; ``tail`` is then taken off the end of the result."""

    source: str
    tail: str


def is_chinese(text: str) -> bool:
    """Whether upstream reads ``text`` by its Chinese normaliser."""
    return HAN.search(text) is not None


def cost_ms(text: str, chinese: bool) -> float:
    """How long normalising ``text`` takes at most, in ms, by what each kind of character took on a core at rest."""
    digits = len(_DIGIT.findall(text))
    if chinese:
        return 0.5 * len(text) + 0.5 * digits
    return 1.0 * len(text) + 5.0 * digits


def parts(text: str) -> list[Part]:
    """``text`` in parts within :data:`LIMIT_MS`, cut behind sentences; else behind clauses, words, anywhere."""
    chinese = is_chinese(text)
    pieces = [text]
    splitters: tuple[Callable[[str], list[str]], ...] = (cut, _CLAUSE.findall, _WORD.findall, list)
    for split in splitters:
        smaller: list[str] = []
        for piece in pieces:
            smaller.extend([piece] if cost_ms(piece, chinese) <= LIMIT_MS else split(piece))
        pieces = smaller
    packed: list[str] = []
    room = 0.0
    for piece in pieces:
        cost = cost_ms(piece, chinese)
        if packed and cost <= room:
            packed[-1] += piece
            room -= cost
        else:
            packed.append(piece)
            room = LIMIT_MS - cost
    return [
        _part(packed[number], packed[number + 1] if number + 1 < len(packed) else "", number > 0, chinese)
        for number in range(len(packed))
    ]


def _part(text: str, following: str, inner: bool, chinese: bool) -> Part:
    # A line break first, which upstream drops: a number with a full stop at the very beginning is a list to it.
    begin = "\n" if inner else ""
    if not following:
        if chinese == is_chinese(text):
            return Part(f"{begin}{text}", "")
        return Part(f"{begin}{text}\n{_CHINESE}", f"{_CHINESE}。")
    if _OF_WORDS.match(text[-1]) and _OF_WORDS.match(following):
        # Cut within a word or a number: what upstream puts behind it is taken off, and nothing stands for the rest.
        return Part(f"{begin}{text}。{_CHINESE}", f"。{_CHINESE}。") if chinese else Part(f"{begin}{text}", ".")
    if not chinese:
        return Part(f"{begin}{text}{'' if text[-1].isspace() else ' '}{_ENGLISH}", f"{_ENGLISH}.")
    first = _ALNUM.search(following)
    word = _CHINESE if first is None or HAN.match(first[0]) else f"{_ENGLISH}{_CHINESE}"
    return Part(f"{begin}{text}{word}", f"{word}。")


def join(normalised: list[str]) -> str:
    """The parts' results as one, as upstream would have it: of two marks that meet, the second stays."""
    whole = ""
    for text in normalised:
        if text and text[0] in _MARKS:
            whole = whole.rstrip(_MARKS + " ")
        whole += text
    if whole and whole[-1] in _MARKS and whole[-1] not in "?？":
        return whole[:-1] + ("。" if is_chinese(whole) else ".")
    return whole
