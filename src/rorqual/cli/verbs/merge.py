"""`rorqual merge RUN DST`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rorqual.cli.settings import DType, Settings, read
from rorqual.core.config import Config
from rorqual.core.records import RunDir


class MergeConfig(Config):
    """`dtype`: of the merged weights."""

    dtype: DType = "float32"
    quiet: bool = False


def merge(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run with tune.kind=lora or esft.")],
    dst: Annotated[Path, typer.Argument(metavar="DST", help="The merged run's folder; it must not exist.")],
    settings: Settings = None,
) -> None:
    """Write an adapter and its base as one run, which needs neither: to export, or to keep.

    Chat, eval and training take the adapter's run as it is. Keys: dtype=float32|bfloat16, quiet=. Added in fp32, rounded once.
    No device= is asked for.
    """
    config = read(MergeConfig, settings)

    from rorqual.convert.merge import merge_run

    merge_run(RunDir(run), dst, dtype=config.dtype)
    if not config.quiet:
        print(f"{dst}\n  Next: rorqual export {dst} FOLDER")
