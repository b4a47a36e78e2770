"""The page of `rorqual attention`: tables, a chart, and for each text the query with the most attention outside its selected positions."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rorqual.data.tokenizer import Tokenizer
from rorqual.evals.attention_chart import needles_chart
from rorqual.evals.attention_tables import notes, tables
from rorqual.evals.sparse_attention_misses import LeastCoveredQuery
from rorqual.evals.sparse_attention_report import SparseAttentionReport
from rorqual.report.chart import draw
from rorqual.report.page import ColouredText, render_page

FULL = 0.75
"""Strength of the colour of the token with the largest attention weight. Text must remain readable on this colour."""


def attention_page(report: SparseAttentionReport, tokenizer: Tokenizer) -> str:
    """Return the HTML page of `report`. The tokenizer decodes the text that each query on the page sees."""
    queries = sorted(
        ((text.name, text.misses_at_budget(report.shown_budget).lowest) for text in report.texts),
        key=lambda pair: pair[1].mass,
    )
    return render_page(
        "attention",
        report=report,
        needles=draw(needles_chart(report)) if any(one.kind == "needle" for one in report.planted) else None,
        tables=tables(report),
        queries=[(_summary(name, query), colour_by_weight(query, tokenizer)) for name, query in queries],
        notes=notes(report),
    )


def _summary(name: str, query: LeastCoveredQuery) -> str:
    return (
        f"{name}: {query.mass:.1%} of the attention is on selected positions "
        f"(layer {query.layer}, window {query.window}, position {len(query.tokens) - 1}, {len(query.missed)} missed)"
    )


def colour_by_weight(query: LeastCoveredQuery, tokenizer: Tokenizer) -> ColouredText:
    """Return the text that a query sees, coloured by the attention weight of each token. Tokens that share a character are joined."""
    selected, missed, largest = {*query.selected}, {*query.missed}, max(query.weights)
    parts = []
    for positions, text in token_groups_of_characters(query.tokens, tokenizer):
        weight = sum(query.weights[position] for position in positions)
        kinds = ["s" if selected & {*positions} else "n"]
        kinds += ["m"] if missed & {*positions} else []
        kinds += ["q"] if len(query.tokens) - 1 in positions else []
        strength = round(100 * FULL * math.sqrt(min(weight / largest, 1)))
        parts.append((text, " ".join(kinds), strength, f"{weight:.2%}"))
    return parts


def token_groups_of_characters(tokens: tuple[int, ...], tokenizer: Tokenizer) -> Iterator[tuple[list[int], str]]:
    """Yield (positions, text) for groups of consecutive tokens. Tokens are joined until their bytes end with a whole
    character."""
    positions, data = list[int](), b""
    for position, token in enumerate(tokens):
        positions.append(position)
        data += tokenizer.token_bytes(token)
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data" and position < len(tokens) - 1:
                continue  # the next token may complete the character
            text = data.decode(errors="replace")
        yield positions, text
        positions, data = [], b""
