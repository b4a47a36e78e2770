"""The report's tables of claims about the models of one run: an overview, and every claim with its figures."""

from __future__ import annotations

from collections.abc import Sequence

from rorqual.evals import page
from rorqual.evals.claims import SupportedClaim, Topic
from rorqual.evals.stats import Claim, Interval
from rorqual.evals.table import p_text, percent

MARKS = {"higher": ("yes", "●"), "lower": ("no", "✕"), "open": ("open", "○")}


def claim_tables(supported: Sequence[SupportedClaim], topics: Sequence[Topic], name: str = "claims") -> list[str]:
    """Return HTML: an overview of families by topics, the meaning of its symbols, and every claim with its figures."""
    families = list(dict.fromkeys(item.family for item in supported))
    by_topic = {(item.topic.name, item.family): item for item in supported}

    def short(topic: Topic, family: str) -> str:
        item = by_topic.get((topic.name, family))
        if item is None:
            return ""
        kind, mark = MARKS[item.claim.sign]
        text = f'<span class="v v-{kind}" title="{item.claim.sign}">{points(item.claim.estimate)} {mark}</span>'
        return page.Html(text)

    matrix = [[family, *(short(topic, family) for topic in topics)] for family in families]
    words = (
        f"Change in percentage points: ● higher, ○ open, ✕ lower. Higher: the 95 % interval lies above zero, and the p-value, "
        f"Holm-corrected for all {len(supported)} claims, is at most 0.05. Lower: the interval lies below zero (not corrected). Otherwise "
        "the claim is open. Intervals are score intervals over problems (Tango, with Edwards' correction). P-values are from "
        "McNemar's exact test, one-sided. They apply to these models on other problems, not to other seeds, and so not to the method."
    )
    heads = ["claim", "result", "before", "after", "difference", "95 % interval", "99 % interval", "p\u00a0(Holm)"]
    groups = [(topic.title, [_claim_row(i) for i in supported if i.topic is topic]) for topic in topics]
    every = page.table(name, heads, groups, text_columns=2)
    return [
        page.table(f"{name} at a glance", ["family", *(topic.title for topic in topics)], [("", matrix)]),
        page.para(words, "note"),
        page.folded("Every claim with its figures", every, is_open=name == "claims"),
    ]


def sign_mark(claim: Claim) -> str:
    """Return the sign as a symbol and a word, so that readers need not distinguish colours."""
    kind, mark = MARKS[claim.sign]
    return page.Html(f'<span class="v v-{kind}">{mark} {claim.sign}</span>')


def points(value: float) -> str:
    """Return a difference of shares in percentage points, with a sign. The minus sign is U+2212."""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def points_interval(interval: Interval) -> str:
    """Return both ends of an interval in percentage points."""
    return f"[{points(interval.low)}, {points(interval.high)}]"


def _claim_row(item: SupportedClaim) -> list[str]:
    return [
        item.claim.text,
        sign_mark(item.claim),
        percent(item.paired.before),
        percent(item.paired.after),
        points(item.claim.estimate),
        points_interval(item.claim.interval),
        points_interval(item.wide),
        p_text(item.claim.p_value),
    ]
