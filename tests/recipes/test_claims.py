"""Each claim of the quickstart's report compares what its sentence says, and has the figures of that comparison."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from rorqual.engine.request import SamplingParams
from rorqual.evals.compare import compare, did_think, is_right
from rorqual.evals.evaluation import Evaluation, GradedSample
from rorqual.evals.stats import claim, holm
from rorqual.recipes.quickstart.claims import (
    STUDENT_TOPICS,
    TOPICS,
    ask,
    claims,
    student_claims,
)
from rorqual.recipes.quickstart.findings import ExpertsReport, Findings, Summary
from rorqual.tasks.task import Verdict


def sample(key: str, right: bool, family: str, thought: bool) -> GradedSample:
    verdict = Verdict.RIGHT if right else Verdict.WRONG
    return GradedSample(
        key=key, family=family, level="1", prompt="p", answer="a", reply="r", reasoning=None, verdict=verdict, tokens=3,
        thinking_tokens=int(thought), thought=thought, truncated=False,
    )  # fmt: skip


def of(samples: list[GradedSample]) -> Evaluation:
    return Evaluation(
        task="t", split="test", seed=0, count=len(samples), per_family=False, thinking="auto", params=SamplingParams(),
        samples=tuple(samples),
    )  # fmt: skip


def findings() -> Findings:
    """Six evaluations of the teacher and four of the student, no two alike, and none thinks as often as it is right."""
    evaluations, students = {}, {}
    names = list(itertools.product(("before", "after"), ("auto", "on", "off")))
    for place, name in enumerate(
        [*names, *itertools.product(("student-base", "reinforced", "distilled", "answers-only"), ("auto",))]
    ):
        random = np.random.default_rng(place)
        made = of(
            [
                sample(
                    f"{f}{n}",
                    bool(random.random() < 0.1 + 0.08 * place),
                    f,
                    thought=bool(random.random() < 0.9 - 0.08 * place),
                )
                for f in ("f", "g")
                for n in range(40)
            ]
        )
        (evaluations if name in names else students)[name] = made
    experts = ExpertsReport(layers=(), families=(), share=(), load=())
    summary = Summary(model={}, stages=(), seed=0, command="")
    return Findings([], [], evaluations, experts, summary, students)  # type: ignore[arg-type]


WHERE: dict[str, tuple[str, str, Any]] = {
    "more-right": ("before auto", "after auto", is_right),
    "thinking-helps": ("after off", "after on", is_right),
    "thinks-more": ("before auto", "after auto", did_think),
    "better-thinker": ("before on", "after on", is_right),
    "distilled-over-reinforced": ("reinforced auto", "distilled auto", is_right),
    "distilled-over-base": ("student-base auto", "distilled auto", is_right),
    "reinforced-over-base": ("student-base auto", "reinforced auto", is_right),
    "distilled-over-answers": ("answers-only auto", "distilled auto", is_right),
}
"""By the name of a claim: what is compared with what, and by which measure."""


def test_each_claim_compares_what_its_sentence_says() -> None:
    for topic in (*TOPICS, *STUDENT_TOPICS):
        assert (" ".join(topic.before), " ".join(topic.after), topic.measure) == WHERE[topic.name]
    assert WHERE.keys() == {topic.name for topic in (*TOPICS, *STUDENT_TOPICS)}


@pytest.mark.parametrize("which", ["teacher", "student"])
def test_each_claim_has_the_figures_of_its_comparison(which: str) -> None:
    """Its estimate, its interval, the wider one beside it, and a one-sided p-value before Holm's correction."""
    found = findings()
    topics, evaluations = (TOPICS, found.evaluations) if which == "teacher" else (STUDENT_TOPICS, found.students)
    grains = ("family",) if which == "teacher" else ("all", "family")
    asked = claims(found) if which == "teacher" else student_claims(found)
    assert asked == ask(topics, evaluations, grains)  # type: ignore[arg-type]
    expected = []
    for topic in topics:
        for grain in grains:
            both = (evaluations[topic.before], evaluations[topic.after])
            rows, wide = (
                compare(*both, grain=grain, measure=topic.measure, side="greater", confidence=c)  # type: ignore[arg-type]
                for c in (0.95, 0.99)
            )
            expected += [(topic, row, wider.difference.interval) for row, wider in zip(rows, wide, strict=True)]
    assert len(asked) == len(expected) == (8 if which == "teacher" else 12)
    for item, (topic, row, wide) in zip(asked, expected, strict=True):
        family = "all families" if row.family == "all" else row.family
        assert (item.topic, item.family, item.paired, item.wide) == (topic, family, row, wide)
        assert item.claim.text == topic.text.format(family=family) and item.claim.text.startswith(family)
        assert (item.claim.estimate, item.claim.interval) == (row.difference.mean, row.difference.interval)
        assert "one-sided, Holm-corrected" in item.claim.how
    corrected = holm(claim("", 0.0, row.difference.interval, row.p_value, "") for _, row, _ in expected)
    assert [item.claim.p_value for item in asked] == [one.p_value for one in corrected]
    assert len({item.claim.estimate for item in asked}) > len(asked) / 2
