"""The page of `rorqual attention` is one file that shows what was measured. The browser test needs playwright and a Chromium."""

from __future__ import annotations

import html
import re

import pytest
from sparse_model import BYTES, model_of

from rorqual.evals.attention_page import FULL, attention_page, colour_by_weight, token_groups_of_characters
from rorqual.evals.sparse_attention_misses import LeastCoveredQuery
from rorqual.evals.sparse_attention_report import NamedText, SparseAttentionReport, measure_sparse_attention

NASTY = "<script>alert(1)</script><img src=http://example.invalid/x.png> "


@pytest.fixture(scope="module")
def report() -> SparseAttentionReport:
    texts = [NamedText(f"{NASTY}.txt", NASTY * 5), NamedText("海.txt", "海上的灯塔，浪从西边来。" * 20)]
    settings = {"name": "runs/m", "length": 120, "windows": 1, "budgets": (6, 40)}
    return measure_sparse_attention(model_of(12, vocab=263), BYTES, texts, ["needle", "copy"], **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def page(report: SparseAttentionReport) -> str:
    return attention_page(report, BYTES)


def query_of(text: str, weights: dict[int, float], selected: set[int], missed: set[int]) -> LeastCoveredQuery:
    tokens = tuple(BYTES.encode(text))
    values = tuple(weights.get(position, 0.0) for position in range(len(tokens)))
    return LeastCoveredQuery(0, 0, 0.1, tokens, values, tuple(sorted(selected)), tuple(sorted(missed)))


def test_a_passage_shows_weight_selection_and_what_was_missed() -> None:
    full = round(100 * FULL)
    assert colour_by_weight(query_of("a<b\nc", {0: 0.64, 1: 0.16, 4: 0.04}, {1, 4}, {0}), BYTES) == [
        ("a", "n m", full, "64.00%"),
        ("<", "s", round(50 * FULL), "16.00%"),
        ("b", "n", 0, "0.00%"),
        ("\n", "n", 0, "0.00%"),
        ("c", "s q", round(25 * FULL), "4.00%"),
    ]  # half of the root of the largest weight has half of the colour


def test_the_bytes_of_a_character_are_joined_and_their_weights_added() -> None:
    parts = colour_by_weight(query_of("x海y", {1: 0.1, 2: 0.2, 3: 0.1, 4: 0.4}, {0, 4}, {2}), BYTES)
    assert parts[1] == ("海", "n m", round(100 * FULL), "40.00%")
    broken = (*BYTES.encode("海")[:2], *BYTES.encode("a"), 300, *BYTES.encode("é")[:1])
    found = list(token_groups_of_characters(broken, BYTES))
    assert [position for positions, _ in found for position in positions] == list(range(len(broken)))
    assert "a" in found[0][1] and found[-1][1] == "\ufffd"


def test_the_page_needs_nothing_but_itself_and_shows_each_text(page: str, report: SparseAttentionReport) -> None:
    assert "<script" not in page and "url(" not in page
    assert all(url.startswith("data:") for url in re.findall(r'<[^>]*?(?:src|srcset|href)="([^"]*)"', page))
    assert page.count("&lt;script&gt;") >= 2 and page.count("<picture>") == 1
    passages = re.findall(r'<pre class="marks">(.*?)</pre>', page, re.DOTALL)
    queries = sorted((text.misses_at_budget(12).lowest for text in report.texts), key=lambda query: query.mass)
    assert len(passages) == 2
    for passage, query in zip(passages, queries, strict=True):
        assert html.unescape(re.sub("<[^>]*>", "", passage)) == "".join(
            text for _, text in token_groups_of_characters(query.tokens, BYTES)
        )
    ascii_only = next(place for place, passage in enumerate(passages) if "海" not in passage)
    marks = re.findall(r'class="([snmq ]+)"', passages[ascii_only])
    query = queries[ascii_only]
    assert [place for place, mark in enumerate(marks) if "m" in mark] == list(query.missed)
    assert [place for place, mark in enumerate(marks) if "s" in mark] == list(query.selected)
    assert "Budgets other than 12 are untrained" in page
