"""Wraps upstream's text normaliser: long texts in parts, texts that it raises on rewritten, silence refused.

:class:`Texts` needs upstream and runs in a text process; :func:`normalising` needs none, and yields its parts.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Generator
from typing import Any

from glmtts.protocol.texts import TextError, fold, speakable

from ..base import EngineError
from . import split
from .normalise_parts import LIMIT_MS, cost_ms, is_chinese, join, parts
from .split import is_spoken

#: The share of letters that may be of other scripts than GLM-TTS speaks, such as a name.
_FOREIGN_SHARE = 0.75

_LETTER = re.compile(r"[^\W\d_]")
_ASCII_LETTER_OR_HAN = re.compile("[A-Za-z㐀-䶿一-鿿]")
#: A single Greek letter is a symbol, spoken by its name.
_SYMBOL = re.compile("(?<![\u0370-\u03ff])[\u0391-\u03c9\u2126](?![\u0370-\u03ff])")
_KANA = "Japanese kana"
_SCRIPTS = {"HIRAGANA": _KANA, "KATAKANA": _KANA, "KATAKANA-HIRAGANA": _KANA, "HANGUL": "Korean Hangul"}
_SCIENTIFIC = re.compile(r"([-−]?)(\d+(?:\.\d+)?)\s*[*x×]\s*(\d+(?:\.\d+)?)\^([-−]?)(\d+(?:\.\d+)?)")
_NOT_ASCII_DIGIT = re.compile(r"(?![0-9])\d")


def check_speakable(text: str) -> None:
    """Raise EngineError ``bad_request`` for a text with nothing that GLM-TTS can speak."""
    try:
        speakable(text)
    except TextError as error:
        raise _refusal(str(error)) from None
    letters = [letter for letter in _LETTER.findall(_SYMBOL.sub("a", text)) if letter.isalpha()]
    others = (letter for letter in letters if not _ASCII_LETTER_OR_HAN.match(letter))
    foreign = Counter(script for script in map(_foreign_script, others) if script)
    if foreign.total() > _FOREIGN_SHARE * len(letters):
        scripts = " and ".join(script for script, _ in foreign.most_common(2))
        raise _refusal(f"is written in {scripts}; GLM-TTS speaks Chinese and English")


def normalising(text: str) -> Generator[str, str, str]:
    """Normalise ``text``: yields the parts for :meth:`Texts.read`, is sent its results, and returns the whole.

    That is ``text`` as it is spoken: numbers and signs in words, in one line, with a mark at its end. A text that takes
    under about half a second is normalised whole; a longer one in parts, with the same result except for rules with a
    long reach: upstream rewrites the first number in scientific notation of a text, here of each part.

    Raises EngineError ``bad_request`` if nothing to speak is left.
    """
    # Again, for a durable job of an earlier version.
    text = fold(text)
    if cost_ms(text, is_chinese(text)) <= LIMIT_MS:
        normalised = yield text
    else:
        results = []
        for part in parts(text):
            result = yield part.source
            results.append(result.removesuffix(part.tail))
        normalised = join(results)
    if not is_spoken(normalised):
        raise _refusal("has nothing to speak: emoji, marks and signs only")
    return normalised


class Texts:
    """Wraps upstream's ``TextFrontEnd``."""

    def __init__(self, front_end: Any) -> None:
        self._front_end = front_end

    def segments(self, normalised: str) -> list[str]:
        """The segments of a normalised text, 30 to 60 characters each; each has something to speak."""
        segments: list[str] | None = None
        if not split.has_long_stretch(normalised):
            try:
                segments = list(self._front_end.split_by_len(normalised))
            except Exception:
                # AssertionError for a blank at the beginning, IndexError for a long stretch of long words.
                segments = None
        return split.merge_silent(split.split(normalised) if segments is None else segments)

    def normalise_segment(self, segment: str) -> str:
        """A segment, normalised again as upstream does before speaking; unchanged if that would fail or lose it."""
        try:
            again = self.read(segment)
        except EngineError:
            return segment
        return again if is_spoken(again) else segment

    def read(self, text: str) -> str:
        """``text`` as upstream's normaliser rewrites it. Raises EngineError ``synthesis_failed`` if it fails."""
        try:
            return str(self._front_end.text_normalize(text))
        except Exception as error:
            plainer = _plainer(text)
            problem: Exception = error
            if plainer != text:
                try:
                    return str(self._front_end.text_normalize(plainer))
                except Exception as again:
                    problem = again
            raise EngineError(
                "synthesis_failed",
                f"text: GLM-TTS's normaliser fails on {excerpt(text)}: {type(problem).__name__}: {problem}; "
                "spell that passage out in words",
                quotes=True,
            ) from problem


def _plainer(text: str) -> str:
    """``text`` with the passages that upstream raises on rewritten."""
    text = _NOT_ASCII_DIGIT.sub(lambda digit: str(unicodedata.decimal(digit[0])), text)
    return _SCIENTIFIC.sub(_in_words, text) if is_chinese(text) else text


def _in_words(match: re.Match[str]) -> str:
    # Upstream converts these to float and can't read 1e-05 and 1e+16.
    minus, base, times, exponent_minus, exponent = match.groups()
    return f"{'负' if minus else ''}{base}乘{times}的{'负' if exponent_minus else ''}{exponent}次方"


def _foreign_script(letter: str) -> str:
    """The name of the script of ``letter``; ``""`` for one that GLM-TTS speaks."""
    compatible = unicodedata.normalize("NFKD", letter)
    if _ASCII_LETTER_OR_HAN.match(compatible):
        return ""
    name = unicodedata.name(letter, "an unknown script")
    script = next((word for word in name.split() if word not in ("HALFWIDTH", "FULLWIDTH", "MODIFIER", "LETTER")), name)
    if script in ("LATIN", "CJK", "IDEOGRAPHIC", "MICRO", "SUPERSCRIPT", "SUBSCRIPT"):
        return ""
    return _SCRIPTS.get(script, script.capitalize())


def excerpt(text: str) -> str:
    """The beginning of ``text``, quoted."""
    return repr(text) if len(text) <= 40 else f"{text[:40]!r}..."


def _refusal(problem: str) -> EngineError:
    return EngineError("bad_request", f"text: {problem}", quotes=True)
