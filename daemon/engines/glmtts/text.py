"""Stands before upstream's text normaliser: a long text in parts, what it raises on prevented, silence refused."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from typing import Any

from ..base import EngineError
from . import split
from .normalise_parts import LIMIT_MS, Part, cost_ms, is_chinese, join, parts
from .split import is_spoken

#: Of the letters, this share may be of scripts that GLM-TTS doesn't speak: a name, a word that is asked about.
_FOREIGN_SHARE = 0.75

_LETTER = re.compile(r"[^\W\d_]")
_ASCII_LETTER_OR_HAN = re.compile("[A-Za-z㐀-䶿一-鿿]")
#: A Greek letter by itself is a symbol, which is spoken by its name.
_SYMBOL = re.compile("(?<![\u0370-\u03ff])[\u0391-\u03c9\u2126](?![\u0370-\u03ff])")
_SURROGATE = re.compile("[\ud800-\udfff]")
#: Controls that are no blanks, and characters that only steer how others are shown: zero-width, of direction, the BOM.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)
#: Line ends that upstream doesn't know: it would leave them to the tokenizer.
_LINE_END = re.compile("\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_KANA = "Japanese kana"
_SCRIPTS = {"HIRAGANA": _KANA, "KATAKANA": _KANA, "KATAKANA-HIRAGANA": _KANA, "HANGUL": "Korean Hangul"}
_SCIENTIFIC = re.compile(r"([-−]?)(\d+(?:\.\d+)?)\s*[*x×]\s*(\d+(?:\.\d+)?)\^([-−]?)(\d+(?:\.\d+)?)")
_NOT_ASCII_DIGIT = re.compile(r"(?![0-9])\d")


def check_speakable(text: str) -> None:
    """Raise EngineError ``bad_request`` for a text of which nothing would be spoken, before any work is done."""
    if found := _SURROGATE.search(text):
        where = f"U+{ord(found[0]):04X} at position {found.start() + 1}"
        raise _refusal(f"has half a character, {where}; send valid Unicode")
    letters = [letter for letter in _LETTER.findall(_SYMBOL.sub("a", text)) if letter.isalpha()]
    others = (letter for letter in letters if not _ASCII_LETTER_OR_HAN.match(letter))
    foreign = Counter(script for script in map(_foreign_script, others) if script)
    if foreign.total() > _FOREIGN_SHARE * len(letters):
        scripts = " and ".join(script for script, _ in foreign.most_common(2))
        raise _refusal(f"is written in {scripts}; GLM-TTS speaks Chinese and English")
    if not is_spoken(text):
        raise _refusal("has nothing to speak: " + ("it is blank" if not text.strip() else "no letter and no digit"))


class Texts:
    """Stands before upstream's ``TextFrontEnd``.

    A text that takes under about half a second is normalised as upstream does it; a longer one in parts, with the same
    result but for what its rules take from far away: of several numbers in scientific notation in a text, upstream
    rewrites the first, here it is the first of each part.
    """

    def __init__(self, front_end: Any) -> None:
        self._front_end = front_end

    def warm(self) -> None:
        """Have upstream load what it loads at the first text: for English, a dictionary of syllables."""
        self.segments(self._read("a long word and two."))
        self._read("一个。")

    def normalise(self, text: str, beat: Callable[[], None]) -> str:
        """``text`` as it is spoken: numbers and signs in words, in one line, with a mark at its end.

        ``beat`` is called between parts. Raises EngineError ``bad_request`` where nothing to speak is left, and
        ``synthesis_failed`` where upstream fails for a reason that nobody foresaw.
        """
        visible = _LINE_END.sub("\n", _INVISIBLE.sub("", text))
        if cost_ms(visible, is_chinese(visible)) <= LIMIT_MS:
            normalised = self._read(visible)
        else:
            results = []
            for part in parts(visible):
                results.append(self._read_part(part))
                beat()
            normalised = join(results)
        if not is_spoken(normalised):
            raise _refusal("has nothing to speak: emoji, marks and signs only")
        return normalised

    def segments(self, normalised: str) -> list[str]:
        """What is spoken in one go each, 30 to 60 characters; each has something to speak."""
        segments: list[str] | None = None
        if not split.has_long_stretch(normalised):
            try:
                segments = list(self._front_end.split_by_len(normalised))
            except Exception:
                # AssertionError for a blank at its beginning, IndexError for a long stretch of long words.
                segments = None
        return split.merge_silent(split.split(normalised) if segments is None else segments)

    def normalise_segment(self, segment: str) -> str:
        """What upstream makes of a segment before it speaks it; the segment itself where it would fail or lose it."""
        try:
            again = self._read(segment)
        except EngineError:
            return segment
        return again if is_spoken(again) else segment

    def _read_part(self, part: Part) -> str:
        result = self._read(part.source)
        if result.endswith(part.tail):
            return result[: len(result) - len(part.tail)]
        return result

    def _read(self, text: str) -> str:
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
                f"text: GLM-TTS's normaliser fails on {_excerpt(text)}: {type(problem).__name__}: {problem}; "
                "write that passage in words",
                quotes=True,
            ) from problem


def _plainer(text: str) -> str:
    """``text`` without what upstream is known to raise on."""
    text = _NOT_ASCII_DIGIT.sub(lambda digit: str(unicodedata.decimal(digit[0])), text)
    return _SCIENTIFIC.sub(_in_words, text) if is_chinese(text) else text


def _in_words(match: re.Match[str]) -> str:
    # Upstream converts these to float, of which it can't read 1e-05 and 1e+16.
    minus, base, times, exponent_minus, exponent = match.groups()
    return f"{'负' if minus else ''}{base}乘{times}的{'负' if exponent_minus else ''}{exponent}次方"


def _foreign_script(letter: str) -> str:
    """The name of the script that ``letter`` is of, ``""`` for one that is spoken."""
    compatible = unicodedata.normalize("NFKD", letter)
    if _ASCII_LETTER_OR_HAN.match(compatible):
        return ""
    name = unicodedata.name(letter, "an unknown script")
    script = next((word for word in name.split() if word not in ("HALFWIDTH", "FULLWIDTH", "MODIFIER", "LETTER")), name)
    if script in ("LATIN", "CJK", "IDEOGRAPHIC", "MICRO", "SUPERSCRIPT", "SUBSCRIPT"):
        return ""
    return _SCRIPTS.get(script, script.capitalize())


def _excerpt(text: str) -> str:
    return repr(text) if len(text) <= 40 else f"{text[:40]!r}..."


def _refusal(problem: str) -> EngineError:
    return EngineError("bad_request", f"text: {problem}", quotes=True)
