"""Baselines are measured: fitted on the train split of a family and level, and judged on the problems of the evaluation."""

from __future__ import annotations

import random
import string
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import islice
from math import ceil, isnan
from typing import Any, ClassVar

import pytest

from rorqual.core.errors import DataError
from rorqual.engine.request import Completion
from rorqual.evals.baselines import RULES, UNIFORM, baselines, scores
from rorqual.evals.compare import compare
from rorqual.evals.evaluation import CLAIMED, Evaluation
from rorqual.evals.run import evaluate, pick
from rorqual.evals.surface import NUMBER, Node, grow_tree, surface
from rorqual.evals.table import table, version_note
from rorqual.tasks.base import Problem, Split, Task, Verdict
from rorqual.tasks.families import FAMILIES, NAMES, Families
from rorqual.tasks.knights import Knights


class Made(Task):
    """Problems that `make` gives from (split, generator): exact answers, no end."""

    name = "made"

    def __init__(self, make: Callable[[Split, random.Random], Problem]) -> None:
        self.make = make
        self.asked: list[tuple[str, int]] = []

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        self.asked.append((split, seed))
        rng = random.Random(f"{split} {seed}")
        while True:
            yield self.make(split, rng)

    def grade(self, problem: Problem, reply: str) -> Verdict:
        return Verdict.RIGHT if reply == problem.answer else Verdict.WRONG


def measured(task: Task, count: int = 400, **more: Any) -> dict[str, dict[str, float]]:
    return baselines(task, pick(task, "test", count, 0, True), 0, **more)


def words(rng: random.Random, count: int) -> str:
    return " ".join("".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))) for _ in range(count))


# Second writings, plain and slow.


def plain_majority(train: Sequence[Problem], problem: Problem) -> str:
    counts = Counter(p.answer for p in train)
    return next(p.answer for p in train if counts[p.answer] == max(counts.values()))


def plain_length(train: Sequence[Problem], problem: Problem) -> str:
    alike = [
        p
        for p in train
        if len(p.prompt) == len(problem.prompt) and len(p.prompt.split()) == len(problem.prompt.split())
    ]
    return plain_majority(alike or train, problem)


def plain_surface(prompt: str) -> dict[str, float]:
    digits, numbers, current = "0123456789", [], ""
    for character in prompt + " ":
        if character in digits:
            current += character
        elif current:
            numbers.append(current)
            current = ""
    parts = prompt.split()
    word = parts[1] if len(parts) > 1 else parts[0]
    found: dict[str, float] = {f"number of {c!r}": prompt.count(c) for c in prompt}
    found["characters"], found["words"], found["distinct characters"] = len(prompt), len(parts), len(set(prompt))
    found["digits"], found["numbers"] = sum(c in digits for c in prompt), len(numbers)
    for name, text in (("second word", word), ("last word", parts[-1])):
        found[f"{name}: characters"] = len(text)
        found[f"{name}: first"], found[f"{name}: last"] = ord(text[0]), ord(text[-1])
    found["first number"], found["last number"] = (int(numbers[0][:15]), int(numbers[-1][:15])) if numbers else (-1, -1)
    for name, place in (("first", 0), ("last", -1)):
        found[f"{name} number: odd"] = int(numbers[place]) % 2 if numbers else -1
    return found


def plain_tree(train: Sequence[tuple[str, str]]) -> Callable[[str], str]:
    """CART by trying every question on every feature, in fractions."""
    rows = [(plain_surface(prompt), label) for prompt, label in train]
    names = sorted({name for row, _ in rows for name in row})
    common = [label for label, _ in Counter(label for _, label in train).most_common(32)]
    cuts = {}
    for name in names:
        values = sorted(row.get(name, 0) for row, _ in rows)
        places = {values[ceil(len(values) * Fraction(i, 32)) - 1] for i in range(1, 32)}
        cuts[name] = sorted(value for value in places if value < values[-1])

    def purity(part: Sequence[tuple[dict[str, float], str]]) -> Fraction:
        counts = Counter(label if label in common else None for _, label in part)
        return Fraction(sum(n * n for n in counts.values()), len(part))

    def node(part: Sequence[tuple[dict[str, float], str]], depth: int) -> Callable[[dict[str, float]], str]:
        counts = Counter(label for _, label in part)
        label = max(common, key=lambda one: counts[one])
        best, chosen = purity(part), None
        for name in names if depth else []:
            for cut in cuts[name]:
                sides = [[one for one in part if (one[0].get(name, 0) <= cut) == side] for side in (True, False)]
                if min(map(len, sides)) >= 20 and sum(map(purity, sides)) > best:
                    best, chosen = sum(map(purity, sides), Fraction()), (name, cut, sides)
        if chosen is None:
            return lambda row: label
        name, cut, sides = chosen
        below, above = (node(side, depth - 1) for side in sides)
        return lambda row: below(row) if row.get(name, 0) <= cut else above(row)

    root = node(rows, 4)
    return lambda prompt: root(plain_surface(prompt))


def drawn(name: str, count: int, seed: int = 0) -> list[Problem]:
    return list(islice(Families((name,), hard=0.5).problems("train", seed), count))


@pytest.mark.parametrize("name", NAMES)
def test_each_rule_guesses_as_a_plain_second_writing_does(name: str) -> None:
    train, asked = drawn(name, 240), drawn(name, 60, seed=1)
    by_hand = plain_tree([(p.prompt, p.answer) for p in train])
    task = Families()
    guesses = {rule: RULES[rule](task, train) for rule in RULES}
    for problem in asked:
        assert surface(problem.prompt) == plain_surface(problem.prompt)
        assert guesses["majority"](problem) == plain_majority(train, problem)
        assert guesses["length"](problem) == plain_length(train, problem)
        assert guesses["tree"](problem) == by_hand(problem.prompt)
    found = scores(task, train, asked)
    assert found[UNIFORM] == [1 / len({p.answer for p in train})] * 60
    assert found["tree"] == [float(by_hand(p.prompt) == p.answer) for p in asked]


def test_a_prompt_without_numbers_or_of_one_word_has_its_features_too() -> None:
    for prompt in ("alone", "7", " two words ", "ünï 3x 0044 end", "9" * 40):
        assert surface(prompt) == plain_surface(prompt)
    assert NUMBER.findall("1²3") == ["1", "3"]


def test_a_tree_asks_four_times_at_most_and_tells_32_labels_apart() -> None:
    rng = random.Random(0)
    rows = [(f"q {n}", str(n // 25)) for n in (rng.randrange(1000) for _ in range(3000))]
    tree = grow_tree([prompt for prompt, _ in rows], [label for _, label in rows])
    said = {tree.guess(prompt) for prompt, _ in rows}
    assert said <= {label for label, _ in Counter(label for _, label in rows).most_common(32)}

    def depth(node: Node | None) -> int:
        return 0 if node is None or node.below is None else 1 + max(depth(node.below), depth(node.above))

    assert depth(tree) == 4 and 8 < len(said) <= 16


# Leaks.


def by_length(split: Split, rng: random.Random) -> Problem:
    text = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(5, 12)))
    return Problem(f"{text} {rng.random()}", text, str(len(text)), "poison", "1")


def by_luck(split: Split, rng: random.Random) -> Problem:
    text = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(5, 12)))
    return Problem(f"{text} {rng.random()}", text, str(rng.randint(5, 12)), "clean", "1")


def by_parity(split: Split, rng: random.Random) -> Problem:
    number = rng.randint(1000, 9999)
    return Problem(f"{number} {rng.random()}", f"is {number}", ("even", "odd")[number % 2], "parity", "1")


def test_a_family_whose_answer_is_its_prompts_length_is_found_and_its_clean_twin_passes() -> None:
    (poison,) = (measured(Made(by_length))[name] for name in ("poison/1",))
    assert poison["length"] == 1.0 and poison["tree"] > 0.8 and poison["majority"] < 0.25
    assert poison[UNIFORM] == 1 / 8
    clean = measured(Made(by_luck), 1000, fit=1000)["clean/1"]
    assert max(clean.values()) < 1 / 8 + 0.05
    parity = measured(Made(by_parity))["parity/1"]
    assert parity["tree"] == 1.0 and parity["majority"] < 0.6 and parity["length"] < 0.6


class RandomLetters:
    """`count` as it was in version 1."""

    @staticmethod
    def make(split: Split, rng: random.Random) -> Problem:
        length, letter = rng.randint(7, 11), rng.choice(string.ascii_lowercase)
        count = rng.randint(0, length)
        text = [letter] * count + rng.choices(string.ascii_lowercase.replace(letter, ""), k=length - count)
        rng.shuffle(text)
        question = f"count {letter}:{''.join(text)}"
        return Problem(question, question, str(count), "count", "hard")


def over(shares: dict[str, float]) -> float:
    return max(shares[rule] for rule in RULES) - shares[UNIFORM]


def test_counting_among_random_letters_gives_itself_away_and_among_a_fixed_number_does_not() -> None:
    assert over(measured(Made(RandomLetters.make), 600, fit=1000)["count/hard"]) > 0.15
    assert over(measured(Families(("count",), hard=1.0), 600, fit=1000)["count/hard"]) < 0.1


@pytest.mark.parametrize("name", NAMES)
def test_hard_problems_give_at_most_ten_points_over_uniform_guessing(name: str) -> None:
    """Seeds are fixed and the shares some points below the limit (benchmarks/baselines.py), so that nothing here is left to luck."""
    task = Families((name,), hard=1.0)
    train, asked = (list(islice(task.problems("train", seed), 1000)) for seed in (0, 1))
    known = {problem.key for problem in train}
    found = scores(task, train, [problem for problem in asked if problem.key not in known])
    assert over({rule: sum(values) / len(values) for rule, values in found.items()}) < 0.1


# What is fitted on what.


def test_rules_are_fitted_on_the_train_split_and_judged_on_what_is_asked() -> None:
    def make(split: Split, rng: random.Random) -> Problem:
        text = words(rng, 2)
        return Problem(f"{split} {text}", text, split, "f", "1")

    task = Made(make)
    problems = pick(task, "test", 50, 0, True)
    task.asked.clear()
    assert baselines(task, problems, 7) == {
        name: {UNIFORM: 1.0, "majority": 0.0, "length": 0.0, "tree": 0.0} for name in ("all", "f", "f/1")
    }
    assert task.asked == [("train", 7)]


def test_what_is_asked_is_not_fitted_on() -> None:
    """Prompts of lengths of their own: a rule that saw them knows each answer."""

    class Finite(Made):
        def problems(self, split: Split, seed: int) -> Iterator[Problem]:
            rng = random.Random(0)
            return iter([Problem(str(n), "x" * (n + 1), str(rng.randrange(40)), "f", "1") for n in range(60)])

    task = Finite(by_luck)
    asked = list(islice(task.problems("train", 0), 30))
    assert baselines(task, asked, 0)["all"]["length"] < 0.3
    assert baselines(task, list(task.problems("train", 0)), 0) == {}  # nothing is left to fit on


def test_each_level_has_rules_of_its_own_and_pools_are_means_over_problems() -> None:
    def make(split: Split, rng: random.Random) -> Problem:
        family, level = rng.choice((("a", "1"), ("a", "2"), ("a", "2"), ("b", "1")))
        text = words(rng, 1)
        answer = {"a1": "yes", "a2": "no", "b1": str(rng.randrange(2))}[family + level]
        return Problem(f"{split} {family} {level} {text} {rng.random()}", text, answer, family, level)

    task = Made(make)
    problems = pick(task, "test", 200, 0, False)
    found = baselines(task, problems, 0)
    assert set(found) == {"a/1", "a/2", "a", "b/1", "b", "all"}
    assert found["a/1"]["majority"] == found["a/2"]["majority"] == found["a"]["majority"] == 1.0
    assert found["b/1"][UNIFORM] == 0.5 and found["b"] == found["b/1"]
    share = sum(problem.family == "a" for problem in problems) / len(problems)
    for rule in (*RULES, UNIFORM):
        assert found["all"][rule] == pytest.approx(share + (1 - share) * found["b"][rule])


@pytest.mark.parametrize("fit", [3, 50])
def test_as_many_train_problems_are_drawn_as_it_takes(fit: int) -> None:
    given: Counter[Split] = Counter()

    def make(split: Split, rng: random.Random) -> Problem:
        given[split] += 1
        return Problem(f"{split} {given[split]}", "x", str(given[split]), "f", "1")

    task = Made(make)
    problems = pick(task, "test", 5, 0, False)
    assert baselines(task, problems, 0, fit)["all"][UNIFORM] == 1 / fit and given["train"] == fit
    given.clear()
    rare = Problem("rare", "x", "1", "never trained on", "1")
    found = baselines(task, [*problems, rare], 0, fit)
    assert given["train"] == 4 * 2 * fit and set(found) == {"f", "f/1"}  # it gives up, and pools that hold it have none


def test_a_task_without_a_train_split_has_no_baseline() -> None:
    class Held(Made):
        def problems(self, split: Split, seed: int) -> Iterator[Problem]:
            if split == "train":
                raise DataError("no such file")
            return super().problems(split, seed)

    found = evaluate(Says("1"), Held(by_luck), count=5)
    assert found.baselines == {} and isnan(found.rows("all")[0].best[1]) and " -  " in table(found)


def test_guesses_are_graded_as_replies_are_and_names_are_no_part_of_a_pattern() -> None:
    class Lenient(Made):
        def grade(self, problem: Problem, reply: str) -> Verdict:
            return Verdict.RIGHT if abs(int(reply) - int(problem.answer)) <= 2 else Verdict.WRONG

    exact, lenient = (measured(kind(by_luck), 300)["clean/1"]["majority"] for kind in (Made, Lenient))
    assert exact < 0.25 < lenient
    knights = Knights(people=3)
    problems = list(knights.problems("test", 0))
    found = baselines(knights, problems, 0)["knights/3 people"]
    patterns = Counter(p.meta["solution"] for p in knights.problems("train", 0))
    most = patterns.most_common(1)[0][1]
    assert found["majority"] in {
        sum(p.meta["solution"] == pattern for p in problems) / len(problems)
        for pattern, count in patterns.items()
        if count == most
    }


# What an evaluation says of it.


class Says:
    def __init__(self, text: str) -> None:
        self.text = text

    def generate(self, requests: Sequence[Any], *, progress: Any = None) -> list[list[Completion]]:
        return [[Completion((1,), [1], [0.0], "stop", self.text, None)] for _ in requests]


def test_an_evaluation_measures_with_its_seed_and_names_the_best_baseline() -> None:
    task = Made(by_length)
    found = evaluate(Says("7"), task, count=40, seed=3)
    assert found.baselines == baselines(task, pick(task, "test", 40, 3, False), 3)
    assert ("train", 3) in task.asked
    (row,) = found.rows("all")
    assert row.best == ("length", 1.0) and "100.0 (length)" in table(found) and "chance" not in table(found)


class Counted(Families):
    """The families as an older Rorqual drew them."""

    old: ClassVar[int] = 1

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        for p in super().problems(split, seed):
            yield Problem(p.key, p.prompt, p.answer, p.family, p.level, p.steps, p.meta, self.old)


def test_versions_are_recorded_and_evaluations_of_two_are_not_compared() -> None:
    new = evaluate(Says("1"), Families(("count", "kk")), count=6)
    old = evaluate(Says("1"), Counted(("count", "kk")), count=6)
    assert new.versions == {family.name: family.version for family in FAMILIES if family.name in ("count", "kk")}
    assert old.versions == {"count": 1, "kk": 1} and new.keys == old.keys
    for one, other in ((old, new), (new, old)):
        with pytest.raises(
            DataError, match=r"has version [12] of the problems of '(count|kk)', the other has version [12]"
        ):
            compare(one, other)
    assert compare(old, old) and compare(new, new)
    with pytest.raises(DataError, match="different problems"):  # a family that only one has is of no version there
        compare(new, evaluate(Says("1"), Families(("count",)), count=6))
    assert "count, version 1" in version_note(old) and "count, version 1" in table(old)
    assert version_note(new) == "" and "version" not in table(new)


def old_file(found: Evaluation, chance: float) -> Evaluation:
    """As it was written before baselines were measured and families had versions."""
    data = found.model_dump(mode="json")
    del data["versions"]
    data["baselines"] = {"all": {"majority class": 0.2}}
    for sample in data["samples"]:
        sample["chance"] = chance
    return Evaluation(**data)


def test_old_files_are_read_as_what_they_are() -> None:
    old = old_file(evaluate(Says("1"), Families(("count",)), count=6), 0.25)
    assert old.rows("all")[0].best == (CLAIMED, 0.25) and f"25.0 ({CLAIMED})" in table(old)
    assert old_file(old, 0.1).rows("all")[0].best == ("majority class", 0.2)
    assert old.old_versions == {"count": 1} and compare(old, old)
    mine = evaluate(Says("1"), Made(by_luck), count=6)
    assert (
        compare(old_file(mine, 0.5), mine) and old_file(mine, 0.5).old_versions == {}
    )  # no version, none that differs
