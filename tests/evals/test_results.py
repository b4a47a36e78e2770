"""Runs and seeds are compared with the figures of a plain computation, and every form of the result says the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import rorqual
from rorqual.core.errors import ConfigError, DataError
from rorqual.evals.evaluation import Evaluation, GradedSample
from rorqual.evals.results import Results, compare
from rorqual.evals.stats import paired_interval
from rorqual.evals.table import unmarked_replies_note
from rorqual.evals.text_loss import TextLoss
from rorqual.tasks.task import Verdict

SEEDS, PROBLEMS = 5, 60
RANDOM = np.random.default_rng(7)
OLD = [RANDOM.random(PROBLEMS) < 0.35 + 0.03 * seed for seed in range(SEEDS)]
NEW = [old | (RANDOM.random(PROBLEMS) < 0.25) for old in OLD]
LOSSES = [RANDOM.normal(2.0 + 0.1 * seed, 0.3, PROBLEMS) for seed in range(SEEDS)]
LOWER = [old - RANDOM.normal(0.3, 0.1, PROBLEMS) for old in LOSSES]


def answers(right: Sequence[bool], model: str = "m") -> Evaluation:
    """The evaluation of two families of problems, of which the i-th is right as told."""
    samples = tuple(
        GradedSample(
            key=str(number),
            family=("even", "odd")[number % 2],
            level=str(number % 4),
            prompt="p",
            answer="a",
            reply="r",
            reasoning=None,
            verdict=Verdict.RIGHT if one else Verdict.WRONG,
            last=Verdict.WRONG,
            unmarked=number == 0,
            tokens=1,
            thinking_tokens=0,
            thought=False,
            truncated=False,
        )
        for number, one in enumerate(right)
    )
    asked: dict[str, Any] = {"split": "test", "seed": 0, "count": 1, "per_family": False, "thinking": "auto"}
    return Evaluation(task="t", model=model, params=rorqual.SamplingParams(), samples=samples, **asked)


def losses(values: Sequence[float], passages: str = "same", model: str = "m") -> TextLoss:
    """The losses on a text whose passages have 16 tokens."""
    return TextLoss(
        text="a.txt", model=model, window=16, passages=passages, losses=tuple(values), characters=99, bytes=99
    )


def plain_bootstrap(changes: Sequence[np.ndarray]) -> list[float]:
    """The 99 % interval of means over drawn seeds and drawn items, which all seeds share, one resample after another."""
    random, means = np.random.default_rng(99), []
    for _ in range(20_000):
        seeds, items = random.integers(SEEDS, size=SEEDS), random.integers(PROBLEMS, size=PROBLEMS)
        means.append(np.mean(np.stack(changes)[np.ix_(seeds, items)]))
    return list(np.percentile(means, [0.5, 99.5]))


@pytest.mark.parametrize(("before", "after", "make"), [(OLD, NEW, answers), (LOSSES, LOWER, losses)])
def test_the_figures_of_five_seeds_are_those_of_numpy_and_scipy(before: Any, after: Any, make: Any) -> None:
    (found,) = compare([make(one) for one in before], [make(one) for one in after], grain="all").comparisons
    (row,) = found.rows
    changes = [np.asarray(new, float) - np.asarray(old, float) for old, new in zip(before, after, strict=True)]
    by_seed = [change.mean() for change in changes]
    assert (row.before, row.after) == pytest.approx((np.mean(before), np.mean(after)))
    assert row.difference.mean == pytest.approx(np.mean(by_seed)) and row.difference.pairs == SEEDS * PROBLEMS
    assert row.seed_differences == pytest.approx(by_seed)
    low, high = stats.t.interval(0.99, SEEDS - 1, np.mean(by_seed), stats.sem(by_seed))
    assert row.student is not None and (row.student.low, row.student.high) == pytest.approx((low, high), abs=1e-5)
    expected = plain_bootstrap(changes)
    if make is answers:  # a score interval over problems may be wider
        gained = np.mean(changes, axis=0).clip(0).sum()
        score = paired_interval(gained, 0, PROBLEMS, 0.99)
        expected = [min(expected[0], score.low), max(expected[1], score.high)]
    assert [row.difference.interval.low, row.difference.interval.high] == pytest.approx(expected, abs=6e-3)
    assert row.difference.interval.confidence == 0.99 and row.p_value is None
    assert row.verdict == ("holds" if make is answers else "does not hold")
    assert (row.gained, row.lost) == (sum((c > 0).sum() for c in changes), sum((c < 0).sum() for c in changes))


def test_five_seeds_that_agree_on_their_passages_are_no_more_evidence_than_one() -> None:
    passages = np.random.default_rng(5).normal(2.0, 0.5, size=(2, 60))
    seeds = [[losses(side + 0.001 * seed) for seed in range(5)] for side in passages]
    ends = [compare(*arms).comparisons[0].rows[0].difference.interval for arms in (seeds, [side[:1] for side in seeds])]
    width, alone = (interval.high - interval.low for interval in ends)
    assert width == pytest.approx(alone, rel=0.1)


def test_a_single_seed_has_the_exact_test_and_the_unmarked_replies() -> None:
    (found,) = rorqual.compare(answers(OLD[0], "old"), answers(NEW[0], "new"), grain="all").comparisons
    (row,) = found.rows
    gained = int((NEW[0] & ~OLD[0]).sum())
    assert row.p_value == pytest.approx(stats.binomtest(gained, gained).pvalue)
    assert row.student is None and row.verdict == "open" and row.difference.interval.confidence == 0.99
    assert found.title == "new - old, paired"
    assert found.note == unmarked_replies_note({"old": answers(OLD[0]), "new": answers(NEW[0])}) != ""


def test_a_single_text_is_compared_by_its_passages() -> None:
    (found,) = compare(losses(LOSSES[0]), losses(LOWER[0])).comparisons
    (row,) = found.rows
    change = LOWER[0] - LOSSES[0]
    random = np.random.default_rng(5)
    means = [random.choice(change, PROBLEMS).mean() for _ in range(20_000)]
    interval = row.difference.interval
    assert [interval.low, interval.high] == pytest.approx(np.percentile(means, [0.5, 99.5]), abs=6e-3)
    assert (row.before, row.after) == pytest.approx((LOSSES[0].mean(), LOWER[0].mean()))
    text = str(Results((found,)))
    assert f"{LOSSES[0].mean():.4f}" in text and "before nats" in text and "a.txt" in text


def made(folder: Path, arm: str, results: Sequence[Evaluation | TextLoss], name: str) -> list[Path]:
    """Run folders ARM-0, ARM-1, ... with one result each."""
    runs = [folder / f"{arm}-{seed}" for seed in range(len(results))]
    for run, result in zip(runs, results, strict=True):
        result.save(run / "evals" / name)
    return runs


def test_run_folders_are_compared_on_what_all_of_them_contain(tmp_path: Path) -> None:
    arms = []
    for arm, shift in (("a", 0), ("b", 1), ("c", 2)):
        runs = made(tmp_path, arm, [answers(np.roll(one, shift)) for one in OLD], "t-test-auto.json")
        made(tmp_path, arm, [losses(one + shift) for one in LOSSES], "a.txt-loss.json")
        arms.append(runs)
    answers(OLD[0]).save(arms[0][0] / "evals" / "only-here.json")
    found = compare(*arms, names=("first", "second", "third"), grain="level", confidence=0.9).comparisons
    assert [(one.evaluation, one.before, one.after, len(one.rows)) for one in found] == [
        ("a.txt-loss", "first", "second", 1),
        ("a.txt-loss", "first", "third", 1),
        ("t-test-auto", "first", "second", 4),
        ("t-test-auto", "first", "third", 4),
    ]
    assert [one.rows[0].difference.mean for one in found[:2]] == pytest.approx([1.0, 2.0])
    assert {one.rows[0].difference.interval.confidence for one in found} == {0.9}
    assert found[2].title == "t-test-auto: second - first, paired over 5 seeds"
    second = compare(*arms[:2])
    assert second.comparisons[0].before == f"{arms[0][0]} (+4)"
    # Seeds are paired in their order.
    assert second.comparisons[1].rows[0].by_seed[3][0] == pytest.approx(OLD[3][::2].mean())


def test_every_form_has_the_same_figures(tmp_path: Path) -> None:
    found = compare([answers(one) for one in OLD], [answers(one) for one in NEW], names=("a_1", "b & c"))
    row = found.comparisons[0].rows[0]
    found.to_json(tmp_path / "r.json")
    whole = json.loads((tmp_path / "r.json").read_bytes())["comparisons"]
    assert (whole[0]["before"], whole[0]["after"], whole[0]["evaluation"]) == ("a_1", "b & c", "")
    stored, interval = whole[0]["rows"][0], row.difference.interval
    assert (stored["family"], stored["verdict"]) == ("even", row.verdict)
    assert stored["by_seed"] == [list(pair) for pair in row.by_seed]
    assert stored["difference"]["interval"] == {"low": interval.low, "high": interval.high, "confidence": 0.99}
    assert row.student is not None and stored["student"]["low"] == row.student.low
    for name, start in (("r.svg", b"<?xml"), ("r.pdf", b"%PDF"), ("r.png", b"\x89PNG")):
        for place in (tmp_path / name, tmp_path / f"again-{name}"):
            found.plot(place)
        drawn = (tmp_path / name).read_bytes()
        assert drawn.startswith(start) and drawn == (tmp_path / f"again-{name}").read_bytes()
    with pytest.raises(ConfigError, match=r"'gif' is no format of a figure\n.*\.svg, \.pdf"):
        found.plot(tmp_path / "r.gif")
    assert not (tmp_path / "r.gif").exists()


def test_what_cannot_be_paired_is_refused_with_a_remedy(tmp_path: Path) -> None:
    one, other = answers(OLD[0]), losses(LOSSES[0])
    for arms, what in (
        ((one,), "1 arms"),
        ((one, []), "1, 0 runs"),
        (([one, answers(NEW[0])], one), "2 `before`"),
        (([other, losses(LOWER[0])], other), "2 `before`"),
        ((one, other), "losses on a text"),
        ((other, losses(LOSSES[0], "others")), "the passages differ"),
        ((one, answers(OLD[0][:9])), "different problems"),
    ):
        with pytest.raises(DataError, match=what):
            compare(*arms)
    with pytest.raises(DataError, match="2 arms with 1 names"):
        compare(one, one, names=("a",))
    (run,) = made(tmp_path, "run", [one], "x.json")
    (rest,) = made(tmp_path, "rest", [one], "y.json")
    with pytest.raises(DataError, match=r"no evaluation in common.*\n.*rorqual eval .*run-0 task="):
        compare(run, rest)
    with pytest.raises(DataError, match="one is a file and another a folder"):
        compare(run, run / "evals" / "x.json")
    with pytest.raises(DataError, match=r"none.json: the evaluation does not exist"):
        compare(tmp_path / "none.json", tmp_path / "none.json")


def test_a_result_given_twice_is_refused_as_two_seeds(tmp_path: Path) -> None:
    a, *rest = made(tmp_path, "a", [answers(one) for one in OLD], "t.json")
    b = made(tmp_path, "b", [answers(one) for one in NEW], "t.json")
    for twice in ([a, *rest[:3], a], [a, a / ".", *rest[:3]]):
        with pytest.raises(DataError, match=r"seeds 1 and \d of an arm are the same result: .*a-0 and .*a-0\n"):
            compare(twice, b)
        with pytest.raises(DataError, match=r"seeds 1 and \d of an arm are the same result: .*a-0 and .*a-0\n"):
            compare(b, twice)
    (copy,) = made(tmp_path, "copy", [answers(OLD[0])], "t.json")
    with pytest.raises(DataError, match=r"same result: .*a-0 and .*copy-0\n"):
        compare([a, copy], b[:2])
    with pytest.raises(DataError, match=r"seeds 1 and 3 of an arm are the same result: m and m"):
        compare([losses(one) for one in LOSSES[:3]], [losses(LOWER[0]), losses(LOWER[1]), losses(LOWER[0], model="m")])
    # Replies without log-probabilities may be the same for two seeds.
    alike = [answers(OLD[0]).model_copy(update={"seconds": time}) for time in (1.0, 2.0)]
    assert compare(alike, alike).comparisons
    # A second evaluation of the same model differs in its time, but not in its log-probabilities.
    sure = answers(OLD[0]).samples[0].model_copy(update={"logprob": -0.3})
    again = [answers(OLD[0]).model_copy(update={"samples": (sure,), "seconds": time}) for time in (1.0, 2.0)]
    with pytest.raises(DataError, match="are the same result"):
        compare(again, alike)


def test_the_same_training_seeds_in_another_order_are_refused() -> None:
    def arm(values: Sequence[Any], seeds: Sequence[int | None]) -> list[Evaluation]:
        return [
            answers(one, f"model-{seed}").model_copy(update={"training_seed": seed})
            for one, seed in zip(values, seeds, strict=False)
        ]

    with pytest.raises(DataError, match=r"model-1 has training seed 1, but its pair model-2 has 2\n"):
        compare(arm(OLD, (0, 1, 2)), arm(NEW, (0, 1, 2)), arm(NEW, (0, 2, 1)))
    for before, after in (((0, 1), (0, 1)), ((0, 1), (5, 6)), ((0, 1), (0, 0)), ((None, 1), (1, None)), ((0,), (1,))):
        assert compare(arm(OLD, before), arm(NEW, after)).comparisons


def test_evaluations_of_other_settings_have_a_note() -> None:
    def asked(model: str, params: dict[str, Any], **more: Any) -> Evaluation:
        made = {"params": rorqual.SamplingParams(**params), **more}
        return answers(NEW[int(model)], model).model_copy(update=made)

    plain = asked("0", {"max_tokens": 8}, settings={"backend": "torch", "data": "a", "dtype": "float32"})
    other = asked("1", {"max_tokens": 64, "temperature": 1.0}, thinking="on", settings={"backend": "mine", "data": "b"})
    for arms in ((plain, other), ([asked("2", {}), plain], [asked("3", {}), other])):
        (found,) = compare(*arms).comparisons
        *_, note = found.note.split("\n")
        assert note == (
            "The evaluations have different settings: max_tokens 8 and 64; temperature 0.0 and 1.0; thinking 'auto' and 'on'; "
            "backend 'torch' and 'mine'."
        )
    assert "different settings" not in str(compare(plain, asked("4", {"max_tokens": 8})))
