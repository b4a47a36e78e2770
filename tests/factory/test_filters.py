"""Filters: what each drops, what it lets through, and laws that hold for any text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rorqual.core.records import Message
from rorqual.data.distilled import TeacherSample
from rorqual.factory import FilterConfig
from rorqual.factory.filters import drop_reasons, foreign_share, jaccard, mark_duplicates, shingles, words

THOUGHT = "First I add the ones, which gives seven, and then the tens, which gives forty, so it is forty-seven."
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def row(
    reasoning: str = THOUGHT, content: str = "47", *, key: str = "k", tokens: int = 20, **changes: Any
) -> TeacherSample:
    messages = (Message("user", "12+35?"), Message("assistant", content, reasoning))
    fields = {"verdict": "right", "completion_tokens": tokens, **changes}
    return TeacherSample(key, "add", "", "12+35?", messages, teacher="t", params="{}", seed=0, number=0, **fields)


def reason(
    *rows: TeacherSample, cut: bool = False, met: bool = False, keep: Any = "right", **filters: Any
) -> list[str]:
    return drop_reasons(rows, [cut] * len(rows), [met] * len(rows), FilterConfig(**filters), keep)


def test_a_fifth_of_letters_in_another_script_is_allowed() -> None:
    assert foreign_share("abcdдежз") == 0.5
    assert [reason(row("abcd" * n, "ж"), names=["language"]) for n in (5, 1, 2)] == [[""], [""], [""]]
    assert reason(row("abcd", "жж"), names=["language"]) == ["language"]


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        (lambda: reason(row(), cut=True), "length"),
        (lambda: reason(row("", "")), "length"),
        (lambda: reason(row(verdict="wrong")), "wrong"),
        (lambda: reason(row(verdict="ungraded")), "ungraded"),
        (lambda: reason(row(verdict="ungraded"), keep="graded"), "ungraded"),
        (lambda: reason(row("so we wait and see what happens then, " * 9)), "repetition"),
        (lambda: reason(row("carry\n1\ncarry\n1\ncarry\n1\ncarry\n1\n" + "carry\n" * 8)), "repetition"),
        (lambda: reason(row("Сначала складываем единицы, потом десятки. " + THOUGHT)), "language"),
        (
            lambda: reason(row("先把个位相加得到七，再把十位相加得到四十，所以答案是四十七。" + THOUGHT[:60])),
            "language",
        ),
        (lambda: reason(row(), met=True), "contaminated"),
    ],
)
def test_each_reason_has_its_name(bad: Any, name: str) -> None:
    assert bad() == [name]


@pytest.mark.parametrize(
    "good",
    [
        lambda: reason(row(verdict="wrong"), keep="graded"),
        lambda: reason(row(verdict="ungraded"), keep="all"),
        lambda: reason(row("one so we wait and see what happens then, so we wait and see " + THOUGHT)),
        lambda: reason(row("先把个位相加得到七，再把十位相加得到四十，所以答案是四十七。")),
        lambda: reason(row("ひらがなとカタカナと漢字は、いっしょに使う文字です。", "四十七")),
        lambda: reason(row("α + β = γ, so " + THOUGHT)),
        lambda: reason(row(), cut=True, names=()),
        lambda: reason(row(reasoning="", content="47")),
    ],
)
def test_the_nearest_good_sample_is_kept(good: Any) -> None:
    assert good() == [""]


def test_duplicates_are_of_one_problem_and_the_first_stays() -> None:
    long, other = f"{THOUGHT} {THOUGHT}", "Otherwise: twelve and thirty-five make forty-seven."
    near = long[:-1].replace("seven,", "seven;", 1)
    assert reason(row(long), row(long.replace(" ", "  ")), row(near), row(other), names=("duplicate",)) == [
        "", "duplicate", "duplicate", "",
    ]  # fmt: skip
    assert reason(row(), row(key="other")) == ["", ""]
    assert reason(row(verdict="wrong"), row()) == ["wrong", ""], "what is dropped already is nobody's twin"
    assert reason(row(), row(tokens=0), names=("length",)) == ["", ""], "a server may report no tokens"


def test_a_text_is_compared_with_those_that_are_kept() -> None:
    """Like a duplicate is not like what is kept: the chain from one to the other drops nothing."""
    assert mark_duplicates(["one two three four", "one two three five", "two three five six"], 1, 0.5) == [
        False,
        True,
        False,
    ]
    assert mark_duplicates(["one two three four", "two three five six", "one two three five"], 1, 0.5) == [
        False,
        False,
        True,
    ]


@given(st.lists(texts, max_size=6), st.integers(1, 4), st.floats(0.1, 1))
def test_the_law_of_duplicates(given_texts: list[str], size: int, similar: float) -> None:
    found = mark_duplicates(given_texts, size, similar)
    kept = [text for text, again in zip(given_texts, found) if not again]
    assert len(set(kept)) == len(kept), "identical texts are always duplicates"
    sets = [shingles(text, size) for text in kept]
    assert all(jaccard(a, b) < similar for i, a in enumerate(sets) for b in sets[:i])
    for place, (text, again) in enumerate(zip(given_texts, found)):
        earlier = [t for t, dup in zip(given_texts[:place], found) if not dup]
        assert again == any(t == text or jaccard(shingles(t, size), shingles(text, size)) >= similar for t in earlier)


def test_words_are_told_apart_in_every_script() -> None:
    assert words("Forty-two, naïve_x") == ["forty", "-", "two", ",", "naïve", "_", "x"]
    assert words("答案是42。") == ["答", "案", "是", "42", "。"]
    assert words("１２ Ⅷ") == ["12", "viii"], "compatible forms are one"
