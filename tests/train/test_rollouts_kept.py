"""Rollouts that are kept to be looked at tell of the samples as they were, and change no bit of the training."""

from __future__ import annotations

from pathlib import Path

import pytest
from little import grpo_run, records

from rorqual.core.records import RunDir
from rorqual.train.loop import fit

STEPS, PROBLEMS, SAMPLES = 2, 4, 6


@pytest.fixture(scope="module")
def runs(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    out = tmp_path_factory.mktemp("kept")
    for count in (0, 1, 4):
        run = grpo_run(base, STEPS)
        fit(
            run.model_copy(update={"source": run.source.model_copy(update={"trace": count})}),
            RunDir(out / str(count)),
            quiet=True,
        )
    return {count: out / str(count) for count in (0, 1, 4)}


def test_keeping_changes_no_bit(runs: dict[int, Path]) -> None:
    weights = {(RunDir(path).checkpoint() / "model.safetensors").read_bytes() for path in runs.values()}
    assert len(weights) == 1 and records(runs[0]) == records(runs[1]) == records(runs[4])
    assert not RunDir(runs[0]).rollouts_file.exists()


def test_every_group_has_a_line_and_the_most_divided_their_texts(runs: dict[int, Path]) -> None:
    for count in (1, 4):
        lines = list(RunDir(runs[count]).rollouts())
        assert len(lines) == STEPS * PROBLEMS and all(len(line["samples"]) == SAMPLES for line in lines)
        for step in (1, 2):
            mine = [line for line in lines if line["step"] == step]
            told = [line for line in mine if "prompt" in line]
            assert len(told) == count and all("text" in s for line in told for s in line["samples"])
            assert not any("text" in s for line in mine if line not in told for s in line["samples"])
            apart = sorted(abs(sum(s["verdict"] == "right" for s in line["samples"]) / SAMPLES - 0.5) for line in mine)
            assert (
                sorted(abs(sum(s["verdict"] == "right" for s in line["samples"]) / SAMPLES - 0.5) for line in told)
                == apart[:count]
            )


def test_the_lines_agree_with_the_metrics(runs: dict[int, Path]) -> None:
    lines = list(RunDir(runs[4]).rollouts())
    for record in records(runs[4]):
        samples = [s for line in lines if line["step"] == record["step"] for s in line["samples"]]
        assert sum(s["verdict"] == "right" for s in samples) == record["right"]
        assert sum(s["tokens"] for s in samples) == record["sampled_tokens"]
        assert sum(s["advantage"] for s in samples) == pytest.approx(0, abs=1e-9)
