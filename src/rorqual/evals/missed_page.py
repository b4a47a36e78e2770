"""The page of `rorqual attention`: tables, pictures, and the queries that miss the most attention. It is one HTML file
that needs no network."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape

from rorqual.data.tokenizer import Tokenizer
from rorqual.evals import page as html
from rorqual.evals.missed import LowestQuery
from rorqual.evals.missed_pictures import pictures
from rorqual.evals.missed_report import MissedReport
from rorqual.evals.missed_table import mean, notes, planted, shown, tables
from rorqual.evals.pictures import THEMES, png

STYLE = """
:root{--missed:#bf6f14}
@media (prefers-color-scheme:dark){:root{--missed:#e2a14e}}
dl.facts{grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr))}
img{min-width:0;max-width:40rem}
h1,summary,th.prose{overflow-wrap:anywhere}
pre.marks{background:none;border-left:3px solid var(--rule);border-radius:0;padding:.2rem 0 .2rem 1rem;line-height:1.75}
.marks i{font-style:normal;border-radius:2px}
.marks .s{background:color-mix(in srgb,var(--accent) var(--w),transparent)}
.marks .n{background:color-mix(in srgb,var(--missed) var(--w),transparent)}
.marks .m{outline:1.5px solid var(--missed);outline-offset:-1px}
.marks .q{border-bottom:3px double var(--ink);font-weight:700}
.marks .e{color:var(--faint)}
p.marks i{padding:0 .3em}
"""
FULL = 0.75
"""Strength of the colour of the largest weight. The text must remain readable on this colour."""


def missed_page(report: MissedReport, tokenizer: Tokenizer) -> str:
    """Return the HTML page. The tokenizer decodes the texts of the queries on the page."""
    drawn = {name: html.figure(one, *(png(one, theme) for theme in THEMES)) for name, one in pictures(report).items()}
    by_title = {table.title.partition(",")[0]: table for table in tables(report)}
    sections = [
        ("recall", "Recall by layer and budget", ["by layer", "recall by layer and budget"]),
        ("texts", "By text", ["by text"]),
        ("distance", "Attention by distance", ["by distance"]),
        ("needles", "Needles", ["needles: attention kept by depth"]),
        ("copies", "Copied lines", ["copied lines"]),
    ]
    body = [
        f"<header><h1>What the attention of {escape(report.model)} misses</h1>",
        html.para(
            f"Each query attends to {report.trained} selected positions. Dense attention was computed on the same inputs, at each layer.", "lede"
        ),
        html.facts(_facts(report)),
        "</header>",
    ]  # fmt: skip
    for name, title, names in sections:
        found = [by_title[key] for key in names if key in by_title]
        if found:
            numbers = [html.table(table.title, table.heads, [("", table.rows)]) for table in found]
            if name in drawn:
                numbers = [drawn[name], html.folded("the numbers", "".join(numbers))]
            body.append(html.section(name, title, *numbers))
    if report.texts:
        body.append(html.section("queries", "The queries that miss most", *_queries(report, tokenizer)))
    body.append(html.section("columns", "Columns and notes", *(html.para(note, "note") for note in notes(report))))
    return html.page(f"Rorqual: what the attention of {report.model} misses", "\n".join(body), STYLE.lstrip())


def _facts(report: MissedReport) -> Iterator[tuple[str, str, str]]:
    texts = shown(report)
    if texts:
        queries = sum(missed.queries for missed in texts)
        yield (
            "lowest weighted recall of a layer",
            f"{min(missed.weighted_recall for missed in texts):.1%}",
            f"at {report.shown} positions",
        )
        yield (
            "attention on selected positions",
            f"{mean([missed.mass for missed in texts]):.1%}",
            "mean of layers and texts",
        )
        yield "most likely token changes", f"{mean([missed.flips for missed in texts]):.1%}", f"of {queries:,} queries"
    for kind, title in (("needle", "attention to needles kept"), ("copy", "attention to copied lines kept")):
        if cells := planted(report, kind, report.shown):  # type: ignore[arg-type]
            yield title, f"{mean([one.kept for one in cells]):.1%}", f"lowest {min(one.kept for one in cells):.1%}"


def _queries(report: MissedReport, tokenizer: Tokenizer) -> Iterator[str]:
    yield (
        "<p class=marks>For each text, the query with the lowest share of dense attention on selected positions. Colours: "
        '<i class="s" style="--w:50%">selected</i>, <i class="n" style="--w:50%">not selected</i>, <i class="m">missed</i> '
        f"(among the {report.shown} largest weights, but not selected), <i class=q>the query</i>. "
        "A stronger colour means a larger dense weight, averaged over heads (its strength is the square root).</p>"
    )
    found = sorted(((text.name, text.at(report.shown).lowest) for text in report.texts), key=lambda pair: pair[1].mass)
    for place, (name, query) in enumerate(found):
        summary = (
            f"{name}: {query.mass:.1%} of the attention is on selected positions "
            f"(layer {query.layer}, window {query.window}, position {len(query.tokens) - 1}, {len(query.missed)} missed)"
        )
        yield html.folded(summary, marked(query, tokenizer), is_open=place == 0)


def marked(query: LowestQuery, tokenizer: Tokenizer) -> str:
    """Return HTML with the text that a query sees. Tokens that share a character are joined."""
    selected, missed, largest = {*query.selected}, {*query.missed}, max(query.weights)
    parts = []
    for positions, text in characters(query.tokens, tokenizer):
        weight = sum(query.weights[position] for position in positions)
        kinds = ["s" if selected & {*positions} else "n"]
        kinds += ["m"] if missed & {*positions} else []
        kinds += ["q"] if len(query.tokens) - 1 in positions else []
        strength = round(100 * FULL * math.sqrt(min(weight / largest, 1)))
        shown_text = escape(text).replace("\n", '<span class="e">↵</span>\n')
        parts.append(f'<i class="{" ".join(kinds)}" style="--w:{strength}%" title="{weight:.2%}">{shown_text}</i>')
    return f'<pre class="marks">{"".join(parts)}</pre>'


def characters(tokens: tuple[int, ...], tokenizer: Tokenizer) -> Iterator[tuple[list[int], str]]:
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
