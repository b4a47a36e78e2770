"""The report's claims about the models of one run, tested for each family.

These claims apply to the models of one run only. A verdict on a method needs several seeds, but a run has one seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rorqual.core.records import Thinking
from rorqual.evals.compare import Comparison, Measure, compare, did_think, is_right
from rorqual.evals.evaluation import ALL, Evaluation, Grain
from rorqual.evals.stats import Claim, Interval, claim, holm
from rorqual.evals.table import p_text, percent
from rorqual.recipes.quickstart.findings import Findings
from rorqual.report.table import Table


@dataclass(frozen=True)
class Topic:
    """A question that is tested for every family: is `measure` higher in evaluation `after` than in `before`?"""

    name: str
    title: str
    text: str
    before: tuple[str, Thinking]
    after: tuple[str, Thinking]
    measure: Measure


TOPICS = (
    Topic(
        "more-right",
        "more right after GRPO",
        "{family}: with its own choice to think, the model is right more often after GRPO than before",
        ("before", "auto"),
        ("after", "auto"),
        is_right,
    ),
    Topic(
        "thinking-helps",
        "thinking beats answering at once",
        "{family}: after GRPO, the model is right more often when made to think than when it answers at once",
        ("after", "off"),
        ("after", "on"),
        is_right,
    ),
    Topic(
        "thinks-more",
        "thinks more often",
        "{family}: the model chooses to think more often after GRPO",
        ("before", "auto"),
        ("after", "auto"),
        did_think,
    ),
    Topic(
        "better-thinker",
        "more right when made to think",
        "{family}: when made to think, the model is right more often after GRPO than before",
        ("before", "on"),
        ("after", "on"),
        is_right,
    ),
)


STUDENT_TOPICS = (
    Topic(
        "distilled-over-reinforced",
        "distilled beats reinforced",
        "{family}: the distilled student is right more often than the reinforced student",
        ("reinforced", "auto"),
        ("distilled", "auto"),
        is_right,
    ),
    Topic(
        "distilled-over-base",
        "distilled beats its base",
        "{family}: the distilled student is right more often than the base student",
        ("student-base", "auto"),
        ("distilled", "auto"),
        is_right,
    ),
    Topic(
        "reinforced-over-base",
        "reinforced beats its base",
        "{family}: the reinforced student is right more often than the base student",
        ("student-base", "auto"),
        ("reinforced", "auto"),
        is_right,
    ),
    Topic(
        "distilled-over-answers",
        "thinking beats answers alone",
        "{family}: the distilled student is right more often than a student trained on the answers alone",
        ("answers-only", "auto"),
        ("distilled", "auto"),
        is_right,
    ),
)


@dataclass(frozen=True)
class SupportedClaim:
    """A claim with its evidence. `wide` is the 99 % interval, and `claim` contains the 95 % interval."""

    topic: Topic
    family: str
    claim: Claim
    wide: Interval
    paired: Comparison


def claims(findings: Findings) -> list[SupportedClaim]:
    """Return the claims about GRPO on the teacher."""
    return ask(TOPICS, findings.evaluations, ("family",))


def student_claims(findings: Findings) -> list[SupportedClaim]:
    """Return the claims about the student's branches, first pooled and then by family. Return an empty list if the run
    has no student."""
    return ask(STUDENT_TOPICS, findings.students, ("all", "family")) if findings.students else []


def ask(
    topics: Sequence[Topic], evaluations: Mapping[tuple[str, Thinking], Evaluation], grains: Sequence[Grain]
) -> list[SupportedClaim]:
    """Test every topic with one-sided exact McNemar tests, pooled or by family as `grains` says. The p-values are
    Holm-corrected over all tests."""
    supported: list[SupportedClaim] = []
    for topic in topics:
        before, after = evaluations[topic.before], evaluations[topic.after]
        for grain in grains:
            rows = compare(before, after, grain=grain, measure=topic.measure, side="greater")
            wide = compare(before, after, grain=grain, measure=topic.measure, side="greater", confidence=0.99)
            for row, wider in zip(rows, wide, strict=True):
                change, family = row.difference, "all families" if row.family == ALL else row.family
                how = "McNemar's exact test, one-sided, Holm-corrected; score interval over problems"
                tested = claim(topic.text.format(family=family), change.mean, change.interval, row.p_value, how)
                supported.append(SupportedClaim(topic, family, tested, wider.difference.interval, row))
    corrected = holm(item.claim for item in supported)
    return [replace(item, claim=claim) for item, claim in zip(supported, corrected, strict=True)]


MARKS = {"higher": "●", "lower": "✕", "open": "○"}


def overview_table(supported: Sequence[SupportedClaim]) -> Table:
    """Return the result of each claim: families by topics."""
    topics = {item.topic.name: item.topic.title for item in supported}
    rows: dict[str, list[str]] = {item.family: [item.family] for item in supported}
    for item in supported:
        rows[item.family].append(f"{points(item.claim.estimate)} {MARKS[item.claim.sign]}")
    return Table(title="claims at a glance", heads=("family", *topics.values()), rows=rows.values())


def claims_table(supported: Sequence[SupportedClaim]) -> Table:
    """Return every claim with its figures."""
    rows: list[tuple[str, ...]] = []
    for topic in dict.fromkeys(item.topic for item in supported):
        rows += [(topic.title,), *(_claim_row(item) for item in supported if item.topic is topic)]
    heads = ("claim", "result", "before", "after", "difference", "95 % interval", "99 % interval", "p\u00a0(Holm)")
    return Table(title="every claim", heads=heads, rows=rows, text_columns=2)


def _claim_row(item: SupportedClaim) -> tuple[str, ...]:
    return (
        item.claim.text,
        f"{MARKS[item.claim.sign]} {item.claim.sign}",
        percent(item.paired.before),
        percent(item.paired.after),
        points(item.claim.estimate),
        points_interval(item.claim.interval),
        points_interval(item.wide),
        p_text(item.claim.p_value),
    )


def points(value: float) -> str:
    """Return a difference of shares in percentage points, with a sign. The minus sign is U+2212."""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def points_interval(interval: Interval) -> str:
    """Return both ends of an interval in percentage points."""
    return f"[{points(interval.low)}, {points(interval.high)}]"
