"""docs/how-to/teach.md shows what was measured: its commands are those of the recorded result, and its figures are the result's."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rorqual.cli.settings import split_pairs
from rorqual.core.errors import CheckpointError
from rorqual.recipes import make_run

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/how-to/teach.md").read_text(encoding="utf-8")
RESULT = json.loads((ROOT / "docs/results/real-model.json").read_bytes())
COMMANDS = [
    line.replace('"$GGUF"', "SmolLM2-135M-Instruct.Q4_1.gguf")
    for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.strip().split("\n")
    if "rorqual " in line
]


def test_every_command_of_the_page_was_measured() -> None:
    measured = {stage["command"] for stage in RESULT["stages"]}
    assert COMMANDS, "the page has commands"
    assert not [command for command in COMMANDS if command not in measured]


def test_the_page_says_what_came_out() -> None:
    for found in RESULT["comparisons"].values():
        assert f"{found['before_percent']:g}" in PAGE and f"{found['after_percent']:g}" in PAGE
    gain = RESULT["comparisons"]["orders, before and after both"]
    assert gain["points"] >= 20 and gain["p_value"] < 0.01
    assert RESULT["core_seconds"]["teach"] < 7200
    assert abs(RESULT["perplexity"]["relative_difference"]) < 1e-3


@pytest.mark.parametrize("recipe", ["sft", "grpo"])
def test_the_trainings_of_the_page_are_still_understood(recipe: str, tmp_path: Path) -> None:
    """By their keys: the run that they start from is not there, and is the only thing that is missed."""
    (command,) = (c for c in COMMANDS if c.startswith(f"rorqual train {recipe} "))
    values = split_pairs(command.split()[3:])
    values.pop("out")
    values["from"] = str(tmp_path)
    with pytest.raises(CheckpointError, match="not a run directory"):
        make_run(recipe, values)
