"""How a text is cleaned and cut. The cuts, and what raises, are upstream's; the wording is not."""

from __future__ import annotations

import re
from typing import Any

CHINESE_CHAR_PATTERN = re.compile(r"[\u4e00-\u9fff]+")
PUNCTUATION_CHARS = "。？！；：、.?!;:，,"
PUNCTUATION_PATTERN = re.compile(f"([{PUNCTUATION_CHARS}])")

_ENDINGS = frozenset(".!?;:：。！？；，")
_BRACKETS = "()（）【】「」`《》『』{}[]"
_EMOJI = re.compile("[\U0001f000-\U0001faff\u2600-\u27bf\ufe0f\u200d]")
_POWER = re.compile(r"(.*?)(-?\d+(?:\.\d+)?)[*x×](\d+(?:\.\d+)?)\^(-?\d+(?:\.\d+)?)(.*?)$")
_DIGITS = "零一二三四五六七八九"
_UNITS = ("", "十", "百", "千", "万", "十万", "百万", "千万", "亿", "十亿", "百亿", "千亿")
_ENGLISH_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SYLLABLES_PER_CHARACTER = 0.7


def contains_chinese(text: str) -> bool:
    return CHINESE_CHAR_PATTERN.search(text) is not None


def remove_bracket(text: str, lang: str = "zh") -> str:
    return text.translate(dict.fromkeys(map(ord, _BRACKETS + ("" if lang == "en" else "‘’"))))


def replace_asterisk_with_multiply(text: str, lang: str = "zh") -> str:
    word, number = ("multiply", "0-9") if lang == "en" else ("乘", "一二三四五六七八九十百千万亿")
    return re.sub(rf"(?<=[{number}a-zA-Z])\s*\*\s*(?=[{number}a-zA-Z])", word, text).replace("*", "")


def spell_out_number(text: str, inflect_parser: object) -> str:
    del inflect_parser
    return re.sub(r"[0-9]+", lambda digits: " ".join(_ENGLISH_DIGITS[int(d)] for d in digits[0]), text)


def split_into_units(text: str) -> list[str]:
    """Chinese characters, words and marks, each with the white space behind it."""
    units: list[str] = []
    for char in text:
        last = units[-1] if units else ""
        begun = last[-1:].isascii() and (last[-1:].isalpha() or last[-1:] in ("'", "-"))
        if units and (char.isspace() or (begun and char.isascii() and (char.isalpha() or char in "'-"))):
            units[-1] += char
        else:
            units.append(char)
    return units


def count_char(units: list[str]) -> float:
    """The length in Chinese characters; a syllable of English is less than one."""
    length = 0.0
    for unit in units:
        word = unit.strip()
        if word.isascii() and word.isalpha():
            length += max(1, len(re.findall("[aeiouy]+", word.lower()))) * _SYLLABLES_PER_CHARACTER
        else:
            length += 1
    return length


def split_into_min_sentence(text: str, min_sentence_len: int = 5) -> tuple[list[list[str]], bool]:
    sentences: list[list[str]] = []
    current: list[str] = []
    for unit in split_into_units(text):
        current.append(unit)
        if unit.strip() in list(PUNCTUATION_CHARS) and count_char(current) >= min_sentence_len:
            sentences.append(current)
            current = []
    whole = bool(sentences)
    return sentences + ([current] if current else []), whole


def split_hard(sent_units: list[list[str]], max_text_len: int = 40) -> list[list[str]]:
    """Cuts what is too long. Counts units where it should count lengths: IndexError for long words without marks."""
    cut: list[list[str]] = []
    for units in sent_units:
        assert all(unit.strip() for unit in units)
        rest = units
        while count_char(rest) > max_text_len:
            at = max_text_len + (rest[max_text_len].strip() in list(PUNCTUATION_CHARS))
            cut.append(rest[:at])
            rest = rest[at:]
        if rest:
            cut.append(rest)
    return cut


def replace_space(text: str) -> str:
    """Blanks stay between English words alone, and behind their marks."""
    return re.sub(r"(?<![a-zA-Z0-9.,!?;:]) +| +(?![a-zA-Z0-9])", "", re.sub(" +", " ", text))


def multi_line_process(plain_text: str) -> str:
    lines = []
    for line in map(str.strip, plain_text.split("\n")):
        if line:
            ending = "" if line[-1] in _ENDINGS else "。" if contains_chinese(line) else ". "
            lines.append(line + ending)
    return ("" if contains_chinese("".join(lines)) else " ").join(lines)


def emoji_norm(text: str) -> str:
    return _EMOJI.sub("", text)


def markdown_norm(markdown_text: str) -> str:
    return re.sub(r"^(\d+)\. ", r"\1。", markdown_text).replace("\\n", "\n")


def number_to_chinese(number: Any) -> str:
    """Of what Python prints with an exponent it raises TypeError or ValueError."""
    if isinstance(number, float | str):
        whole, *fraction = str(float(number)).split(".")
        if fraction:
            behind = "".join(_DIGITS[int(digit)] for digit in fraction[0]) if fraction[0].strip("0") else ""
            return number_to_chinese(int(whole)) + ("点" + behind if behind else "")
    if number < 0:
        return "负" + number_to_chinese(-number)
    digits = str(number)
    places = zip(digits, range(len(digits) - 1, -1, -1), strict=True)
    said = "".join(
        _DIGITS[int(digit)] + _UNITS[place] for digit, place in places if digit != "0" and place < len(_UNITS)
    )
    return said or "零"


def tn_scientific_notation(case: str) -> str:
    if not (found := _POWER.match(case)):
        return case
    before, base, factor, exponent, behind = found.groups()
    said = f"{number_to_chinese(base)}乘{number_to_chinese(factor)}的{number_to_chinese(exponent)}次方"
    return before + said + behind


def special_replace(text: str) -> str:
    text = re.sub(r"[~～]+", "。", text.replace("\\", ""))
    return replace_asterisk_with_multiply(text, "zh").strip(" ")


def ensure_proper_ending(text: str) -> str:
    """Ends in a full stop, or in a question mark: a comma at the end becomes a full stop."""
    if text and text[-1] in "？?":
        return text
    if text and text[-1] in PUNCTUATION_CHARS:
        text = text[:-1]
        return text + ("。" if contains_chinese(text) else ".")
    return text + ("。" if contains_chinese(text) else ".")


def normalize_punctuation(text: str, punctuation_chars: str) -> str:
    text = replace_space(text)
    text = re.sub(rf"([{punctuation_chars}])(?=[{punctuation_chars}])", "", text)
    return text.replace("#", "").replace("！", "。").replace("!", ".")
