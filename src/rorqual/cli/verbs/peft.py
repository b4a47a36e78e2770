"""`rorqual peft RUN DST` and `rorqual peft SRC RUN base=RUN`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rorqual.cli.settings import Settings, read
from rorqual.core.config import Config
from rorqual.core.records import RunDir


class PeftConfig(Config):
    """`base`: the run that the adapter of a folder is for. `name`: what is written as base_model_name_or_path."""

    base: str = ""
    name: str = ""
    quiet: bool = False


def peft(
    src: Annotated[Path, typer.Argument(metavar="RUN|FOLDER", help="A LoRA run, or with base= a folder of peft's.")],
    dst: Annotated[Path, typer.Argument(metavar="DST", help="What is written; it must not exist.")],
    settings: Settings = None,
) -> None:
    """Write a LoRA run's adapter in the format of peft; with base=RUN, read such a folder as an adapter's run.

    Keys: base=RUN (read), name=ORG/MODEL (the base's name in adapter_config.json; default its path), quiet=.
    No pickle is read, and no option that would be lost is passed over.
    """
    config = read(PeftConfig, settings)

    from rorqual.convert.peft import read_peft, write_peft

    if config.base:
        read_peft(src, RunDir(Path(config.base)), dst)
    else:
        write_peft(RunDir(src), dst, base=config.name)
    if not config.quiet:
        print(f"{dst}\n  Next: rorqual chat {dst}" if config.base else dst)
