"""The command `rorqual quantize RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from pydantic import Field

from rorqual.cli.machine import available_cores
from rorqual.cli.progress import ByteProgressBar, progress_bar_callback
from rorqual.cli.settings import WHERE, Settings, parse_settings
from rorqual.core.config import Config, Natural, Positive, Share
from rorqual.core.errors import ConfigError
from rorqual.core.extras import require_extra
from rorqual.core.records import RunDir

GGUF = {"int8": "q8_0", "int4": "q4_1"}


class QuantizeSettings(Config):
    """Settings of `rorqual quantize`."""

    dtype: Literal["int8", "int4"] = Field(description="type of the weights")
    data: str = Field("kinds", min_length=1, description="text files and kinds, separated by commas")
    length: Natural = Field(0, description="tokens per window; 0: the model's context, at most 256")
    windows: int = Field(16, ge=2, le=2**20, description="windows per text")
    max_kl: Positive | None = Field(None, description="largest acceptable KL(float32 || quantised) in nats")
    max_changed: Share | None = Field(None, description="largest acceptable share of changed tokens")
    max_lost: Share | None = Field(
        None, description="largest acceptable loss of right tokens, as a share of all tokens"
    )
    out: str = Field("", description="GGUF file to write if all limits are kept")
    threads: Natural = Field(0, description="threads; 0: all cores")


MOST = 256
"""Largest default length of a window."""


def quantize(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    settings: Settings = None,
) -> None:
    """Measure what weights of 8 or 4 bits change, and write them as a GGUF file.

    The model reads the same tokens with weights in float32 and with quantised weights. The table shows how much the predictions
    change, with 95 % intervals over windows. data=FILE reads the last tenth of a text file. data=kinds reads passages of prose, code,
    tables, repeats, names and Chinese.

    If the upper end of an interval is above max_kl=, max_changed= or max_lost=, the command exits with status 1 and writes nothing.
    Commands such as serve, eval and generate take dtype=int8 and dtype=int4 without this file.
    """
    chosen = parse_settings(QuantizeSettings, settings)

    import torch

    from rorqual.cli.eval_settings import named_texts
    from rorqual.evals.damage import NamedText, limits_exceeded, summarise
    from rorqual.evals.quantization import measure_quantization, quantization_table
    from rorqual.model.load.run_directory import read_model_config

    context = read_model_config(RunDir(run)).max_position_embeddings
    if chosen.length > context:
        raise ConfigError(
            f"length={chosen.length} exceeds the model's context of {context}",
            where=WHERE,
            remedy=f"Use length={context} or less.",
        )
    if chosen.out and Path(chosen.out).exists():
        raise ConfigError("the file exists", where=chosen.out, remedy="Choose another name for out=, or delete it.")
    torch.set_num_threads(chosen.threads or available_cores())
    found = measure_quantization(
        RunDir(run),
        chosen.dtype,
        [NamedText(*text) for text in named_texts(chosen.data.split(","))],
        length=chosen.length or min(context, MOST),
        windows=chosen.windows,
        progress=progress_bar_callback("quantize", "windows"),
    )
    print(quantization_table(found, chosen.dtype).text())
    limits = {
        name: limit for name in ("kl", "changed", "lost") if (limit := getattr(chosen, f"max_{name}")) is not None
    }
    if exceeded := limits_exceeded({name: summarise(passages) for name, passages in found.items()}, limits):
        print("\n".join(exceeded))
        raise typer.Exit(1)
    if chosen.out:
        with require_extra("gguf", "gguf"):
            from rorqual.convert.gguf import export_gguf

        progress = ByteProgressBar("quantize", quiet=False)
        progress.say(export_gguf(RunDir(run), Path(chosen.out), dtype=GGUF[chosen.dtype], progress=progress))
        print(chosen.out)
