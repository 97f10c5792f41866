"""The page's words: both languages have the same, and each word that the scripts ask for is there."""

from __future__ import annotations

import json
import re
from importlib import resources

_FOLDER = resources.files("glmtts.gateway") / "page"


def words(language: str) -> dict[str, str]:
    found: dict[str, str] = json.loads((_FOLDER / f"{language}.json").read_text(encoding="utf-8"))
    return found


def test_both_languages_have_the_same_words_with_the_same_places() -> None:
    en, zh = words("en"), words("zh")
    assert set(en) == set(zh)
    for key in en:
        assert set(re.findall(r"\{(\w+)\}", en[key])) == set(re.findall(r"\{(\w+)\}", zh[key])), key
        assert en[key].strip() and zh[key].strip(), key


def test_each_word_that_a_script_asks_for_is_there() -> None:
    asked = set()
    for script in _FOLDER.iterdir():
        if script.name.endswith(".js"):
            asked |= set(re.findall(r'\btn?\("(\w+)"', script.read_text(encoding="utf-8")))
    assert len(asked) > 50 and asked <= set(words("en"))
