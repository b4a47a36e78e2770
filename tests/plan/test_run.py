"""A run's own speed, and what more of it takes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from statistics import fmean, stdev

import pytest

from rorqual.core.errors import DataError
from rorqual.core.records import RunDir
from rorqual.plan.run_speed import WARM, speed_of


def run_of(folder: Path, seconds: list[float], asked: int = 0) -> RunDir:
    lines = [
        {"step": n, "seconds": s, "core_seconds": 2 * s, "tokens": 100, "flops": 1000} for n, s in enumerate(seconds, 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (folder / "run.yaml").write_text(f"steps: {asked or len(seconds)}\n", encoding="utf-8")
    return RunDir(folder)


def test_a_steady_run_is_extrapolated_exactly_and_its_first_steps_do_not_count(tmp_path: Path) -> None:
    speed = speed_of(run_of(tmp_path, [9.0] * WARM + [0.5] * 100, asked=500))
    assert (speed.seconds, speed.core_seconds, speed.tokens, speed.flops) == (0.5, 1.0, 100, 1000)
    assert (speed.done, speed.asked) == (102, 500)
    assert speed.seconds_interval(1000) == (500.0, 500.0)


def test_the_interval_holds_as_often_as_it_says(tmp_path: Path) -> None:
    rng = random.Random(0)
    held = 0
    for trial in range(200):
        folder = tmp_path / str(trial)
        folder.mkdir()
        draw = [rng.lognormvariate(0, 0.3) for _ in range(WARM + 100 + 300)]
        low, high = speed_of(run_of(folder, draw[: WARM + 100])).seconds_interval(300)
        held += low <= sum(draw[WARM + 100 :]) <= high
    assert 0.90 <= held / 200 <= 0.99


def test_what_comes_in_bursts_widens_the_interval(tmp_path: Path) -> None:
    steady, bursts = tmp_path / "a", tmp_path / "b"
    for folder in (steady, bursts):
        folder.mkdir()
    mixed = [0.4, 0.6] * 100
    wide = speed_of(run_of(bursts, [0.5] * WARM + sorted(mixed))).seconds_interval(100)
    narrow = speed_of(run_of(steady, [0.5] * WARM + mixed)).seconds_interval(100)
    assert fmean(wide) == pytest.approx(fmean(narrow)) and wide[1] - wide[0] > 5 * (narrow[1] - narrow[0])


def test_the_interval_is_that_of_the_stated_formula(tmp_path: Path) -> None:
    """Of the mean of blocks of five steps, and of a future with the spread of such blocks."""
    seconds = [0.4 + 0.01 * (n * n % 37) for n in range(100)]
    speed = speed_of(run_of(tmp_path, [9.0] * WARM + seconds))
    blocks = [fmean(seconds[at : at + 5]) for at in range(0, 100, 5)]
    reach = 2.093024 * stdev(blocks) * (1 / 20 + 5 / 300) ** 0.5
    expected = [300 * (fmean(seconds) - reach), 300 * (fmean(seconds) + reach)]
    assert speed.seconds_interval(300) == pytest.approx(expected, rel=1e-5)


def test_too_few_steps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="5 steps, but measuring a speed needs at least 12"):
        speed_of(run_of(tmp_path, [1.0] * 5))
