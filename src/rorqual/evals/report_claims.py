"""The report's tables of claims on one run's models: at a glance, and each with its figures."""

from __future__ import annotations

from collections.abc import Sequence

from rorqual.evals import page
from rorqual.evals.claims import SupportedClaim, Topic
from rorqual.evals.stats import Claim, Interval
from rorqual.evals.table import p_text, percent

MARKS = {"higher": ("yes", "●"), "lower": ("no", "✕"), "open": ("open", "○")}


def claim_tables(asked: Sequence[SupportedClaim], topics: Sequence[Topic], name: str = "claims") -> list[str]:
    """HTML: families down and topics across; what the marks mean; every claim with its figures."""
    families = list(dict.fromkeys(item.family for item in asked))
    found = {(item.topic.name, item.family): item for item in asked}

    def short(topic: Topic, family: str) -> str:
        item = found.get((topic.name, family))
        if item is None:
            return ""
        kind, mark = MARKS[item.claim.sign]
        text = f'<span class="v v-{kind}" title="{item.claim.sign}">{points(item.claim.estimate)} {mark}</span>'
        return page.Html(text)

    matrix = [[family, *(short(topic, family) for topic in topics)] for family in families]
    words = (
        f"Change in percentage points. ● higher, ○ open, ✕ lower. It is higher where the 95 % interval lies wholly above zero and "
        f"the p-value, corrected by Holm's method for all {len(asked)} claims, is at most 0.05; lower where the interval lies wholly "
        "below zero (not corrected); anything else is open. Intervals are score intervals over problems (Tango's, with Edwards' "
        "correction), p-values McNemar's exact test, one-sided. They speak of these models on other problems: not of another seed, and "
        "so not of the method."
    )
    heads = ["claim", "here", "before", "after", "difference", "95 % interval", "99 % interval", "p\u00a0(Holm)"]
    groups = [(topic.title, [_claim_row(i) for i in asked if i.topic is topic]) for topic in topics]
    every = page.table(name, heads, groups, text_columns=2)
    return [
        page.table(f"{name} at a glance", ["family", *(topic.title for topic in topics)], [("", matrix)]),
        page.para(words, "note"),
        page.folded("Each claim with its figures", every, is_open=name == "claims"),
    ]


def sign_mark(claim: Claim) -> str:
    """The sign as a mark and a word: colour alone would not do."""
    kind, mark = MARKS[claim.sign]
    return page.Html(f'<span class="v v-{kind}">{mark} {claim.sign}</span>')


def points(value: float) -> str:
    """A difference of shares in percentage points, signed with a true minus."""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def points_interval(interval: Interval) -> str:
    """Both ends in percentage points."""
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
