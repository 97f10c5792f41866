"""Texts to speak: one fold and one judge, for every text and transcript and before any engine.

Folding writes a text as people type it: Unicode's NFKC (UAX #15) for characters whose reading it keeps, one kind of
line end and of blank, nothing invisible. NFKC would change how ``①``, ``½``, ``x²``, ``H₂O``, ``㎡``, ``℃``, ``™``,
``Ⅷ`` or ``ﷺ`` is read, and would take from engines the marks at which they pause (``，！？：；（）…``): these stay.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

#: Why a text without a letter and a digit is refused: for it, engines speak a full stop or nothing.
NOTHING_TO_SPEAK = "there is no letter or digit in it to speak"


class TextError(ValueError):
    """A text that can't be spoken, and why; the words begin without the name of the key."""


def speakable(text: str) -> str:
    """``text`` as engines get it. Raises TextError; positions count from 0 in ``text`` as it was given."""
    check_characters(text)
    folded = fold(text)
    if not has_words(folded):
        raise TextError(NOTHING_TO_SPEAK)
    return folded


def check_characters(text: str) -> None:
    """Raise TextError for a character that no text may have; for a piece, which may have nothing to speak."""
    if found := _REFUSED.search(text):
        raise TextError(wrong_character(text, found.start()))


def has_words(text: str) -> bool:
    """Whether there is a letter or a digit in ``text``."""
    return _SPOKEN.search(text) is not None


def transcript(text: str) -> str:
    """The transcript of a recording as engines get it. Raises TextError."""
    try:
        return speakable(text)
    except TextError as error:
        if str(error) != NOTHING_TO_SPEAK:
            raise
        raise TextError(f"{NOTHING_TO_SPEAK}; give the words that are said in the recording") from None


def wrong_character(text: str, position: int) -> str:
    """What is wrong with the character at ``position``."""
    code = ord(text[position])
    if 0xD800 <= code <= 0xDFFF:
        return (
            f"U+{code:04X} at position {position} is half a character (a lone surrogate); decode the text anew, or "
            "leave it out"
        )
    return f"control character U+{code:04X} at position {position}; leave it out"


def has_control_character(text: str) -> bool:
    """Whether ``text`` has a control character, a line end and a tab included, or half a character."""
    return _CONTROL.search(text) is not None


def fold(text: str) -> str:
    """``text`` without differences that are not heard. Any string is accepted; folding twice changes nothing more."""
    if not _TOUCHED.search(text) and unicodedata.is_normalized("NFC", text):
        return text
    text = _LINE_END.sub("\n", text)
    text = _BETWEEN_WIDE_DIGITS.sub(lambda mark: chr(ord(mark[0]) - _WIDE), text)
    text = text.translate(_table())
    text = _JOINER.sub("", text)
    text = _WIDE_STOP.sub(".", text)
    return unicodedata.normalize("NFC", text)


#: Regular expressions, because a loop over 5,000 characters would block the daemon for a millisecond.
_SPOKEN = re.compile(r"[^\W_]")
#: Unicode's categories Cc and Cs. What :data:`_LINE_END` matches, and the tab, may be in a text.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_REFUSED = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
#: Form feeds stand between the pages of a PDF's text, U+2028 in texts of word processors.
_LINE_END = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")

#: The distance of ``！`` and its like from ASCII.
_WIDE = 0xFEE0
#: ASCII marks whose wide forms are the marks of Chinese text.
_MARKS = "!(),.:;?[]{}~"
#: Of wide numbers: 12:30 and 1,000. Between other characters these marks are pauses.
_BETWEEN_WIDE_DIGITS = re.compile("(?<=[０-９])(?:：(?=[０-９])|，(?=[０-９]{3}(?![０-９])))")
#: 3．5 and www．example．org. Elsewhere it is a full stop.
_WIDE_STOP = re.compile("(?<=[0-9A-Za-z])．(?=[0-9A-Za-z])")
#: Spelling in scripts from Hebrew to Mongolian, and word ends in those of South-East Asia; elsewhere nothing.
_JOINER = re.compile("(?<![\u0590-\u109f\u1780-\u180d\u180f-\u18af])[\u180e\u200b-\u200d]")

_BLANK = "\xa0\u1680\u2000-\u200a\u202f\u205f\u3000\u3164\uffa0"
#: Soft hyphens, direction marks, byte order marks, variation selectors, the tags of emoji flags, fillers of Hangul.
_INVISIBLE = (
    "\xad\u061c\u115f\u1160\u200e\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\U000e0100-\U000e01ef"
)
#: Digraphs, letters of formulas, radicals, ligatures and letter forms, vertical, small, wide and narrow characters. The
#: marks of Chinese text are left out, so that most Chinese texts are not looked at any further.
_COMPATIBLE = (
    "\u0132\u0133\u017f\u01c4-\u01cc\u01f1-\u01f3\u0587\u2102-\u2134\u213c-\u2149\u2e80-\u2fd5\ufb00-\ufdff\ufe10-\ufe6f"
    "\ufe70-\ufefc\uff02-\uff07\uff0a\uff0b\uff0d-\uff19\uff1c-\uff1e\uff20-\uff3a\uff3c\uff3e-\uff5a\uff5c\uff61-\uffee"
    "\U0001d400-\U0001d7ff"
)
_TOUCHED = re.compile(f"[\r\x0b\x0c\x85\u2028\u2029\u180e\u200b-\u200d{_BLANK}{_INVISIBLE}{_COMPATIBLE}]")

#: Radicals that NFKC does not know, as fonts of PDFs put them for whole characters, and the same characters
#: (EquivalentUnifiedIdeograph.txt of the Unicode Character Database).
_RADICALS = dict(
    zip(
        "⺁⺈⺊⺎⺒⺓⺜⺝⺟⺠⺧⺩⺫⺬⺶⺻⻁⻄⻅⻆⻉⻋⻑⻓⻔⻗⻘⻙⻚⻛⻜⻝⻢⻣⻤⻥⻦⻧⻨⻩⻪⻫⻬⻭⻮⻯⻰⻱⻲⻳",
        "厂刀卜兀巳幺日月母民牛王目示羊聿虎西见角贝车長长门雨青韦页风飞食马骨鬼鱼鸟卤麦黄黾斉齐歯齿竜龙龜亀龟",
        strict=True,
    )
)
_LETTER_TAGS = frozenset({"<compat>", "<font>", "<wide>", "<narrow>", "<initial>", "<medial>", "<final>", "<isolated>"})
_MARK_TAGS = frozenset({"<wide>", "<narrow>", "<small>", "<vertical>"})
#: An Arabic word; longer ligatures are whole sentences, which are read otherwise.
_LONGEST = 4


@cache
def _table() -> dict[int, str]:
    """What each character that folding changes by itself becomes. Made for the first text that needs it (3 ms)."""
    table = dict.fromkeys(_codes(_BLANK), " ") | dict.fromkeys(_codes(_INVISIBLE), "")
    for code in _codes(_COMPATIBLE):
        if code not in table and (folded := _folded(chr(code))) != chr(code):
            table[code] = folded
    return table


def _folded(character: str) -> str:
    if character in _RADICALS:
        return _RADICALS[character]
    tag, _, parts = unicodedata.decomposition(character).partition(" ")
    kind = unicodedata.category(character)
    if "ﾡ" <= character <= "ￜ":
        return chr(int(parts, 16)) if parts else character  # NFKC would make parts of a syllable of single letters
    plain = unicodedata.normalize("NFKC", character)
    if (kind[0] == "L" or kind == "Nd") and tag in _LETTER_TAGS:
        is_spelt = all(unicodedata.category(part)[0] in "LMN" for part in plain)
        return plain if is_spelt and len(plain) <= _LONGEST else character
    if kind[0] in "PS" and tag in _MARK_TAGS and len(plain) == 1:
        return chr(ord(plain) + _WIDE) if plain in _MARKS else plain
    # Kangxi radicals
    return plain if "⺀" <= character <= "⿕" and len(plain) == 1 else character


def _codes(ranges: str) -> list[int]:
    """The code points of the inside of a character class."""
    codes: list[int] = []
    for first, last in re.findall("(?s)(.)(?:-(.))?", ranges):
        codes.extend(range(ord(first), ord(last or first) + 1))
    return codes
