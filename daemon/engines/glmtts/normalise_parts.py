"""Cuts a text into parts for upstream's normaliser, and joins the results.

Normalising holds the GIL, so a long text would stop all beats. A part is normalised with a word after it that stands
for the rest of the text and is then removed: so upstream does not treat the part's end as the end of the text, and
reads a part of a Chinese text as Chinese even if the part has no Chinese character.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from ..sentences import cut

#: Upstream reads a whole text with its Chinese normaliser if it has one such character.
HAN = re.compile("[一-鿿]")
#: The estimated time of a part, in ms. Measured: 0.3 to 0.6 s on an idle core.
LIMIT_MS = 300.0

_DIGIT = re.compile(r"\d")
_CLAUSE = re.compile(r"[^,，、:：]*[,，、:：]+\s*|[^,，、:：]+")
_WORD = re.compile(r"\s*\S+\s*|\s+")
_ALNUM = re.compile(r"[^\W_]")
_OF_WORDS = re.compile(r"[^\W_一-鿿]")

#: Words that stand for the rest of the text: no rule of the normalisers changes them or joins them with a word.
_ENGLISH = "and"
_CHINESE = "好"
_MARKS = "。？！；：、.?!;:，,"


@dataclass(frozen=True, slots=True)
class Part:
    """The input of the normaliser for a part, and the ``tail`` to remove from its result."""

    source: str
    tail: str


def is_chinese(text: str) -> bool:
    """Whether upstream reads ``text`` with its Chinese normaliser."""
    return HAN.search(text) is not None


def cost_ms(text: str, chinese: bool) -> float:
    """The longest time for normalising ``text``, in ms, from the measured time of each kind of character."""
    digits = len(_DIGIT.findall(text))
    if chinese:
        return 0.5 * len(text) + 0.5 * digits
    return 1.0 * len(text) + 5.0 * digits


def parts(text: str) -> list[Part]:
    """The parts of ``text``, each within :data:`LIMIT_MS`, cut after sentences, else clauses, words, characters."""
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
    # Upstream drops a leading line break; without one it reads a number with a full stop at the start as a list.
    begin = "\n" if inner else ""
    if not following:
        if chinese == is_chinese(text):
            return Part(f"{begin}{text}", "")
        return Part(f"{begin}{text}\n{_CHINESE}", f"{_CHINESE}。")
    if _OF_WORDS.match(text[-1]) and _OF_WORDS.match(following):
        # Within a word or a number nothing can stand for the rest; only upstream's own end mark is removed.
        return Part(f"{begin}{text}。{_CHINESE}", f"。{_CHINESE}。") if chinese else Part(f"{begin}{text}", ".")
    if not chinese:
        return Part(f"{begin}{text}{'' if text[-1].isspace() else ' '}{_ENGLISH}", f"{_ENGLISH}.")
    first = _ALNUM.search(following)
    word = _CHINESE if first is None or HAN.match(first[0]) else f"{_ENGLISH}{_CHINESE}"
    return Part(f"{begin}{text}{word}", f"{word}。")


def join(normalised: list[str]) -> str:
    """Join the parts' results; of two marks that meet, keep the second, as upstream does."""
    whole = ""
    for text in normalised:
        if text and text[0] in _MARKS:
            whole = whole.rstrip(_MARKS + " ")
        whole += text
    if whole and whole[-1] in _MARKS and whole[-1] not in "?？":
        return whole[:-1] + ("。" if is_chinese(whole) else ".")
    return whole
