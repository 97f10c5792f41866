"""Splits normalised text into segments by upstream's measure, for texts on which upstream's own splitting raises.

A segment ends at the first mark after 30 characters, and has at most 60. A Chinese character or a mark counts as one,
a syllable of an English word as 0.7 (upstream looks syllables up in a dictionary; here vowels are counted). Upstream
raises for a stretch without a mark that exceeds 60 in fewer than 61 words and characters; here it is cut at a blank.
"""

from __future__ import annotations

import re

LEAST = 30
MOST = 60
#: Marks that may end a segment.
MARKS = "。？！；：、.?!;:，,"
#: Upstream's time grows with the square of a stretch without a mark.
LONGEST_STRETCH = 3_000

_STRETCH = re.compile(rf"[^{re.escape(MARKS)}]{{{LONGEST_STRETCH},}}")
_UNIT = re.compile(r"(?:[⺀-鿿豈-﫿𠀀-𳑿]|[^\W\d_⺀-鿿豈-﫿𠀀-𳑿](?:[^\W\d_⺀-鿿豈-﫿𠀀-𳑿]|['-])*|\S)\s*")
_VOWELS = re.compile(r"(?!e\b)[aeiouy]+")
_PER_SYLLABLE = 0.7
#: The end of a clause: a Chinese mark, or a Latin one before a blank. The blanks belong to the clause.
_CLAUSE = re.compile(r"[。？！；：，、]\s*|[.?!;:,]\s+")
#: A clause has this length at least, in the measure above: about a second of speech. So does what follows it.
_LEAST_CLAUSE = 5
#: Longer words are cut.
_LONGEST_WORD = 40


def has_long_stretch(text: str) -> bool:
    """Whether upstream would be slow on ``text``."""
    return _STRETCH.search(text) is not None


def split(text: str) -> list[str]:
    """The segments of ``text``; joined, they are ``text`` without the blanks at its ends."""
    segments: list[str] = []
    units: list[str] = []
    length = 0.0
    for unit in _units(text.strip()):
        size = _size(unit)
        if units and length + size > MOST:
            stop = _best_end(units)
            segments.append("".join(units[:stop]))
            units = units[stop:]
            length = sum(map(_size, units))
        units.append(unit)
        length += size
        if length >= LEAST and unit.strip() in MARKS:
            segments.append("".join(units))
            units, length = [], 0.0
    if units:
        segments.append("".join(units))
    return segments


def merge_silent(segments: list[str]) -> list[str]:
    """Join each segment of marks alone to the one before it, or at the beginning to the one after it."""
    merged: list[str] = []
    silent = ""
    for segment in segments:
        if not is_spoken(segment):
            if merged:
                merged[-1] += segment
            else:
                silent += segment
        else:
            merged.append(silent + segment)
            silent = ""
    return merged


def cut_first_clause(segments: list[str]) -> list[str]:
    """Cut the first segment after its first clause, so that its audio comes sooner; joined, the text is the same."""
    first = segments[0] if segments else ""
    for end in _CLAUSE.finditer(first):
        clause, rest = first[: end.end()], first[end.end() :]
        if all(sum(map(_size, _units(part))) >= _LEAST_CLAUSE and is_spoken(part) for part in (clause, rest)):
            return [clause, rest, *segments[1:]]
    return segments


def is_spoken(text: str) -> bool:
    """Whether ``text`` has a letter or a digit of any script."""
    return any(map(str.isalnum, text))


def _units(text: str) -> list[str]:
    units: list[str] = []
    for unit in _UNIT.findall(text):
        units.extend(unit[start : start + _LONGEST_WORD] for start in range(0, len(unit), _LONGEST_WORD))
    return units


def _size(unit: str) -> float:
    word = unit.strip()
    if word.isascii() and word.isalpha():
        return _PER_SYLLABLE * max(len(_VOWELS.findall(word.lower())), 1)
    return 1.0


def _best_end(units: list[str]) -> int:
    """The number of units before the cut: up to the last blank or mark after :data:`LEAST`, else all."""
    length = 0.0
    best = 0
    for number, unit in enumerate(units, 1):
        length += _size(unit)
        if length >= LEAST and (unit[-1].isspace() or unit[-1] in MARKS):
            best = number
    return best or len(units)
