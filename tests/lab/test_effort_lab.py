"""The experiment `effort` in small: what differs between the arms, what is asked, and the rule of the verdict."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import fmean

import pytest

from rorqual.core.config import read_yaml
from rorqual.core.records import RunDir
from rorqual.data.source.conversations import read_conversations
from rorqual.evals.compare import is_right
from rorqual.lab import effort as lab
from rorqual.lab.effort import (
    BASE,
    EFFORTS,
    PENALTY,
    PLAIN,
    ROWS,
    EffortExperiment,
    accurate,
    evaluated,
    shorter,
    write_rows,
)
from rorqual.lab.job import evaluation
from rorqual.lab.page import page_text
from rorqual.train.run import Run

SHARE = 0.02


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("effort")
    found = {seed: folder / f"seed-{seed}" for seed in (1, 2)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab, "MAX_TOKENS", 24)
        for seed, place in found.items():
            for job in EffortExperiment().jobs(seed, place, SHARE):
                job.finish(place, SHARE)
    return found


def test_the_arms_differ_in_the_strength_alone(places: dict[int, Path]) -> None:
    for seed, place in places.items():
        plain, penalty = (read_yaml(Run, RunDir(place / name).config_file) for name in (PLAIN, PENALTY))
        strengths = [run.source.length_penalty.strength for run in (plain, penalty)]  # type: ignore[attr-defined]
        assert strengths == [0.0, 2.5]
        moved = penalty.source.model_copy(update={"length_penalty": plain.source.length_penalty})  # type: ignore[attr-defined]
        assert penalty.model_copy(update={"source": moved}) == plain
        assert plain.start.run == str(place / BASE) and plain.seed == seed
        assert plain.source.length_penalty.efforts == EFFORTS  # type: ignore[attr-defined]


def test_each_evaluation_asks_for_its_effort(places: dict[int, Path]) -> None:
    for seed, place in places.items():
        for name in (BASE, PLAIN, PENALTY):
            for effort in EFFORTS:
                found = evaluation(place, evaluated(name, effort))
                assert found.system == f"Reasoning effort: {effort}" and found.split == "test" and found.seed == seed
                assert found.keys == evaluation(place, evaluated(BASE, EFFORTS[0])).keys and found.model == name


def test_the_base_thinks_a_little_more_at_higher_efforts(tmp_path: Path) -> None:
    assert write_rows(tmp_path, seed=5, count=3000) == 3000
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


def test_each_goal_reads_its_own_evaluations(places: dict[int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(lab, "evaluation", lambda place, name: seen.append(name) or evaluation(place, name))
    accurate(list(places.values()))
    assert [*dict.fromkeys(seen)] == ["effort-plain-100", "effort-penalty-100"]
    seen.clear()
    shorter(list(places.values()))
    assert [*dict.fromkeys(seen)] == ["effort-penalty-25", "effort-penalty-100"]


def test_the_conclusion_in_small(places: dict[int, Path]) -> None:
    finding = EffortExperiment().conclude(places)
    where = list(places.values())
    low, high = ([evaluation(p, evaluated(PENALTY, e)) for p in where] for e in (EFFORTS[0], EFFORTS[-1]))
    means = [[fmean(s.tokens for s in one.samples) for one in some] for some in (low, high)]
    assert [b for _, b in shorter(where).by_seed] == pytest.approx([a / b for a, b in zip(*means, strict=True)])
    plain = [fmean(map(is_right, evaluation(p, evaluated(PLAIN, EFFORTS[-1])).samples)) for p in where]
    assert [a for a, _ in accurate(where).by_seed] == pytest.approx(plain)
    assert finding.verdict == "open" and len(finding.tables[0].rows) == 9
    assert "Accuracy over tokens" in page_text(finding)
    labels = [series.label for series in finding.charts[0].series]
    assert labels == ["before", "reinforced without penalty", "reinforced with penalty"]
    assert [len(series.points) for series in finding.charts[0].series] == [3, 3, 3]
