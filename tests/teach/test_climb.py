"""Held-out answers: no rung is measured on what it was fitted on, and the choice is the cheapest rung that no costlier one clearly beats."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from example_files import labelled

from rorqual.evals.stats import wilson
from rorqual.teach.answerer import Answerer, AnswererConfig, Step
from rorqual.teach.climb import ASKED, Climb
from rorqual.teach.columns import Columns
from rorqual.teach.contract import abstention
from rorqual.teach.examples import Example
from rorqual.teach.folds import DEV, FOLDS
from rorqual.teach.held_out import (
    HeldOut,
    best_other,
    cannot_be_beaten,
    choose,
    clearly_beats,
    cross_validate,
    gain_over,
)
from rorqual.teach.paths import TeachPaths
from rorqual.teach.promise import PlattCalibration, calibrate, promise
from rorqual.teach.rungs.classifiers import NEAREST
from rorqual.teach.rungs.rung import Guess, Rung, TrainingRows
from taught_task import PROMISE

POOL = [Example(line, row["text"], row["label"]) for line, row in enumerate(labelled(43), 1)]
FOLD = np.array([place % FOLDS for place in range(43)])


def held(name: str, bits: str, *, offered: bool = True) -> HeldOut:
    """Return results with a digit for each example: 1 if it is right, 0 if not, and a space without an answer."""
    right = {f"{place}": bit == "1" for place, bit in enumerate(bits) if bit != " "}
    return HeldOut(name, right, dict.fromkeys(right, 0.5), 0.1, 1.0, offered)


class Memory(Rung):
    """A rung that says of each prompt whether it has seen it, and takes some time to fit."""

    name = "memory"

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.settled, self.fitted = seconds, list[set[str]](), list[set[str]]()

    def settle(self, rows: TrainingRows) -> None:
        self.settled.append({*rows.prompts})

    def fit(self, rows: TrainingRows) -> None:
        time.sleep(self.seconds)
        self.fitted.append({*rows.prompts})

    def predict(self, prompts: Sequence[str]) -> list[Guess]:
        known = self.fitted[-1]
        return [Guess("seen" if one in known else "new", len(one) / 100) for one in prompts]


def prompts_without(fold: int) -> set[str]:
    return {one.prompt for one, at in zip(POOL, FOLD, strict=True) if at != fold}


def test_no_example_is_answered_by_a_rung_that_was_fitted_on_it() -> None:
    rung = Memory()
    found = cross_validate(rung, POOL, FOLD, "label", lambda _, reply: reply == "new", seconds=math.inf)
    assert found.accuracy == 1.0 and found.right.keys() == {one.key for one in POOL}
    assert found.probability == {one.key: len(one.prompt) / 100 for one in POOL}
    assert rung.fitted == [prompts_without(number) for number in range(FOLDS)]
    assert rung.settled == [prompts_without(DEV)], "settings are chosen once, and not on the dev split"
    assert found.interval == wilson(43, 43) and found.answer_seconds > 0


def test_the_time_limit_ends_the_measurement_after_whole_folds() -> None:
    for seconds, most in ((0.0, 1), (0.13, 2)):
        rung = Memory(0.05)
        found = cross_validate(rung, POOL, FOLD, "label", lambda *_: True, seconds=seconds)
        assert 1 <= len(rung.fitted) <= most and found.fit_seconds >= 0.05
        finished = {one.key for one, at in zip(POOL, FOLD, strict=True) if at < len(rung.fitted)}
        assert found.right.keys() == found.probability.keys() == finished


def test_a_gain_is_over_the_examples_that_both_answered() -> None:
    one, other = held("one", "11110  1"), held("other", "  10100 ")
    changes = [0, 1, -1]
    assert gain_over(one, other) == pytest.approx((np.mean(changes), math.sqrt((np.var(changes) + 1 / 3) / 3)))
    assert gain_over(one, held("none", "        1")) == (0.0, math.inf)
    assert clearly_beats(held("a", "1110"), held("b", "0010")) and not clearly_beats(
        held("a", "1101"), held("b", "0011")
    )
    assert not clearly_beats(one, one) and not clearly_beats(held("b", "0010"), held("a", "1110"))


def test_the_cheapest_rung_is_chosen_that_no_costlier_one_clearly_beats() -> None:
    rng, chosen = random.Random(0), list[int]()
    for _ in range(300):
        skills = [rng.random() for _ in range(rng.randint(1, 5))]
        results = [
            held(f"{n}", "".join(rng.choice("01" if rng.random() > skill else "1") for _ in range(30)))
            for n, skill in enumerate(skills)
        ]
        place = results.index(choose(results))
        chosen.append(place)

        def is_right(at: int, results: list[HeldOut] = results) -> bool:
            worse = (gain_over(results[at], cheaper)[0] <= 0 for cheaper in results[:at])
            return not any(clearly_beats(costlier, results[at]) for costlier in results[at:]) and not any(worse)

        right = [at for at in range(len(results)) if is_right(at)]
        assert place == right[0] if right else results[place].accuracy == max(one.accuracy for one in results)
    assert {*chosen} == {*range(5)}
    late = [
        held("majority", "1" * 10 + "0" * 20),
        held("neighbour", "1" * 9 + "0" * 21),
        held("dear", "1" * 20 + "0" * 10),
    ]
    assert choose(late).name == "dear", "no rung is chosen that does worse than a cheaper one"
    equal = [held("cheap", "1100"), held("dear", "0011")]
    assert choose(equal).name == "cheap" and choose(equal[::-1]).name == "dear"


def test_a_rung_with_at_most_one_error_cannot_be_beaten() -> None:
    assert cannot_be_beaten(held("a", "1" * 30)) and cannot_be_beaten(held("a", "1" * 29 + "0"))
    assert not cannot_be_beaten(held("a", "1" * 28 + "00"))


def test_the_best_other_rung_has_the_largest_gain_over_the_chosen_one() -> None:
    chosen, good, bad = held("chosen", "11100"), held("good", "11000"), held("bad", "00111")
    part = held("part", "  1 1")
    assert best_other([bad, good, chosen], chosen) is bad and best_other([chosen, good], chosen) is good
    assert best_other([bad, good, part, chosen], chosen) is part, "on the examples that it answered"


# ---- the climb


def climb_in(folder: Path) -> Climb:
    return Climb(TeachPaths(folder), POOL, FOLD, "label", lambda one, reply: reply == one.answer, lambda _: None)


class Oracle(Rung):
    """A rung that knows all answers, and counts how often it is asked several prompts at once."""

    name = "oracle"

    def __init__(self) -> None:
        self.asked = list[Sequence[str]]()

    def fit(self, rows: TrainingRows) -> None:
        pass

    def predict(self, prompts: Sequence[str]) -> list[Guess]:
        if len(prompts) > 1:
            self.asked.append(prompts)
        answers = {one.prompt: one.answer for one in POOL}
        return [Guess(answers.get(one, ""), 0.9) for one in prompts]


def test_a_rung_that_is_measured_for_comparison_alone_is_never_chosen(tmp_path: Path) -> None:
    climb, oracle = climb_in(tmp_path), Oracle()
    climb.cross_validate(Memory(), math.inf)
    climb.measure_on_dev("prompted", lambda: oracle, fit_seconds=0.0, seconds=math.inf, offered=False)
    assert climb.result("prompted").accuracy == 1 and climb.best.name == "memory"
    assert climb.result("prompted").right.keys() == {one.key for one in climb.dev} and len(climb.dev) == 9
    assert best_other(climb.results, climb.best).name == "prompted"
    climb.measure_on_dev("trained", lambda: oracle, fit_seconds=7.0, seconds=math.inf)
    assert climb.best.name == "trained" and climb.best.fit_seconds == 7.0
    again = climb_in(tmp_path)
    again.cross_validate(Memory(), math.inf)
    again.measure_on_dev("prompted", lambda: 1 / 0, fit_seconds=0.0, seconds=0.0)  # type: ignore[arg-type, return-value]
    assert again.results == climb.results[:2], "a measured rung is not measured again"


def test_a_slow_model_answers_a_part_of_the_dev_split(tmp_path: Path) -> None:
    climb, oracle = climb_in(tmp_path), Oracle()
    climb.measure_on_dev("slow", lambda: oracle, fit_seconds=0.0, seconds=0.0)
    assert climb.best.right.keys() == {*sorted(one.key for one in climb.dev)[:ASKED]} and len(oracle.asked) == 1


def test_a_prompt_that_is_less_similar_than_every_held_out_one_has_no_probability() -> None:
    """Both steps and the similarity get the same prompts, in this order."""
    plain = PlattCalibration()
    steps = (Step(rung="a", calibration=plain, above=0.2), Step(rung="b", calibration=plain))
    config = AnswererConfig(steps=steps, least_similar=0.06)
    assert config.rungs == ("a", "b", NEAREST)
    rungs = [Oracle(), Memory(), Memory()]
    for rung in rungs:
        rung.fit(TrainingRows([], "label"))
    found = Answerer(config, rungs).answer([POOL[0].prompt, "12345", "123456"])
    assert [(one.rung, one.probability > 0) for one in found] == [("a", True), ("a", False), ("a", True)]
    assert all(one.sure for one in found), "nothing is promised"
    asked = AnswererConfig(steps=steps, least_similar=0.06, promise=PROMISE.model_copy(update={"threshold": 0.001}))
    found = Answerer(asked, rungs).answer(["12345", "123456"])
    assert [one.sure for one in found] == [False, True]
    assert [abstention(one, asked)[:8] for one in found] == ["unlike a", ""]
    assert Answerer(asked.model_copy(update={"least_similar": 0.0}), rungs[:2]).answer(["12345"])[0].sure


def test_an_answerer_has_the_calibration_and_the_promise_of_its_held_out_answers(tmp_path: Path) -> None:
    climb, rng = climb_in(tmp_path), random.Random(0)
    sure = {f"{n}": rng.random() for n in range(300)}
    chosen = HeldOut("some rung", {key: rng.random() < 0.3 + one for key, one in sure.items()}, sure, 0.1, 1.0)
    made, _ = climb.answerer(chosen, 0.9, Columns(("subject", "body"), system="Be brief."))
    [step] = made.steps
    assert step.rung == "some rung" and step.calibration == calibrate([*sure.values()], [*chosen.right.values()])
    calibrated = [step.calibration.probability(one) for one in sure.values()]
    assert made.promise == promise(0.9, calibrated, [*chosen.right.values()]) is not None
    assert (made.columns, made.system) == (("subject", "body"), "Be brief.")
    assert (made.asked, made.longest) == (0.9, max(len(one.prompt) for one in POOL)) and not made.has_system_turns
    assert climb.answerer(chosen, 0.0, Columns())[0].promise is None and made.least_similar == 0
    climb.results.append(replace(chosen, name=NEAREST))
    assert climb.answerer(chosen, 0.9, Columns())[0].least_similar == min(sure.values())
