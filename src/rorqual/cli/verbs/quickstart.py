"""The command `rorqual quickstart`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from rorqual.cli.machine import available_cores
from rorqual.cli.settings import DType, check_device


def quickstart(
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("runs/quickstart"),
    seed: Annotated[int, typer.Option(min=0, help="Random seed. Equal seeds give equal results.")] = 0,
    size: Annotated[
        Literal["small", "full"],
        typer.Option(help="small runs every stage briefly; only full gives meaningful results."),
    ] = "full",
    threads: Annotated[int, typer.Option(min=0, help="Threads; 0: all cores. Results do not depend on it.")] = 0,
    device: Annotated[str, typer.Option(help="Device of the tensors.")] = "cpu",
    dtype: Annotated[DType, typer.Option(help="Type of matrix products.")] = "float32",
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
        size=size,
        threads=threads or available_cores(),
        device=device,
        dtype=dtype,
        whole_process=True,
    )
