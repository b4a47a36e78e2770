"""The experiment `effort`: the base's data, and which evaluations the goals read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from graded import save_graded

from rorqual.data.source.conversations import read_conversations
from rorqual.lab.effort import ROWS, EffortExperiment, write_training_conversations


def test_the_base_thinks_a_little_more_at_higher_efforts(tmp_path: Path) -> None:
    assert write_training_conversations(tmp_path, seed=5, count=3000) == 3000
    asked, thought = Counter[str](), Counter[str]()
    for system, user, reply in read_conversations(tmp_path / ROWS).conversations:
        asked[system.text] += 1
        thought[system.text] += reply.reasoning is not None
        assert user.role == "user" and reply.text
    for effort, share in ((25, 0.35), (50, 0.5), (100, 0.65)):
        name = f"Reasoning effort: {effort}"
        assert asked[name] == pytest.approx(1000, abs=120) and thought[name] / asked[name] == pytest.approx(
            share, abs=0.06
        )


def test_the_conclusion_reads_the_evaluation_of_each_arm(tmp_path: Path) -> None:
    places = {seed: tmp_path / str(seed) for seed in range(5)}
    for seed, place in places.items():
        for number, arm in enumerate(EffortExperiment.arms):
            save_graded(place, arm, {"add": "1" * number + "0" * (12 - number)}, tokens=10 + number + 10 * seed)
    finding = EffortExperiment().conclude(places)
    tokens, step, _, right = finding.contrasts
    assert [b for _, b in step.by_seed] == pytest.approx([(17 + 10 * seed) / (18 + 10 * seed) for seed in places])
    assert [b for _, b in tokens.by_seed] == pytest.approx([(16 + 10 * seed) / (18 + 10 * seed) for seed in places])
    assert (right.a, right.b) == (pytest.approx(5 / 12), pytest.approx(8 / 12)) and finding.verdict == "does not hold"
    tables = {table.title: table.rows for table in finding.tables}
    assert tables["tokens per problem"][8][:2] == ("reinforced with penalty, effort 100", "38.0")
