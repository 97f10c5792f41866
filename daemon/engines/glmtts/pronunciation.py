"""The user's pronunciation dictionary: reads its file, and applies it to a text.

The file has the format of upstream's ``configs/G2P_replace_dict.jsonl``: one JSON object a line, words with their
readings, which may contain phoneme tokens such as ``<|X|><|IAN2|>``. Words are replaced in normalised text, which is in
lower case and has its numbers written out, before it reaches the tokenizer.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from glmtts.protocol.text_encodings import conversion
from glmtts.protocol.texts import fold

#: Largest dictionary, in bytes: some hundred thousand words.
MAX_BYTES = 8 * 1024 * 1024
#: Longest word and longest reading, in characters.
MAX_WORD = 64
MAX_READING = 1_024
#: Most problems in one error.
MAX_PROBLEMS = 20

_TOKEN = re.compile(r"(<\|[^<>|]*\|>)")
_BROKEN_TOKEN = re.compile(r"<\||\|>")
#: Characters that form words: next to another one, a word is part of a longer word.
_OF_WORDS = re.compile(r"[A-Za-zÀ-ÖØ-öø-ɏ0-9]")


class Dictionary:
    """Replaces words by their readings, the longest word first.

    A word that begins or ends with a Latin letter or a digit is only found where no such character is next to it: "us"
    not in "bus", but in "我们us". Case is ignored. Tokens, ``<|...|>``, and readings are not searched.
    """

    def __init__(self, entries: Mapping[str, str]) -> None:
        self._readings = {_fold(word): reading for word, reading in entries.items()}
        # One lookup for each length of the words that begin with a character.
        lengths: dict[str, set[int]] = {}
        for word in self._readings:
            lengths.setdefault(word[0], set()).add(len(word))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}

    def __len__(self) -> int:
        return len(self._readings)

    def apply(self, text: str, otherwise: Callable[[str], str] = str) -> str:
        """``text`` with its words replaced; ``otherwise`` converts the text between them."""
        return "".join(piece if is_final else otherwise(piece) for piece, is_final in self.fragments(text))

    def fragments(self, text: str) -> list[tuple[str, bool]]:
        """``text`` in pieces, and whether each is final: a reading or a token."""
        if not self._readings:
            return [(text, False)] if text else []
        found: list[tuple[str, bool]] = []
        for number, part in enumerate(_TOKEN.split(text)):
            if number % 2:
                found.append((part, True))
            elif part:
                found.extend(self._replace(part))
        return found

    def _replace(self, text: str) -> Iterator[tuple[str, bool]]:
        folded = _fold(text)
        start = place = 0
        while place < len(text):
            word = self._word_at(folded, place)
            if word:
                if start < place:
                    yield text[start:place], False
                yield self._readings[word], True
                start = place + len(word)
            place += max(len(word), 1)
        if start < len(text):
            yield text[start:], False

    def _word_at(self, folded: str, place: int) -> str:
        for length in self._lengths.get(folded[place], ()):
            word = folded[place : place + length]
            if word in self._readings and _is_whole(folded, place, place + length):
                return word
        return ""


def load(path: Path, is_token: Callable[[str], bool], known: Collection[str] = ()) -> dict[str, str]:
    """The words of the file, in lower case, with their readings.

    Args:
        path: The dictionary.
        is_token: Whether the tokenizer has ``<|X|>`` as one token.
        known: Names of phonemes, such as ``IAN2``, to suggest in place of an unknown one.

    Raises:
        OSError: The file can't be read.
        ValueError: A line for each problem, as ``FILE:LINE: ...``.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path}: is larger than {MAX_BYTES // 2**20} MiB, the most that a dictionary may have")
    try:
        content.decode()
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        bad = content.splitlines()[number - 1 : number] or [content]
        words = conversion(content, bad[0], path, "dictionary.jsonl")
        raise ValueError(f"{path}:{number}: is not UTF-8. {words}") from None
    readings: dict[str, str] = {}
    lines: dict[str, int] = {}
    problems: list[str] = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith(b"#"):
            continue
        try:
            pairs = _pairs(stripped)
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
            continue
        for word, reading in pairs:
            key = _fold(word)
            if readings.get(key, reading) != reading:
                problems.append(
                    f"{path}:{number}: {word!r}: has another reading on line {lines[key]}; leave one of the two"
                )
                continue
            problems.extend(f"{path}:{number}: {word!r}: {what}" for what in _problems(word, reading, is_token, known))
            readings.setdefault(key, reading)
            lines.setdefault(key, number)
    if problems:
        more = [f"and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else []
        raise ValueError("\n".join(problems[:MAX_PROBLEMS] + more))
    return readings


def _pairs(line: bytes) -> list[tuple[str, str]]:
    """The words of a line with their readings, including duplicates."""
    try:
        found = json.loads(line.decode(), object_pairs_hook=_Object)
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 ({error.reason} at byte {error.start + 1})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if not isinstance(found, _Object):
        raise ValueError('is no JSON object such as {"弈": "<|I4|>"}')
    for word, reading in found:
        if not isinstance(reading, str):
            raise ValueError(f"{word!r}: has no string as its reading")
    # The texts in which the words are looked up are folded.
    return [(fold(str(word)), str(reading)) for word, reading in found]


class _Object(list[tuple[str, object]]):
    """A JSON object as its pairs."""


def _problems(word: str, reading: str, is_token: Callable[[str], bool], known: Collection[str]) -> Iterator[str]:
    if not word or word != word.strip():
        yield "is empty, or begins or ends with a blank; write the word alone"
    elif not any(character.isalnum() for character in word):
        yield "has no letter; marks alone can't be found in a text"
    if len(word) > MAX_WORD:
        yield f"is longer than {MAX_WORD} characters"
    if _BROKEN_TOKEN.search(word):
        yield "has <| or |> in it; a phoneme may stand in the reading alone"
    if len(reading) > MAX_READING:
        yield f"has a reading longer than {MAX_READING} characters"
    if any("\ud800" <= character <= "\udfff" for character in word + reading):
        yield "has half a character in it, a lone surrogate"
    elif not any(character.isalnum() for character in reading):
        yield "has nothing to speak as its reading"
    for number, part in enumerate(_TOKEN.split(reading)):
        if number % 2 and not is_token(part):
            yield f"{part} is no phoneme that the tokenizer knows{_nearest(part[2:-2], known)}"
        elif not number % 2 and _BROKEN_TOKEN.search(part):
            yield f"has a phoneme that isn't written as <|X|>: {part.strip()!r}"


def _nearest(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name.strip().upper(), known, n=3)
    return f"; near it are {', '.join(f'<|{phoneme}|>' for phoneme in near)}" if near else ""


def _is_whole(text: str, start: int, stop: int) -> bool:
    """Whether ``text[start:stop]`` is not part of a longer word."""
    begins = start == 0 or not (_OF_WORDS.match(text, start) and _OF_WORDS.match(text, start - 1))
    ends = stop >= len(text) or not (_OF_WORDS.match(text, stop - 1) and _OF_WORDS.match(text, stop))
    return begins and ends


def _fold(text: str) -> str:
    """``text`` in lower case, with every character in its place."""
    lower = text.lower()
    if len(lower) == len(text):
        return lower
    return "".join(small if len(small := character.lower()) == 1 else character for character in text)
