"""The page of `rorqual compute`: tables, and replies whose colour shows the experts of each token."""

from __future__ import annotations

from html import escape

from rorqual.data.tokenizer import Tokenizer
from rorqual.evals import page as html
from rorqual.evals.compute import ComputeReport, CountedReply, tables
from rorqual.evals.missed_page import characters

STYLE = """
pre.words{background:none;padding:.2rem 0 .2rem 1rem;border-left:3px solid var(--rule);border-radius:0;line-height:1.8}
.words i{font-style:normal;border-radius:2px;background:color-mix(in srgb,var(--accent) var(--w),transparent)}
.words .p{border-bottom:1px dotted var(--faint)}
.words .e{color:var(--faint)}
p.words i{padding:0 .4em}
"""
FULL = 75
"""Strength of the colour in percent for a token that uses all its choices."""
SHOWN = 12
"""Number of replies on the page."""


def compute_page(report: ComputeReport, tokenizer: Tokenizer) -> str:
    """Return the HTML page. It shows the first replies of each family in turn."""
    facts = [
        (group.name, f"{group.experts:.2f}", f"{group.tokens:,} tokens")
        for group in report.groups
        if group.kind == "part"
    ]
    body = [
        f"<header><h1>The computation of {escape(report.model)}</h1>",
        html.para(
            f"Each token chooses {report.chosen} experts in each of {report.layers} layers. Some of the choices compute nothing. "
            "The figures are the other experts per token and layer.",
            "lede",
        ),
        html.facts(facts),
        "</header>",
        html.section("texts", "Replies", *_texts(report, tokenizer)),
    ]
    for number, (title, groups) in enumerate(tables(report)):
        rows = [
            [
                group.name,
                f"{group.tokens:,}",
                f"{group.experts:.3f}",
                "" if group.interval is None else f"{group.interval.low:.3f} to {group.interval.high:.3f}",
            ]
            for group in groups
        ]
        heads = ["", "tokens", "experts", "95 % interval over problems"]
        body.append(html.section(f"table-{number}", title.capitalize(), html.table(title, heads, [("", rows)])))
    return html.page(f"Rorqual: the computation of {report.model}", "\n".join(body), STYLE.lstrip())


def _texts(report: ComputeReport, tokenizer: Tokenizer) -> list[str]:
    legend = "".join(
        f'<i style="--w:{round(FULL * used / report.chosen)}%">{used}</i> ' for used in range(report.chosen + 1)
    )
    found = [f"<p class=words>Experts per layer: {legend} The prompt is underlined.</p>"]
    families: dict[str, list[CountedReply]] = {}
    for reply in report.replies:
        families.setdefault(reply.problem.family, []).append(reply)
    longest = max(map(len, families.values()))
    turns = (group[turn] for turn in range(longest) for group in families.values() if turn < len(group))
    for place, reply in zip(range(SHOWN), turns, strict=False):
        mean = sum(reply.experts) / len(reply.experts)
        summary = f"{reply.problem.family}, {reply.problem.level}: {mean:.2f} experts, {reply.verdict.value}"
        found.append(html.folded(summary, coloured(reply, report.chosen, tokenizer), is_open=place < 4))
    return found


def coloured(reply: CountedReply, chosen: int, tokenizer: Tokenizer) -> str:
    """Return HTML with the text of a reply, coloured by experts. Tokens that share a character are joined."""
    parts = []
    for positions, text in characters(reply.tokens, tokenizer):
        used = sum(reply.experts[place] for place in positions) / len(positions)
        kind = ' class="p"' if reply.parts[positions[0]] == "prompt" else ""
        shown = escape(text).replace("\n", '<span class="e">↵</span>\n')
        parts.append(f'<i{kind} style="--w:{round(FULL * used / chosen)}%" title="{used:.2f}">{shown}</i>')
    return f'<pre class="words">{"".join(parts)}</pre>'
