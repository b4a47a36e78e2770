"""`rorqual import SRC RUN`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from rorqual.cli.settings import WHERE, Settings, read
from rorqual.core.config import Config
from rorqual.core.errors import ConfigError


class ImportConfig(Config):
    """How a checkpoint becomes a run."""

    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    quiet: bool = False


def import_(
    src: Annotated[str, typer.Argument(metavar="SRC", help="A folder, a file.gguf, or ORG/NAME on the hub.")],
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder; it must not exist.")],
    settings: Settings = None,
) -> None:
    """Turn a checkpoint of the Hugging Face form, or a GGUF file, into a run: to talk to, measure, train on.

    Slice by slice, so that a model larger than the memory fits. Nothing that came with it is run; a pickle is never opened.
    Keys: dtype=keep|float32|bfloat16|float16 (keep: the very bytes, FP8 with its scales; else FP8 is
    dequantised; what a GGUF file has quantised is dequantised always, to float32 or bfloat16), quiet=.
    No device= is asked for: nothing is computed.
    """
    config = read(ImportConfig, settings)

    from rorqual.cli.bytes_done import BytesDone
    from rorqual.convert.hub import fetch, is_hub_id

    progress = BytesDone("import", quiet=config.quiet)
    if src.endswith(".gguf"):
        if config.dtype == "float16":
            raise ConfigError("dtype=float16 with a GGUF file", where=WHERE, remedy="Use float32 or bfloat16.")
        from rorqual.convert.gguf import import_gguf

        dtype = "float32" if config.dtype == "keep" else config.dtype
        import_gguf(Path(src), run, progress=progress, dtype=dtype)
    else:
        from rorqual.convert.hf import import_hf

        folder = Path(src) if Path(src).exists() or not is_hub_id(src) else fetch(src)
        progress.say(import_hf(folder, run, dtype=config.dtype, progress=progress).notes)
    if not config.quiet:
        print(f"{run}\n  Next: rorqual chat {run}")
