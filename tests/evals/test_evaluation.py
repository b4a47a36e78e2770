"""An evaluation asks every model the same problems, keeps every answer, and compares only what can be paired."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import numpy as np
import pytest

from rorqual.core.errors import ConfigError, DataError, RorqualError
from rorqual.engine.request import Completion, Request, SamplingParams
from rorqual.evals.compare import compare_pair, compare_seeds
from rorqual.evals.evaluating import evaluate, pick_problems
from rorqual.evals.evaluation import Evaluation
from rorqual.evals.stats import paired_interval
from rorqual.tasks.task import Problem, Task, Verdict


class Sums(Task):
    """Sums and parities; parity of a level holds at most ten problems, and 13 is an answer nobody can grade."""

    name = "sums"

    def problems(self, split, seed):
        random = np.random.default_rng([seed, len(split)])
        while split != "train":
            level = int(random.integers(1, 4))
            a, b = sorted(int(x) for x in random.integers(0, 10**level, size=2))
            if random.random() < 0.5:
                yield Problem(f"sum:{a}+{b}", f"{a}+{b}", str(a + b), "sum", str(level))
            else:
                odd = a % 10 + 10 * level
                yield Problem(f"parity:{odd}", f"odd {odd}", str(odd % 2), "parity", str(level))

    def grade(self, problem, reply):
        if problem.answer == "13":
            return Verdict.UNGRADED
        return Verdict.RIGHT if reply == problem.answer else Verdict.WRONG


class Few(Task):
    name = "few"

    def problems(self, split, seed):
        return iter([Problem(f"{i}", f"0+{i}", str(i), "say") for i in range(7 * (split != "train"))])

    def grade(self, problem, reply):
        return Verdict.RIGHT if reply == problem.answer else Verdict.WRONG


class Empty(Few):
    def problems(self, split, seed):
        return iter(())


@dataclass
class Adder:
    """A generator that adds rightly unless told otherwise: thinks aloud when made to, one token per character."""

    wrong_every: int = 0
    think: bool = True
    seen: list[Request] = field(default_factory=list)

    def generate(self, requests, *, progress=None):
        self.seen += requests
        return [[self.answer(place, r) for _ in range(r.params.n)] for place, r in enumerate(requests)]

    def answer(self, place, request):
        text = request.messages[-1].content
        reply = str(sum(map(int, text.split("+")))) if "+" in text else "1"
        if self.wrong_every and place % self.wrong_every == 0:
            reply = "no"
        thinks = request.thinking == "on" or (request.thinking == "auto" and self.think)
        reasoning = "abc" if thinks else None
        ids = list(range(len(reply) + 3 * thinks))
        return Completion((1,), ids, [0.0] * len(ids), "stop", reply, reasoning, usage={"completion_tokens": len(ids)})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"split": "tset"}, "key 'split': .*'test'"),
        ({"stop_when": "sometimes"}, "key 'stop_when'"),
        ({"seed": "x"}, "key 'seed'"),
        ({"count": 40.5}, "key 'count'"),
        ({"thinking": "yes"}, "key 'thinking'"),
        ({"model": None}, "key 'model'"),
        ({"per_family": "all families"}, "key 'per_family'"),
        ({"measured": {"all": 3}}, "key 'baselines.all'"),
        ({"problems": []}, "problems is empty"),
    ],
)
def test_an_argument_that_cannot_be_meant_is_refused_before_a_reply_is_paid(arguments, says):
    model = Adder()
    with pytest.raises(RorqualError, match=f"evaluate: {says}"):
        evaluate(model, Sums(), **{"count": 2, **arguments})
    assert model.seen == []


def test_every_model_gets_the_same_problems():
    for per_family in (False, True):
        first, again = (pick_problems(Sums(), "test", 8, 3, per_family) for _ in range(2))
        assert first == again != pick_problems(Sums(), "test", 8, 4, per_family)
        assert len({p.key for p in first}) == len(first)
    assert len(pick_problems(Sums(), "test", 8, 3, False)) == 8


def test_each_family_and_level_has_its_count_even_in_an_endless_task():
    problems = pick_problems(Sums(), "test", 12, 0, True)
    held = {name: len(list(group)) for name, group in itertools.groupby(problems, lambda p: (p.family, p.level))}
    assert {name: held[name] for name in held if name[0] == "sum"} == {("sum", level): 12 for level in "123"}
    # A stratum that holds only five distinct problems gives all it has, and the search still ends.
    small = {name: count for name, count in held.items() if name[0] == "parity"}
    assert set(small.values()) == {10} and len(small) == 3


def test_a_finite_task_gives_what_it_has_and_an_empty_one_is_refused():
    assert len(pick_problems(Few(), "test", 100, 0, False)) == len(pick_problems(Few(), "test", 100, 0, True)) == 7
    with pytest.raises(DataError, match=r"task few: the dev split contains no problems\n.*Choose"):
        pick_problems(Empty(), "dev", 3, 0, True)
    with pytest.raises(DataError, match="count=0"):
        pick_problems(Few(), "dev", 0, 0, False)


def test_samples_of_one_problem_are_not_counted_as_independent():
    once = evaluate(Adder(wrong_every=3), Few(), count=7)
    thrice = evaluate(Adder(wrong_every=3), Few(), count=7, params=SamplingParams(n=3))
    assert len(thrice.samples) == 21 and thrice.rows("all")[0].problems == 7
    few, many = (e.rows("all")[0].interval for e in (once, thrice))
    assert many.high - many.low > 0.6 * (few.high - few.low)
    assert compare_pair(once, once)[0].p_value is not None
    for pair in ((thrice, thrice), (once, thrice), (thrice, once)):
        assert compare_pair(*pair)[0].p_value is None


def test_problems_with_many_samples_count_as_much_as_others():
    """As after `stop_when`, which samples hard problems more often: each figure lies in its own interval."""
    found = evaluate(Adder(wrong_every=3), Few(), count=7)
    hard = [replace_sample(sample) for sample in found.samples if sample.verdict is Verdict.WRONG for _ in range(9)]
    (row,) = found.model_copy(update={"samples": (*found.samples, *hard)}).rows("all")
    (once,) = found.rows("all")
    assert (row.graded, row.right, row.accuracy) == (7 + len(hard), 4, once.accuracy == 4 / 7 and 4 / 7)
    assert row.last == pytest.approx((4 + 3 * 0.9) / 7) and row.unmarked == pytest.approx(3 * 0.9 / 7)
    assert row.interval.low < row.accuracy < row.interval.high


def replace_sample(sample):
    return sample.model_copy(update={"last": Verdict.RIGHT, "unmarked": True})


def test_a_problem_draws_the_same_noise_whatever_else_is_asked():
    few, many = Adder(), Adder()
    evaluate(few, Few(), count=3, params=SamplingParams(temperature=1.0, seed=5))
    evaluate(many, Few(), count=7, params=SamplingParams(temperature=1.0, seed=5))
    assert few.seen == many.seen[:3]
    assert len({r.params.seed for r in many.seen}) == 7


def test_blank_reasoning_is_not_thought_and_a_cut_answer_is_counted():
    class Cut(Adder):
        def answer(self, place, request):
            return Completion((1,), [1, 2], [0.0, 0.0], "length", "", " \n")

    row = evaluate(Cut(), Few(), count=7).rows("all")[0]
    assert (row.thought, row.truncated, row.accuracy) == (0.0, 7, 0.0)


def test_a_generator_that_loses_samples_is_refused():
    class Loses(Adder):
        def generate(self, requests, *, progress=None):
            return super().generate(requests)[:-1]

    with pytest.raises(RorqualError, match="expected 7 samples of 7 requests, got 6"):
        evaluate(Loses(), Few(), count=7)


def test_a_file_reads_back_equal(tmp_path):
    found = evaluate(Adder(), Sums(), count=5, seed=1, per_family=True, params=SamplingParams(max_tokens=9, n=2))
    found.save(tmp_path / "e.json")
    assert Evaluation.load(tmp_path / "e.json") == found


def test_a_wrong_file_is_named_with_key_and_remedy(tmp_path):
    with pytest.raises(DataError, match=r"none.json: the evaluation does not exist\n.*rorqual eval"):
        Evaluation.load(tmp_path / "none.json")
    (tmp_path / "torn.json").write_bytes(b'{"task": "x", "sam\xff')
    with pytest.raises(DataError, match=r"torn.json: the file is not valid JSON"):
        Evaluation.load(tmp_path / "torn.json")
    evaluate(Adder(), Few(), count=2).save(tmp_path / "good.json")
    text = (tmp_path / "good.json").read_text(encoding="utf-8")
    (tmp_path / "bad.json").write_text(text.replace('"right"', '"great"'), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"bad.json: key 'samples.0.verdict'"):
        Evaluation.load(tmp_path / "bad.json")


def test_the_interval_of_a_comparison_has_the_confidence_asked_for():
    before, after = evaluate(Adder(wrong_every=2), Few(), count=7), evaluate(Adder(wrong_every=6), Few(), count=7)
    usual, (wide,) = compare_pair(before, after)[0].difference.interval, compare_pair(before, after, confidence=0.99)
    assert (usual.confidence, wide.difference.interval.confidence) == (0.95, 0.99)
    assert wide.difference.interval.low <= usual.low <= usual.high < wide.difference.interval.high


def test_different_problems_are_refused():
    one, other = (evaluate(Adder(), Sums(), count=5, seed=seed) for seed in (1, 2))
    with pytest.raises(DataError, match=r"different problems.*seed 1.*seed 2.*\n.*same task"):
        compare_pair(one, other)
    with pytest.raises(DataError, match="evaluation for each seed"):
        compare_seeds([one], [])
    for wrong, says in (
        ({"confidence": 95}, "=95 is not"),
        ({"confidence": math.nan}, "=nan is not"),
        ({"grain": "fam"}, "'fam'"),
    ):
        with pytest.raises(ConfigError, match=says):
            compare_pair(one, one, **wrong)


def test_a_problem_that_two_seeds_happen_to_share_drops_no_other():
    class Overlapping(Few):
        def problems(self, split, seed):
            numbers = range(6 * seed, 6 * seed + 7 * (split != "train"))
            return iter([Problem(f"{i}", f"0+{i}", str(i), "say") for i in numbers])

    befores, afters = (
        [evaluate(Adder(wrong_every=n), Overlapping(), count=7, seed=seed) for seed in range(5)] for n in (2, 5)
    )
    (row,) = compare_seeds(befores, afters, confidence=0.99)
    assert (row.difference.pairs, row.left_out) == (35, 0)
    assert (row.before, row.after) == pytest.approx((3 / 7, 5 / 7))

    class Apart(Few):
        def problems(self, split, seed):
            numbers = range(7 * seed, 7 * seed + 7 * (split != "train"))
            return iter([Problem(f"{i}", f"0+{i}", str(i), "say") for i in numbers])

    apart = [[evaluate(Adder(wrong_every=n), Apart(), count=7, seed=seed) for seed in range(5)] for n in (2, 5)]
    assert compare_seeds(*apart, confidence=0.99)[0].difference == row.difference, "draws from one pool are independent"


def test_seeds_are_resampled_first():
    befores = [evaluate(Adder(wrong_every=1), Few(), count=7) for _ in range(3)]
    afters = [evaluate(Adder(wrong_every=n), Few(), count=7) for n in (1, 2, 0)]
    (row,) = compare_seeds(befores, afters, confidence=0.99)
    assert row.difference.mean == pytest.approx((0 + 3 / 7 + 1) / 3)
    score = paired_interval(3 / 7 * 7 / 3 + 7 / 3, 0, 7, 0.99)  # twenty-one pairs are of seven problems
    assert (row.difference.interval.low, row.difference.interval.high) == pytest.approx((min(0.0, score.low), 1.0))
    assert row.p_value is None
    alone = [compare_pair(*pair)[0].p_value for pair in zip(befores, afters, strict=True)]
    assert alone == pytest.approx([1.0, 0.25, 2**-6])
