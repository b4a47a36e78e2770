"""The report's tables of claims: at a glance, and each with its figures."""

from __future__ import annotations

from collections.abc import Sequence

from rorqual.evals import page
from rorqual.evals.claims import Asked, Topic
from rorqual.evals.stats import Claim, Interval
from rorqual.evals.table import p_text, percent

MARKS = {"holds": ("yes", "●"), "does not hold": ("no", "✕"), "not decided": ("open", "○")}


def claim_tables(asked: Sequence[Asked], topics: Sequence[Topic], name: str = "claims") -> list[str]:
    """HTML: families down and topics across; what the marks mean; every claim with its figures."""
    families = list(dict.fromkeys(item.family for item in asked))
    found = {(item.topic.name, item.family): item for item in asked}

    def short(topic: Topic, family: str) -> str:
        item = found.get((topic.name, family))
        if item is None:
            return ""
        kind, mark = MARKS[item.claim.holds]
        text = f'<span class="v v-{kind}" title="{item.claim.holds}">{points(item.claim.estimate)} {mark}</span>'
        return page.Html(text)

    matrix = [[family, *(short(topic, family) for topic in topics)] for family in families]
    words = (
        f"Change in percentage points. ● holds, ○ not decided, ✕ does not hold. A claim holds where its 95 % interval lies "
        f"wholly above zero and its p-value, corrected by Holm's method for all {len(asked)} claims, is at most 0.05; it does not "
        "hold where the interval lies wholly below zero (not corrected); anything else is not decided. Intervals are bootstraps over "
        "problems, p-values McNemar's exact test, one-sided. They speak of other problems, not of another seed."
    )
    heads = ["claim", "verdict", "before", "after", "difference", "95 % interval", "99 % interval", "p\u00a0(Holm)"]
    groups = [(topic.title, [_claim_row(i) for i in asked if i.topic is topic]) for topic in topics]
    every = page.table(name, heads, groups, text_columns=2)
    return [
        page.table(f"{name} at a glance", ["family", *(topic.title for topic in topics)], [("", matrix)]),
        page.para(words, "note"),
        page.folded("Each claim with its figures", every, is_open=name == "claims"),
    ]


def verdict_mark(claim: Claim) -> str:
    """The verdict as a mark and a word: colour alone would not do."""
    kind, mark = MARKS[claim.holds]
    return page.Html(f'<span class="v v-{kind}">{mark} {claim.holds}</span>')


def points(value: float) -> str:
    """A difference of shares in percentage points, signed with a true minus."""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def points_interval(interval: Interval) -> str:
    """Both ends in percentage points."""
    return f"[{points(interval.low)}, {points(interval.high)}]"


def _claim_row(item: Asked) -> list[str]:
    return [
        item.claim.text,
        verdict_mark(item.claim),
        percent(item.paired.before),
        percent(item.paired.after),
        points(item.claim.estimate),
        points_interval(item.claim.interval),
        points_interval(item.wide),
        p_text(item.claim.p_value),
    ]
