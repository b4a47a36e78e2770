"""`rorqual quickstart`"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rorqual.cli.machine import cores
from rorqual.cli.settings import check_device


class Size(StrEnum):
    """How much work: `small` shows every stage in short, `full` is the one whose figures mean something."""

    SMALL = "small"
    FULL = "full"


class FloatType(StrEnum):
    """A type of tensors."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def quickstart(
    out: Annotated[Path, typer.Option(help="The folder for everything it makes.")] = Path("runs/quickstart"),
    seed: Annotated[int, typer.Option(min=0, help="One seed gives one result.")] = 0,
    size: Annotated[Size, typer.Option(help="small shows every stage in short; its figures mean little.")] = Size.FULL,
    threads: Annotated[int, typer.Option(min=0, help="0: every core. Changes the time and no figure.")] = 0,
    device: Annotated[str, typer.Option(help="Where tensors lie.")] = "cpu",
    dtype: Annotated[FloatType, typer.Option(help="The type that matrix products are in.")] = FloatType.FLOAT32,
) -> None:
    """Build a small DeepSeek-style model, teach it to reason, reinforce it, distil a student from it, measure all, and report.

    Stopped, it goes on where it was when the same command is given again.
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
