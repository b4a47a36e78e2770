"""The command `rorqual merge RUN DST`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field

from rorqual.cli.settings import DType, Settings, parse_settings
from rorqual.core.config import Config
from rorqual.core.records import RunDir


class MergeConfig(Config):
    """Settings of `rorqual merge`."""

    dtype: DType = Field("float32", description="type of the merged weights")
    quiet: bool = Field(False, description="print no progress")


def merge(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run with tune.kind=lora or esft.")],
    dst: Annotated[Path, typer.Argument(metavar="DST", help="Run folder to write. Must not exist.")],
    settings: Settings = None,
) -> None:
    """Merge an adapter into its base model, as a new run.

    The merged run needs neither the adapter run nor the base run. Other commands also accept the unmerged adapter run. The
    adapter's changes are added to the base's weights in fp32, and each sum is rounded once. The command has no device= key.
    """
    config = parse_settings(MergeConfig, settings)

    from rorqual.convert.merge import merge_run

    merge_run(RunDir(run), dst, dtype=config.dtype)
    if not config.quiet:
        print(f"{dst}\n  Next: rorqual export {dst} FOLDER")
