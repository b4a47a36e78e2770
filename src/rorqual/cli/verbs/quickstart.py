"""The command `rorqual quickstart`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rorqual.cli.machine import cores
from rorqual.cli.settings import check_device


class Size(StrEnum):
    """Amount of training: `small` runs every stage briefly; only `full` gives meaningful results."""

    SMALL = "small"
    FULL = "full"


class FloatType(StrEnum):
    """The dtype of tensors."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def quickstart(
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("runs/quickstart"),
    seed: Annotated[int, typer.Option(min=0, help="Random seed. Equal seeds give equal results.")] = 0,
    size: Annotated[
        Size, typer.Option(help="small runs every stage briefly; only full gives meaningful results.")
    ] = Size.FULL,
    threads: Annotated[int, typer.Option(min=0, help="Threads; 0: all cores. Results do not depend on it.")] = 0,
    device: Annotated[str, typer.Option(help="Device of the tensors.")] = "cpu",
    dtype: Annotated[FloatType, typer.Option(help="Type of matrix products.")] = FloatType.FLOAT32,
) -> None:
    """Train a small DeepSeek-style reasoning model from scratch.

    The stages are SFT, GRPO, distillation of a student, evaluation of all models, and a report. After an
    interruption, the same command resumes.
    """
    from rorqual.recipes.quickstart import run_quickstart

    check_device(device)
    run_quickstart(
        out,
        seed=seed,
        size=size.value,
        threads=threads or cores(),
        device=device,
        dtype=dtype.value,
        whole_process=True,
    )
