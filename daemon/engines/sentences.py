"""Splits a text into sentences, and finds which of them are Chinese."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: Ideographs: the Unified blocks with their extensions, the compatibility block, and the ideographic zero.
_HAN = re.compile("[㐀-䶿一-鿿豈-﫿𠀀-𳑿〇]")
_LATIN = re.compile("[A-Za-zÀ-ɏ]")
_SPOKEN = re.compile(r"[^\W_]")

#: The end of a sentence: a mark with its closing quotes and brackets, a line break, or a full stop before a blank or
#: the end of the text (so "3.14", "v1.2" and "example.org" stay whole).
_END = re.compile(r"""[。！？!?;；…]+["'”’」』）)\]]*\s*|\.+["'”’)\]]*(?:\s+|$)|\s*\n\s*""")
#: A full stop after one of these, or after a single letter, does not end a sentence.
_ABBREVIATION = re.compile(
    r"(?<![^\s(\"'])(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|Gen|Col|Capt|Lt|Rev|Hon|vs|[Ff]ig|Eq|Sec|Vol|cf|ca|approx"
    r"|(?:[A-Za-z]\.)*[A-Za-z])$"
)
_LONGEST_ABBREVIATION = 16


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence, and whether to speak it as Chinese."""

    text: str
    has_han: bool


def split(text: str) -> list[Sentence]:
    """The sentences of ``text``, at least one.

    A sentence without a letter of either script ("2024.") has the language of the one before it; at the beginning, of
    the one after it. A part with nothing to speak joins its neighbour, for its pause.
    """
    return Splitter().add(text)


class Splitter:
    """Splits a text that comes in pieces as :func:`split` does the whole; each piece ends where a sentence does."""

    def __init__(self) -> None:
        self._text = ""
        self._has_han: bool | None = None

    def add(self, piece: str) -> list[Sentence]:
        """The sentences of one more piece, at least one."""
        start, self._text = len(self._text), self._text + piece
        parts = _spoken_parts(self._text, start)
        languages = [_has_han(part) for part in parts]
        if self._has_han is None:
            self._has_han = next((language for language in languages if language is not None), None)
        sentences: list[Sentence] = []
        for part, language in zip(parts, languages, strict=True):
            self._has_han = self._has_han if language is None else language
            sentences.append(Sentence(part.strip(), bool(self._has_han)))
        return sentences


def whole(text: str, start: int = 0) -> int:
    """Up to where a text that still grows can be spoken, if it was spoken up to ``start``: no more text changes the
    sentences before that place, nor how they are read."""
    *done, _ = _spoken_parts(text, start)
    # A number at the beginning is read in the language of the words after it.
    if not start and all(_has_han(part) is None for part in done):
        return 0
    return start + sum(map(len, done))


def _spoken_parts(text: str, start: int) -> list[str]:
    """The parts of ``text`` from ``start`` on, each with something to speak if there is anything."""
    parts: list[str] = []
    for part in cut(text, start):
        if parts and (not _SPOKEN.search(part) or not _SPOKEN.search(parts[-1])):
            parts[-1] += part
        else:
            parts.append(part)
    return parts


def _has_han(text: str) -> bool | None:
    """Whether a text is Chinese; None for one without a letter of either script."""
    return True if _HAN.search(text) else False if _LATIN.search(text) else None


def cut(text: str, start: int = 0) -> list[str]:
    """Cut ``text`` after each sentence with its marks and blanks; joined, the parts are ``text`` from ``start`` on."""
    parts: list[str] = []
    for match in _END.finditer(text, start):
        stop = match.start()
        if match[0][0] == "." and _ABBREVIATION.search(text, max(start, stop - _LONGEST_ABBREVIATION), stop):
            continue
        if match.end() > start:
            parts.append(text[start : match.end()])
            start = match.end()
    if start < len(text) or not parts:
        parts.append(text[start:])
    return parts
