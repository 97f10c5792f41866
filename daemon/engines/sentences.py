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
    parts: list[str] = []
    for part in cut(text):
        if parts and (not _SPOKEN.search(part) or not _SPOKEN.search(parts[-1])):
            parts[-1] += part
        else:
            parts.append(part)
    languages = [True if _HAN.search(part) else False if _LATIN.search(part) else None for part in parts]
    current = next((language for language in languages if language is not None), False)
    sentences: list[Sentence] = []
    for part, language in zip(parts, languages, strict=True):
        current = current if language is None else language
        sentences.append(Sentence(part.strip(), current))
    return sentences


def cut(text: str) -> list[str]:
    """Cut ``text`` after each sentence with its marks and blanks; joined, the parts are ``text`` again."""
    parts: list[str] = []
    start = 0
    for match in _END.finditer(text):
        stop = match.start()
        if match[0][0] == "." and _ABBREVIATION.search(text, max(start, stop - _LONGEST_ABBREVIATION), stop):
            continue
        if match.end() > start:
            parts.append(text[start : match.end()])
            start = match.end()
    if start < len(text) or not parts:
        parts.append(text[start:])
    return parts
