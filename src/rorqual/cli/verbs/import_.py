"""The command `rorqual import SRC RUN`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer
from pydantic import Field

from rorqual.cli.settings import WHERE, Settings, parse_settings
from rorqual.core.config import Config
from rorqual.core.errors import ConfigError
from rorqual.core.extras import require_extra


class ImportConfig(Config):
    """Settings of `rorqual import`."""

    dtype: Literal["keep", "float32", "bfloat16", "float16"] = Field(
        "keep", description="keep copies the bytes; any other type dequantizes FP8"
    )
    quiet: bool = Field(False, description="print no progress")


def import_(
    src: Annotated[str, typer.Argument(metavar="SRC", help="Folder, .gguf file, or ORG/NAME on the hub.")],
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder to write. Must not exist.")],
    settings: Settings = None,
) -> None:
    """Import a Hugging Face checkpoint or a GGUF file as a run.

    All other commands accept the imported run. Tensors are copied slice by slice, so the model may be larger than memory. No
    code from the checkpoint is executed, and pickle files are never opened. Quantized tensors of a GGUF file are dequantized
    to float32 or bfloat16.
    """
    config = parse_settings(ImportConfig, settings)
    if re.match(r"\w+=", str(run)):
        raise ConfigError(
            f"RUN is '{run}'", where=WHERE, remedy="Write the folder without a key: rorqual import SRC RUN."
        )

    from rorqual.cli.progress import ByteProgressBar
    from rorqual.convert.hub import download_repository, is_hub_id

    progress = ByteProgressBar("import", quiet=config.quiet)
    if src.endswith(".gguf"):
        if config.dtype == "float16":
            raise ConfigError(
                "a GGUF file cannot be imported as float16", where=WHERE, remedy="Use dtype=float32 or dtype=bfloat16."
            )
        with require_extra("gguf", "gguf"):
            from rorqual.convert.gguf import import_gguf

        dtype = "float32" if config.dtype == "keep" else config.dtype
        import_gguf(Path(src), run, progress=progress, dtype=dtype)
    else:
        from rorqual.convert.hf import import_hf

        folder = Path(src) if Path(src).exists() or not is_hub_id(src) else download_repository(src)
        progress.say(import_hf(folder, run, dtype=config.dtype, progress=progress))
    if not config.quiet:
        print(f"{run}\n  Next: rorqual chat {run}")
