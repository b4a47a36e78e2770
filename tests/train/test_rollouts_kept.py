"""Rollouts that are kept to be looked at tell of the samples as they were, and change no bit of the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from little import grpo_run, records

from rorqual.core.records import RunDir
from rorqual.train.loop import fit

STEPS, PROBLEMS, SAMPLES = 2, 4, 6


def share(line: dict[str, Any]) -> float:
    return sum(sample["verdict"] == "right" for sample in line["samples"]) / SAMPLES


def test_kept_rollouts_agree_with_the_metrics_and_change_no_bit(base: Path, tmp_path: Path) -> None:
    """Every group has a line; those with the most divided rewards have their texts."""
    runs = {count: RunDir(tmp_path / str(count)) for count in (0, 1, 4)}
    for count, out in runs.items():
        run = grpo_run(base, STEPS)
        fit(run.model_copy(update={"source": run.source.model_copy(update={"trace": count})}), out, quiet=True)
    assert len({(out.checkpoint() / "model.safetensors").read_bytes() for out in runs.values()}) == 1
    assert records(runs[0].path) == records(runs[1].path) == records(runs[4].path)
    assert not runs[0].rollouts_file.exists()
    for count in (1, 4):
        lines = list(runs[count].rollouts())
        assert len(lines) == STEPS * PROBLEMS and all(len(line["samples"]) == SAMPLES for line in lines)
        for record in records(runs[count].path):
            mine = [line for line in lines if line["step"] == record["step"]]
            told = [line for line in mine if "prompt" in line]
            assert all(("text" in sample) == (line in told) for line in mine for sample in line["samples"])
            assert (
                sorted(abs(share(line) - 0.5) for line in told)
                == sorted(abs(share(line) - 0.5) for line in mine)[:count]
            )
            samples = [sample for line in mine for sample in line["samples"]]
            assert sum(s["verdict"] == "right" for s in samples) == record["right"]
            assert sum(s["tokens"] for s in samples) == record["sampled_tokens"]
            assert sum(s["advantage"] for s in samples) == pytest.approx(0, abs=1e-9)
