"""The command `rorqual export RUN DST`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from pydantic import Field

from rorqual.cli.settings import WHERE, Settings, parse_settings
from rorqual.core.config import Config, Positive
from rorqual.core.errors import ConfigError
from rorqual.core.extras import require_extra
from rorqual.core.records import RunDir

HF = ("keep", "float32", "bfloat16", "float16", "fp8")
GGUF = ("float32", "bfloat16", "float16", "q8_0", "q4_0", "q4_1")


class ExportConfig(Config):
    """Settings of `rorqual export`."""

    format: Literal["hf", "gguf"] = Field("hf", description="Hugging Face folder or GGUF file")
    dtype: str = Field(
        "",
        description="hf: keep (default), float32, bfloat16, float16, fp8; gguf: float32 (default), bfloat16, float16, q8_0, q4_0, q4_1",
    )
    shard_gb: Positive = Field(5.0, description="size of a weight file in GB (1e9 bytes), for format=hf")
    quiet: bool = Field(False, description="print no progress")


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    dst: Annotated[Path, typer.Argument(metavar="DST", help="Output folder or .gguf file. Must not exist.")],
    settings: Settings = None,
) -> None:
    """Export a run for transformers, vLLM or llama.cpp.

    The run's newest checkpoint becomes a Hugging Face folder or a GGUF file. Beside a GGUF file DST.gguf, the command writes
    DST.Modelfile for Ollama. With format=hf, the same command resumes after an interruption.
    """
    config = parse_settings(ExportConfig, settings)
    dtype = config.dtype or ("keep" if config.format == "hf" else "float32")
    if dtype not in (known := HF if config.format == "hf" else GGUF):
        raise ConfigError(
            f"format={config.format} does not support dtype={dtype}", where=WHERE, remedy=f"Use {', '.join(known)}."
        )

    from rorqual.cli.progress import ByteProgressBar

    progress = ByteProgressBar("export", quiet=config.quiet)
    if config.format == "gguf":
        with require_extra("gguf", "gguf"):
            from rorqual.convert.gguf import export_gguf

        progress.say(export_gguf(RunDir(run), dst, dtype=dtype, progress=progress))
    else:
        from rorqual.convert.hf import export_hf

        export_hf(RunDir(run), dst, dtype=dtype, shard_bytes=config.shard_gb * 1e9, progress=progress)  # type: ignore[arg-type]
    if not config.quiet:
        print(dst)
