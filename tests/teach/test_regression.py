"""Regression trees give numbers that depend on the numbers and words of a prompt, beside a plain second writing."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingRegressor

from rorqual.teach.examples import Example
from rorqual.teach.rungs.regression import PARTS, NumberRegression
from rorqual.teach.rungs.rung import Guess, TrainingRows
from rorqual.teach.rungs.storage import load_rung, save_rung


def offers(count: int, seed: int = 0, *, places: int = 0) -> list[Example]:
    """Prices by size and by whether a parking place is included, which only a pair of words tells."""
    drawn = random.Random(seed)
    found = []
    for line in range(count):
        size, parking = drawn.randrange(20, 200), drawn.choice(("yes", "no"))
        price = 10 * size * (2 if parking == "yes" else 1) * drawn.uniform(0.97, 1.03)
        found.append(Example(line, f"{size} m2, cellar: yes or no, parking: {parking}", f"{price:.{places}f}"))
    return found


def fitted(examples: list[Example]) -> NumberRegression:
    rung = NumberRegression()
    rung.fit(TrainingRows(examples, "number"))
    return rung


def test_most_prices_are_within_a_tenth() -> None:
    rung, tests = fitted(offers(200)), offers(100, seed=1)
    guesses = rung.predict([one.prompt for one in tests])
    near = [abs(float(g.answer) / float(one.answer) - 1) < 0.1 for g, one in zip(guesses, tests, strict=True)]
    assert sum(near) >= 90
    assert rung.predict([tests[3].prompt]) == guesses[3:4], "an answer does not depend on other prompts"


def test_the_answer_is_the_geometric_mean_of_models_without_a_part_each() -> None:
    """A second writing, with the size and the pair of words alone as features."""
    examples = offers(60)
    rung = fitted(examples)
    assert rung.numbers == 1 and {"parking yes", "parking no"} <= {*rung.words}, "the 2 of m2 is no number"
    sizes = [float(one.prompt.split()[0]) for one in examples]
    table = rung._features([one.prompt for one in examples])
    assert table[:, 0].tolist() == sizes and np.isnan(rung._features(["no number"])[0, :1]).all()
    targets, part = np.log([float(one.answer) for one in examples]), np.arange(60) % PARTS
    logs = []
    for left_out in range(PARTS):
        kept = part != left_out
        model = HistGradientBoostingRegressor(random_state=0, min_samples_leaf=5, max_iter=200, learning_rate=0.05)
        logs.append(model.fit(table[kept], targets[kept]).predict(table[:1])[0])
    [guess] = rung.predict([examples[0].prompt])
    assert guess.answer == f"{np.exp(np.mean(logs)):.0f}"
    assert guess.probability == pytest.approx(1 / (1 + np.std(logs) / targets.std()))


def test_places_and_negative_answers_are_kept() -> None:
    assert len(fitted(offers(60, places=2)).predict(["50 m2, parking: no"])[0].answer.rpartition(".")[2]) == 2
    below = [Example(n, f"{n} degrees", f"{n - 30}") for n in range(60)]
    rung = fitted(below)
    assert not rung.logarithmic and float(rung.predict(["5 degrees"])[0].answer) < 0


def test_without_enough_numbers_it_answers_nothing() -> None:
    assert fitted([Example(1, "a", "none"), Example(2, "b", "3")]).predict(["a 4"]) == [Guess("", 0.0)]


def test_a_saved_rung_answers_with_the_same_bits(tmp_path: Path) -> None:
    rung, prompts = fitted(offers(60)), [one.prompt for one in offers(20, seed=2)]
    save_rung(rung, tmp_path / "rung.skops")
    assert load_rung(tmp_path / "rung.skops").predict(prompts) == rung.predict(prompts)
