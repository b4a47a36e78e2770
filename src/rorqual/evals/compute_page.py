"""The page of `rorqual compute`: tables, and replies in which a token's colour shows how many experts the token uses."""

from __future__ import annotations

from collections.abc import Iterator

from rorqual.data.tokenizer import Tokenizer
from rorqual.evals.compute import ComputeReport, CountedReply, tables
from rorqual.report.page import ColouredText, render_page

FULL = 75
"""Strength of the colour, in percent, of a token all of whose choices are experts with weights."""
SHOWN = 12
"""Number of replies on the HTML page."""


def compute_page(report: ComputeReport, tokenizer: Tokenizer) -> str:
    """Return the HTML page of `report`. The page shows the first replies of each family in turn."""
    parts = [group for group in report.groups if group.kind == "part"]
    return render_page(
        "compute",
        report=report,
        facts=[(group.name, f"{group.experts:.2f}", f"{group.tokens:,} tokens") for group in parts],
        legend=[(str(used), "", round(FULL * used / report.chosen), "") for used in range(report.chosen + 1)],
        replies=[
            (_summary(reply), colour_by_expert(reply, report.chosen, tokenizer)) for reply in shown_replies(report)
        ],
        tables=list(tables(report)),
    )


def shown_replies(report: ComputeReport) -> list[CountedReply]:
    """Return the first `SHOWN` replies: the first reply of each family, then the second reply of each family, and so on."""
    families: dict[str, list[CountedReply]] = {}
    for reply in report.replies:
        families.setdefault(reply.problem.family, []).append(reply)
    longest = max(map(len, families.values()))
    return [group[turn] for turn in range(longest) for group in families.values() if turn < len(group)][:SHOWN]


def _summary(reply: CountedReply) -> str:
    mean = sum(reply.experts) / len(reply.experts)
    return f"{reply.problem.family}, {reply.problem.level}: {mean:.2f} experts, {reply.verdict.value}"


def colour_by_expert(reply: CountedReply, chosen: int, tokenizer: Tokenizer) -> ColouredText:
    """Return the text of a reply, coloured by the number of experts of each token. Tokens that share a character are joined."""
    parts = []
    for positions, text in token_groups_of_characters(reply.tokens, tokenizer):
        used = sum(reply.experts[place] for place in positions) / len(positions)
        kind = "p" if reply.parts[positions[0]] == "prompt" else ""
        parts.append((text, kind, round(FULL * used / chosen), f"{used:.2f}"))
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
