"""A cascade: the calibration against a minimum that a search finds, and the curve against a plain second writing."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rorqual.core.errors import ConfigError, DataError, RorqualError
from rorqual.engine.request import SamplingParams
from rorqual.evals.calibration import CascadeRule, read_cascade_rule
from rorqual.evals.cascade import Cascade, calibrate, signal_of
from rorqual.evals.cascade_page import cascade_table
from rorqual.evals.evaluation import Evaluation, GradedSample
from rorqual.evals.stats import wilson
from rorqual.tasks.task import Verdict

RIGHT, WRONG = Verdict.RIGHT, Verdict.WRONG


def sample(key: str, verdict: Verdict, **more: Any) -> GradedSample:
    fields = {"tokens": 5, "logprob": -1.0, "answered": None, "truncated": False, **more}
    return GradedSample(
        key=key, family="f", prompt="?", answer="r", reply="", reasoning=None, verdict=verdict, thinking_tokens=0, thought=False,
        **fields,
    )  # fmt: skip


def evaluation(samples: list[GradedSample], *, n: int = 1, model: str = "m") -> Evaluation:
    return Evaluation(
        task="t", model=model, split="test", seed=0, count=len(samples), per_family=False, thinking="auto",
        params=SamplingParams(n=n, temperature=1.0), samples=tuple(samples),
    )  # fmt: skip


def drawn(seed: int, count: int = 60) -> Evaluation:
    """Answers that are right more often if they are more likely."""
    rng = random.Random(seed)
    logprobs = [-rng.random() for _ in range(count)]
    return evaluation(
        [
            sample(f"p{i}", RIGHT if rng.random() < math.exp(3 * x) else WRONG, logprob=x, tokens=rng.randint(1, 9))
            for i, x in enumerate(logprobs)
        ],
        model="small",
    )


def cascade(sure: float = 0.6, flops: bool = True) -> Cascade:
    student, rng = drawn(1), random.Random(5)
    teacher = [
        sample(f"p{i}", RIGHT if rng.random() < 0.9 else WRONG, tokens=rng.randint(10, 20))
        for i in rng.sample(range(60), 60)
    ]
    return Cascade(
        student=student,
        teacher=evaluation(teacher, model="large"),
        calibration=calibrate(drawn(2)),
        sure=sure,
        flops=({f"p{i}": 2.0 * i for i in range(60)}, {f"p{i}": 10.0 + i for i in range(60)}) if flops else None,
        fingerprints=("ab", "cd"),
    )


def test_the_calibration_is_the_minimum_of_the_loss() -> None:
    """With Platt's targets. No point around it has a smaller loss, and the loss is convex."""
    dev = drawn(3)
    found = calibrate(dev)
    xs = [one.logprob or 0.0 for one in dev.samples]
    positive = sum(one.verdict is RIGHT for one in dev.samples)
    targets = [
        (positive + 1) / (positive + 2) if one.verdict is RIGHT else 1 / (60 - positive + 2) for one in dev.samples
    ]

    def loss(slope: float, intercept: float) -> float:
        chances = [1 / (1 + math.exp(-(slope * x + intercept))) for x in xs]
        return -sum(t * math.log(p) + (1 - t) * math.log(1 - p) for p, t in zip(chances, targets, strict=True))

    least = loss(found.slope, found.intercept)
    for a, b in ((0.01, 0), (-0.01, 0), (0, 0.01), (0, -0.01), (0.5, 0.5), (-3, 1)):
        assert loss(found.slope + a, found.intercept + b) > least
    assert found.signal == "logprob" and found.slope > 0
    for x in (-1000.0, -2.0, 0.0, 1000.0):
        expected = 1 / (1 + math.exp(min(700, -(found.slope * x + found.intercept))))
        assert found.probability(x) == pytest.approx(expected)


def test_the_curve_against_a_plain_count() -> None:
    one = cascade()
    student = {s.key: s for s in one.student.samples}
    teacher = {s.key: s for s in one.teacher.samples}
    order = sorted(student, key=lambda key: student[key].logprob or 0.0)
    curve = one.curve()
    assert len(curve) == 61
    for asked, point in enumerate(curve):
        there, kept = order[:asked], order[asked:]
        right = sum(teacher[k].verdict is RIGHT for k in there) + sum(student[k].verdict is RIGHT for k in kept)
        little = sum(s.tokens for s in student.values()) / 60
        big = sum(teacher[k].tokens for k in there) / 60
        assert point.accuracy == pytest.approx(right / 60) and point.interval == wilson(right, 60)
        assert point.asked == asked / 60 and point.tokens == pytest.approx(little + big)
        spent = sum(2 * i for i in range(60)) + sum(10 + int(key[1:]) for key in there)
        assert point.flops == pytest.approx(spent / 60)
    ends = curve[0].accuracy, curve[-1].accuracy
    assert [p.at_random for p in curve] == pytest.approx(np.linspace(*ends, 61).tolist())
    alone = one.teacher_alone()
    assert alone.accuracy == ends[1] and alone.tokens == pytest.approx(sum(t.tokens for t in teacher.values()) / 60)
    assert alone.flops == pytest.approx(10 + sum(range(60)) / 60)
    assert max(p.accuracy - p.at_random for p in curve) > 0.05, "a signal that tells nothing would show nothing"


def test_votes_are_a_signal_too() -> None:
    votes = [["r", "r", "r"], ["r", "a", "b"], ["r", "r", None], [None, None, None]]
    groups = [[sample(f"p{i}", RIGHT if v == "r" else WRONG, answered=v) for v in some] for i, some in enumerate(votes)]
    assert [signal_of(group, "votes") for group in groups] == pytest.approx([1, 1 / 3, 2 / 3, 0])
    dev = evaluation(
        [s for i in range(5) for g in groups for s in [x.model_copy(update={"key": f"{i} {x.key}"}) for x in g]], n=3
    )
    assert calibrate(dev).signal == "votes"


def test_what_cannot_be_calibrated_is_refused() -> None:
    for bad in (drawn(1, count=9), evaluation([sample(f"p{i}", RIGHT) for i in range(20)])):
        with pytest.raises(ConfigError, match="do not give a calibration"):
            calibrate(bad)
    silent = evaluation([sample(f"p{i}", RIGHT, logprob=None) for i in range(20)])
    with pytest.raises(ConfigError, match="no log-probabilities"):
        calibrate(silent)
    cut = [*drawn(1, 12).samples, sample("c", WRONG, logprob=0.0, truncated=True)]
    assert calibrate(evaluation(cut)) == calibrate(drawn(1, 12)), "a truncated reply has no confidence"
    ungraded = [*drawn(1, 12).samples, sample("u", Verdict.UNGRADED, logprob=None, error="refused")]
    assert calibrate(evaluation(ungraded)) == calibrate(drawn(1, 12))


def test_a_servers_rule_is_read_from_the_file_and_a_bad_file_is_named(tmp_path: Path) -> None:
    one = cascade()
    one.save(tmp_path / "c.json")
    text = (tmp_path / "c.json").read_text(encoding="utf-8")
    assert Cascade.model_validate_json(text) == one
    assert read_cascade_rule(tmp_path / "c.json") == CascadeRule(
        student="small",
        teacher="large",
        fingerprints=("ab", "cd"),
        temperature=1.0,
        calibration=one.calibration,
        sure=one.sure,
    )
    with pytest.raises(DataError, match=r"none.json: the file does not exist"):
        read_cascade_rule(tmp_path / "none.json")
    bad = {
        "torn": ("{", "the file is not valid JSON"),
        "list": ("[]", "the file is not the result of a cascade"),
        "evaluation": (one.student.model_dump_json(), "the file is not the result of a cascade"),
        "signal": (text.replace('"signal": "logprob"', '"signal": "guess"'), "key 'calibration.signal'"),
    }
    for name, (content, what) in bad.items():
        (tmp_path / f"{name}.json").write_text(content, encoding="utf-8")
        with pytest.raises(RorqualError, match=f"{name}.json: {what}"):
            read_cascade_rule(tmp_path / f"{name}.json")


def test_failed_and_truncated_replies_go_to_the_teacher_and_ungraded_ones_are_counted() -> None:
    one = cascade(sure=0.01)
    changed = {
        "p3": {"error": "refused", "verdict": Verdict.UNGRADED, "logprob": None},
        "p4": {"truncated": True, "logprob": 0.0},
    }
    samples = [s.model_copy(update=changed.get(s.key, {})) for s in one.student.samples]
    bad = one.model_copy(update={"student": one.student.model_copy(update={"samples": tuple(samples)})})
    lowest = bad.problems_by_confidence()[:2]
    assert (
        {c.key for c in lowest} == {"p3", "p4"} and {c.confidence for c in lowest} == {0.0} and bad.ungraded_count == 0
    )
    [failed] = [c for c in lowest if c.key == "p3"]
    assert failed.student == 0
    lost = [s.model_copy(update={"verdict": Verdict.UNGRADED}) if s.key == "p5" else s for s in one.teacher.samples]
    fewer = one.model_copy(update={"teacher": one.teacher.model_copy(update={"samples": tuple(lost)})})
    assert fewer.ungraded_count == 1 and len(fewer.problems_by_confidence()) == 59
    assert "left out" not in cascade_table(one)
    none = [s.model_copy(update={"verdict": Verdict.UNGRADED}) for s in one.teacher.samples]
    empty = one.model_copy(update={"teacher": one.teacher.model_copy(update={"samples": tuple(none)})})
    with pytest.raises(DataError, match="no problem was graded for both models"):
        empty.curve()


def test_of_equal_confidences_none_is_first() -> None:
    one = cascade()
    equal = [s.model_copy(update={"logprob": -1.0 if i < 20 else -0.1}) for i, s in enumerate(one.student.samples)]
    tied = one.model_copy(update={"student": one.student.model_copy(update={"samples": tuple(equal)})})
    curve, choices = tied.curve(), tied.problems_by_confidence()
    low = choices[:20]
    assert len({c.confidence for c in low}) == 1
    gain = sum(c.teacher - c.student for c in low)
    for asked in (1, 7, 20):
        assert curve[asked].accuracy == pytest.approx(curve[0].accuracy + asked / 20 * gain / 60)
