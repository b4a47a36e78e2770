"""What a report is made of: the files of a quickstart folder, read strictly enough to name what is missing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict

from rorqual.core.config import Config, parse
from rorqual.core.errors import DataError
from rorqual.core.records import RunDir, Thinking
from rorqual.evals.evaluation import Evaluation

When = Literal["before", "after"]
WHENS: tuple[When, ...] = ("before", "after")
MODES: tuple[Thinking, ...] = ("auto", "off", "on")
REMEDY = "Repeat the command that made this folder: it goes on where it was."
Record = dict[str, Any]


class Reading(Config):
    """A file that other rooms write and may add to: unknown keys are left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Experts(Reading):
    """Which expert served what. `share` is [layer][family][expert], shares of a family's tokens; `load` [layer][expert]."""

    layers: tuple[int | str, ...]
    families: tuple[str, ...]
    share: tuple[tuple[tuple[float, ...], ...], ...]
    load: tuple[tuple[float, ...], ...]


class StageCost(Reading):
    """What one stage cost: `seconds` on the clock, `core_seconds` of processor time."""

    name: str
    tokens: float = 0
    flops: float = 0
    core_seconds: float = 0
    seconds: float = 0


class Summary(Reading):
    """The model's account (numbers by name), the cost of each stage, and how to repeat the run."""

    model: dict[str, float | int | str]
    stages: tuple[StageCost, ...]
    seed: int
    command: str


@dataclass(frozen=True)
class Findings:
    """All that the report shows. `sft` and `grpo` hold one record per step, ascending."""

    sft: Sequence[Record]
    grpo: Sequence[Record]
    evaluations: dict[tuple[When, Thinking], Evaluation]
    experts: Experts
    summary: Summary

    @property
    def families(self) -> list[str]:
        return list(dict.fromkeys(sample.family for sample in self.evaluations["before", "auto"].samples))


F = TypeVar("F", bound=Reading)


def _read(cls: type[F], path: Path) -> F:
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError("the report needs this file and it is missing", where=str(path), remedy=REMEDY) from None
    except ValueError as error:
        raise DataError(f"not JSON: {error}", where=str(path), remedy=REMEDY) from None
    return parse(cls, data, where=str(path))


def read_records(folder: Path, stage: str) -> list[Record]:
    """The records of `stage` in `folder`, one per step: a step done twice, because of a resume, counts as last written."""
    run = RunDir(folder)
    if not run.metrics_file.is_file():
        raise DataError("the report needs this file and it is missing", where=str(run.metrics_file), remedy=REMEDY)
    records = [record for record in run.metrics() if isinstance(record, dict) and record.get("stage", stage) == stage]
    if not records:
        raise DataError(f"no record of stage '{stage}'", where=str(run.metrics_file), remedy=REMEDY)
    by_step = {int(record.get("step", place)): record for place, record in enumerate(records)}
    return [by_step[step] for step in sorted(by_step)]


def read_findings(folder: Path) -> Findings:
    """Read a folder as `build_report` describes it; a missing or wrong file is an error that names it."""
    sft, grpo = read_records(folder / "base", "sft"), read_records(folder / "teacher", "grpo")
    evaluations: dict[tuple[When, Thinking], Evaluation] = {}
    for when in WHENS:
        for mode in MODES:
            path = folder / "evals" / f"{when}-{mode}.json"
            if not path.is_file():
                raise DataError("the report needs this file and it is missing", where=str(path), remedy=REMEDY)
            evaluations[when, mode] = Evaluation.load(path)
    experts = _read(Experts, folder / "evals" / "experts.json")
    _check_shape(experts, folder / "evals" / "experts.json")
    return Findings(sft, grpo, evaluations, experts, _read(Summary, folder / "summary.json"))


def _check_shape(experts: Experts, path: Path) -> None:
    layers, families = len(experts.layers), len(experts.families)
    widths = {len(row) for layer in experts.share for row in layer} | {len(row) for row in experts.load}
    fits = len(experts.share) == len(experts.load) == layers and all(len(layer) == families for layer in experts.share)
    if not fits or len(widths) > 1:
        raise DataError(
            f"share must be [{layers} layers][{families} families][experts] and load [{layers} layers][experts]",
            where=str(path),
            remedy=REMEDY,
        )
