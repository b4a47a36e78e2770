"""The experiment `compute`: what is hard, and differences against a plain second writing; the whole in small."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from small_run import run_small

from rorqual.core.records import RunDir
from rorqual.data.chat import chat_format
from rorqual.data.tokenizer import Tokenizer
from rorqual.lab import compute as lab
from rorqual.lab.compute import (
    PARTS,
    ComputeExperiment,
    hard_mask,
    hard_minus_easy_by_document,
    hard_minus_easy_by_pair,
    measure_experts_spent,
)
from rorqual.lab.job import load_value
from rorqual.lab.shapes import FIXED, TASK, ZERO
from rorqual.model.load.run_directory import load_run
from rorqual.tasks.find import load_task, safe_problems
from rorqual.train.sources.worked import worked_sample

SHARE = 0.02


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    return run_small(ComputeExperiment(), tmp_path_factory.mktemp("compute"), SHARE)


def test_a_quarter_of_each_group_is_hard() -> None:
    rng = np.random.default_rng(0)
    difficulty, groups = rng.random(200), rng.integers(0, 3, 200)
    hard = hard_mask(difficulty, groups)
    for group in range(3):
        own = sorted(difficulty[groups == group])
        assert sorted(difficulty[hard & (groups == group)]) == own[len(own) - round(len(own) / 4) :]
    assert not hard_mask(np.ones(1), np.zeros(1)).any()


def test_a_permutation_stays_within_its_group() -> None:
    groups = np.array([0, 1] * 50)
    seen: list[np.ndarray] = []

    def compare(difficulty: np.ndarray) -> np.ndarray:
        seen.append(difficulty)
        return np.zeros(3)

    lab._real_and_shuffled(compare, np.arange(100.0), groups, np.random.default_rng(0))
    assert len(seen) == 21 and seen[0].tolist() == list(range(100))
    for permuted in seen[1:]:
        for group in (0, 1):
            own = permuted[groups == group].tolist()
            assert own != sorted(own) == list(range(group, 100, 2))


def test_planted_computation_is_found_and_the_control_finds_none() -> None:
    rng = np.random.default_rng(1)
    document, ids, loss = np.repeat(np.arange(100), 40), rng.integers(0, 5, 4000), rng.random(4000)
    experts = 2 + 0.5 * (loss > np.quantile(loss, 0.75)) + ids  # ids use more or less whatever their difficulty
    same = lab._residuals(experts, ids)
    for values, groups in ((experts, np.zeros(4000, int)), (same, ids)):
        found = lab._real_and_shuffled(
            lambda d, v=values, g=groups: hard_minus_easy_by_document(v, hard_mask(d, g), document), loss, groups, rng
        )
        assert np.mean(found["real"]) == pytest.approx(0.5, abs=0.08)
        assert np.mean(found["shuffled"]) == pytest.approx(0, abs=0.05)
    families = np.repeat(np.arange(4), 100)
    levels = rng.permutation(np.tile([0.0, 1.0], 200))
    effect = 1.0 * levels + rng.random(400)
    pairs = lab._real_and_shuffled(lambda d: hard_minus_easy_by_pair(effect, d, families), levels, families, rng)
    assert np.mean(pairs["real"]) == pytest.approx(1, abs=0.1)
    assert np.mean(pairs["shuffled"]) == pytest.approx(0, abs=0.1), "the control holds nothing of the effect"
    assert lab._residuals(np.arange(20.0), np.zeros(20, int)).tolist() == (np.arange(20) - 9.5).tolist()
    biased = np.where(ids == 4, 1.0, 0.0)  # an id that is always harder
    by_id = lab._real_and_shuffled(
        lambda d: hard_minus_easy_by_document(same, hard_mask(d, ids), document), biased, ids, rng
    )
    assert abs(np.mean(by_id["real"])) < 0.08, "among occurrences of the same token, an id's own experts do not count"
    assert np.isnan(lab._residuals(np.ones(19), np.zeros(19, int))).all()


def test_experts_are_counted_on_held_out_solutions(places: dict[int, Path]) -> None:
    for seed, place in places.items():
        found = load_value(place, f"{ZERO}-experts")
        model = load_run(RunDir(place / ZERO))
        chat = chat_format(Tokenizer.load(RunDir(place / ZERO).tokenizer_file), "deepseek")
        problems = list(islice(safe_problems(load_task(TASK, options={"hard": 0.5}), "test", seed), 12))
        total, tokens = 0, 0
        for problem in problems:
            ids = worked_sample(problem, chat, think=True).ids
            for layer in model(torch.tensor([list(ids)])).routing:
                total += int(((layer.indices >= 0) & (layer.indices < 16)).sum())
            tokens += len(ids)
        assert found["mean"] == pytest.approx(total / tokens / 2)
        assert load_value(place, f"{FIXED}-experts")["mean"] == 2
        assert {*PARTS} < found.keys()
        assert measure_experts_spent(place, name=ZERO, seed=seed, count=12) == found, "repeated"


def test_the_conclusion_in_small(places: dict[int, Path]) -> None:
    finding = ComputeExperiment().conclude(places)
    found = [contrast for contrast in finding.contrasts if contrast.unit == "experts"]
    for part, contrast in zip(PARTS, found, strict=True):
        values = [load_value(place, f"{ZERO}-experts")[part] for place in places.values()]
        assert [a for a, _ in contrast.by_seed] == pytest.approx([np.mean(one["shuffled"]) for one in values])
        assert [b for _, b in contrast.by_seed] == pytest.approx([np.mean(one["real"]) for one in values])
    tables = {table.title: table.rows for table in finding.tables}
    mean = load_value(places[1], f"{ZERO}-experts")["mean"]
    assert tables["experts per token"][0][2] == f"{mean:.2f}" and tables["experts per token"][1][1] == "2"
    assert finding.verdict == "open", "two seeds"


def test_each_document_keeps_its_own_number_over_all_blocks(places: dict[int, Path]) -> None:
    [seed, *_] = places
    found = measure_experts_spent(places[seed], name=ZERO, seed=seed, count=40)
    assert len(found["tokens"]["real"]) > 36, "one difference per document, of a block of 32 and of eight more"
