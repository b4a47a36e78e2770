"""What the report says of one run's models, family by family, and whether the figures bear it out. No verdict on a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rorqual.core.records import Thinking
from rorqual.evals.compare import Comparison, Measure, compare, did_think, is_right
from rorqual.evals.evaluation import ALL, Evaluation, Grain
from rorqual.evals.reading import Findings
from rorqual.evals.stats import Claim, Interval, claim, holm


@dataclass(frozen=True)
class Topic:
    """One question put to every family: is `measure` higher in evaluation `after` than in `before`?"""

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
        "{family}: more is right after GRPO than before, by the model's own choice",
        ("before", "auto"),
        ("after", "auto"),
        is_right,
    ),
    Topic(
        "thinking-helps",
        "thinking beats answering at once",
        "{family}: after GRPO, made to think it is right more often than answering at once",
        ("after", "off"),
        ("after", "on"),
        is_right,
    ),
    Topic(
        "thinks-more",
        "thinks more often",
        "{family}: it chooses to think more often after GRPO",
        ("before", "auto"),
        ("after", "auto"),
        did_think,
    ),
    Topic(
        "better-thinker",
        "more right when made to think",
        "{family}: made to think, it is right more often after GRPO than before",
        ("before", "on"),
        ("after", "on"),
        is_right,
    ),
)


STUDENT_TOPICS = (
    Topic(
        "distilled-over-reinforced",
        "distilled beats reinforced",
        "{family}: the distilled student is right more often than its reinforced rival",
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
        "{family}: the distilled student is right more often than the one trained on the same problems' answers alone",
        ("answers-only", "auto"),
        ("distilled", "auto"),
        is_right,
    ),
)


@dataclass(frozen=True)
class SupportedClaim:
    """A claim with what it rests on; `wide` is the 99 % interval beside the claim's 95 % one."""

    topic: Topic
    family: str
    claim: Claim
    wide: Interval
    paired: Comparison


def claims(findings: Findings) -> list[SupportedClaim]:
    """What is claimed of the teacher's reinforcement."""
    return ask(TOPICS, findings.evaluations, ("family",))


def student_claims(findings: Findings) -> list[SupportedClaim]:
    """What is claimed of the student's branches, over all families together first; none where there is no student."""
    return ask(STUDENT_TOPICS, findings.students, ("all", "family")) if findings.students else []


def ask(
    topics: Sequence[Topic], evaluations: Mapping[tuple[str, Thinking], Evaluation], grains: Sequence[Grain]
) -> list[SupportedClaim]:
    """Every topic asked of every family (or all): McNemar's exact test, one-sided, corrected by Holm over all of them."""
    asked: list[SupportedClaim] = []
    for topic in topics:
        before, after = evaluations[topic.before], evaluations[topic.after]
        for grain in grains:
            rows = compare(before, after, grain=grain, measure=topic.measure, side="greater")
            wide = compare(before, after, grain=grain, measure=topic.measure, side="greater", confidence=0.99)
            for row, wider in zip(rows, wide, strict=True):
                change, family = row.difference, "all families" if row.family == ALL else row.family
                how = "McNemar's exact test, one-sided, Holm-corrected; score interval over problems"
                made = claim(topic.text.format(family=family), change.mean, change.interval, row.p_value, how)
                asked.append(SupportedClaim(topic, family, made, wider.difference.interval, row))
    corrected = holm(item.claim for item in asked)
    return [replace(item, claim=claim) for item, claim in zip(asked, corrected, strict=True)]


@dataclass(frozen=True)
class GainAccount:
    """Where the gain came from, over all families, as shares of problems that were right."""

    before: float
    before_made_to_think: float
    after: float
    after_made_to_think: float
    thought_before: float
    thought_after: float

    @property
    def gain(self) -> float:
        return self.after - self.before

    @property
    def by_choice(self) -> float:
        """What making the model of before GRPO think would have gained, without any training."""
        return self.before_made_to_think - self.before


def account(findings: Findings) -> GainAccount:
    """How right it was before and after, by its own choice and when made to think."""
    rows = {name: evaluation.rows("all")[0] for name, evaluation in findings.evaluations.items()}
    return GainAccount(
        before=rows["before", "auto"].accuracy,
        before_made_to_think=rows["before", "on"].accuracy,
        after=rows["after", "auto"].accuracy,
        after_made_to_think=rows["after", "on"].accuracy,
        thought_before=rows["before", "auto"].thought,
        thought_after=rows["after", "auto"].thought,
    )
