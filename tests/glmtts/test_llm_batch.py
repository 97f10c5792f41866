"""The batched language model: upstream's tokens, and the same bits under any neighbours."""

from __future__ import annotations

import pytest

from .upstream_root import Root


def test_it_draws_upstream_s_tokens_but_for_ties(root: Root) -> None:
    found = root.run("llm_checks.py", "same_as_upstream")
    print(found["ties"])
    assert len(found["ties"]) <= found["tokens"] / 200, found["ties"]


@pytest.mark.parametrize("check", ["apart", "apart_in_half"])
def test_a_text_is_the_same_bit_by_bit_whatever_is_beside_it(root: Root, check: str) -> None:
    root.run("llm_checks.py", check)


def test_a_long_text_beside_it_changes_no_bit_of_a_short_one(root: Root) -> None:
    root.run("llm_checks.py", "reach")


def test_from_the_same_scores_it_draws_what_upstream_s_functions_draw(root: Root) -> None:
    root.run("llm_checks.py", "draws")


def test_what_is_no_number_stays_with_its_own_text(root: Root) -> None:
    root.run("llm_checks.py", "no_number")


def test_each_fault_that_would_mix_texts_is_noticed(root: Root) -> None:
    assert root.run("llm_checks.py", "mutations")["mutants"] > 5
