"""`rorqual export RUN DST`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from rorqual.cli.settings import WHERE, Settings, read
from rorqual.core.config import Config, Positive
from rorqual.core.errors import ConfigError
from rorqual.core.records import RunDir

HF = ("keep", "float32", "bfloat16", "float16", "fp8")
GGUF = ("float32", "bfloat16", "q8_0", "q4_0")


class ExportConfig(Config):
    """How a run leaves the house. `shard_gb`: thousand million bytes of a file of weights, for format=hf."""

    format: Literal["hf", "gguf"] = "hf"
    dtype: str = ""
    shard_gb: Positive = 5.0
    quiet: bool = False


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    dst: Annotated[Path, typer.Argument(metavar="DST", help="A folder, or a file.gguf; it must not exist.")],
    settings: Settings = None,
) -> None:
    """Write a run's newest checkpoint for other engines: transformers and vLLM read the folder, llama.cpp the GGUF file.

    Keys: format=hf|gguf, dtype=, shard_gb=5, quiet=. For hf: dtype=keep (the default: the very bytes), float32, bfloat16,
    float16, fp8 (blocks of 128 x 128, as DeepSeek-V3); the same command goes on where it was interrupted. For gguf:
    dtype=float32 (the default), bfloat16, q8_0, q4_0. No device= is asked for: nothing is computed.
    """
    config = read(ExportConfig, settings)
    dtype = config.dtype or ("keep" if config.format == "hf" else "float32")
    if dtype not in (known := HF if config.format == "hf" else GGUF):
        raise ConfigError(
            f"dtype={dtype} with format={config.format}", where=WHERE, remedy=f"One of {', '.join(known)}."
        )

    from rorqual.cli.bytes_done import BytesDone

    progress = BytesDone("export", quiet=config.quiet)
    if config.format == "gguf":
        from rorqual.convert.gguf import export_gguf

        progress.say(export_gguf(RunDir(run), dst, dtype=dtype, progress=progress))
    else:
        from rorqual.convert.hf import export_hf

        export_hf(RunDir(run), dst, dtype=dtype, shard_bytes=config.shard_gb * 1e9, progress=progress)  # type: ignore[arg-type]
    if not config.quiet:
        print(dst)
