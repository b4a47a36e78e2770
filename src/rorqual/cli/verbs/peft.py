"""The command `rorqual peft RUN DST` and `rorqual peft SRC RUN base=RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field

from rorqual.cli.settings import Settings, parse_settings
from rorqual.core.config import Config
from rorqual.core.records import RunDir


class PeftConfig(Config):
    """Settings of `rorqual peft`."""

    base: str = Field("", description="run that an imported adapter belongs to; without it, RUN is exported")
    name: str = Field("", description="the base model's name in adapter_config.json; default: its path")
    quiet: bool = Field(False, description="print no progress")


def peft(
    src: Annotated[Path, typer.Argument(metavar="RUN|FOLDER", help="LoRA run, or with base= a PEFT folder.")],
    dst: Annotated[Path, typer.Argument(metavar="DST", help="Folder to write. Must not exist.")],
    settings: Settings = None,
) -> None:
    """Export a LoRA run as a PEFT adapter folder, or import a PEFT adapter.

    With base=RUN, a PEFT folder is imported as an adapter run. Pickle files are not read. If the PEFT adapter has an option
    that Rorqual cannot represent, the import fails with an error.
    """
    config = parse_settings(PeftConfig, settings)

    from rorqual.convert.peft import read_peft, write_peft

    if config.base:
        read_peft(src, RunDir(Path(config.base)), dst)
    else:
        write_peft(RunDir(src), dst, base=config.name)
    if not config.quiet:
        print(f"{dst}\n  Next: rorqual chat {dst}" if config.base else dst)
