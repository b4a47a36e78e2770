"""The command `rorqual compare A B`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from pydantic import Field

from rorqual.cli.settings import Settings, parse_settings
from rorqual.core.config import Config
from rorqual.core.errors import DataError


class CompareSettings(Config):
    """Settings of `rorqual compare`."""

    grain: Literal["family", "level", "all"] = Field("family", description="what a row covers")


def compare(
    before: Annotated[Path, typer.Argument(metavar="A", help="Evaluation file of a model, or run with evaluations.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Evaluation file or run of the model to compare with A.")],
    settings: Settings = None,
) -> None:
    """Compare two models on the same problems.

    Shows paired differences between A and B with 95 % intervals and exact p-values. Two runs are compared on every evaluation
    that both runs contain. `rorqual eval` writes evaluations.
    """
    chosen = parse_settings(CompareSettings, settings)

    from rorqual.evals import compare as paired
    from rorqual.evals.evaluation import Evaluation
    from rorqual.evals.table import comparison_table, unmarked_replies_note

    for old, new in evaluation_pairs(before, after):
        first, second = Evaluation.load(old), Evaluation.load(new)
        rows = paired.compare(first, second, grain=chosen.grain)
        print(comparison_table(rows, title=f"{new} - {old}, paired").text())
        if note := unmarked_replies_note({"before": first, "after": second}):
            print(note)


def evaluation_pairs(before: Path, after: Path) -> list[tuple[Path, Path]]:
    """Return pairs of evaluation files to compare: the two given files, or all files that two runs have in common."""
    if not before.is_dir() and not after.is_dir():
        return [(before, after)]
    if before.is_dir() != after.is_dir():
        raise DataError(
            "cannot compare a folder with a file", where=f"{before}, {after}", remedy="Give two runs or two files."
        )
    names = sorted({file.name for file in (before / "evals").glob("*.json")})
    common = [(before / "evals" / name, after / "evals" / name) for name in names if (after / "evals" / name).is_file()]
    if not common:
        remedy = f"Evaluate both on one task: rorqual eval {before} task=NAME, rorqual eval {after} task=NAME."
        raise DataError(
            "the two runs have no evaluation in common", where=f"{before / 'evals'}, {after / 'evals'}", remedy=remedy
        )
    return common
