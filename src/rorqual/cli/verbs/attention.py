"""The command `rorqual attention RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field

from rorqual.cli.machine import available_cores
from rorqual.cli.progress import progress_bar_callback
from rorqual.cli.settings import WHERE, Counts, DeviceSettings, Settings, check_device, parse_settings
from rorqual.core.config import Natural, Positive, Share
from rorqual.core.errors import ConfigError
from rorqual.core.records import RunDir, write_atomic, write_json


class AttentionSettings(DeviceSettings):
    """Settings of `rorqual attention`."""

    data: str = Field(min_length=1, description="text files, kinds, needle and copy, separated by commas")
    length: Natural = Field(0, description="tokens per window; 0: the model's context, at most 1,024")
    windows: int = Field(8, ge=2, le=2**20, description="windows per text, and needles or lines per length and depth")
    budgets: Counts | None = Field(
        None, description="further values of index_topk to measure; default: a quarter, half and twice the model's"
    )
    max_kl: Positive | None = Field(None, description="largest acceptable KL(dense || sparse) in nats")
    max_changed: Share | None = Field(None, description="largest acceptable share of changed tokens")
    max_lost: Share | None = Field(
        None, description="largest acceptable loss of right tokens, as a share of all tokens"
    )
    out: str = Field("", description="JSON file of all values")
    page: str = Field("", description="HTML file")
    threads: Natural = Field(0, description="threads; 0: all cores")


MOST = 1024
"""Largest default length of a window, because memory grows with the square of the length."""


def attention(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run of a model with sparse attention (kind dsa).")],
    settings: Settings = None,
) -> None:
    """Measure what sparse attention changes, compared with dense attention.

    The model reads the same tokens with sparse and with dense attention. The tables show how much the predictions change, with
    95 % intervals, and how much of the dense attention is on selected positions.

    If the upper end of an interval is above max_kl=, max_changed= or max_lost=, the command exits with status 1.

    data= lists the texts to read, separated by commas. data=FILE reads the last tenth of a text file. data=kinds
    reads passages of prose, code, tables, repeats, names and Chinese. data=needle plants a key and its value at five depths,
    in passages of up to four lengths. data=copy plants a line at five depths, and repeats it at the end of the passage.
    """
    chosen = parse_settings(AttentionSettings, settings)
    check_device(chosen.device)

    import torch

    from rorqual.cli.eval_settings import named_texts
    from rorqual.data.tokenizer import Tokenizer
    from rorqual.evals.attention_page import attention_page, report_as_text
    from rorqual.evals.damage import NamedText
    from rorqual.evals.planted_passages import PLANTED
    from rorqual.evals.sparse_attention_report import measure_sparse_attention
    from rorqual.generate.output import check_writable_path
    from rorqual.model.load.run_directory import load_run

    for file in filter(None, (chosen.out, chosen.page)):
        check_writable_path(Path(file))
    names = chosen.data.split(",")
    torch.set_num_threads(chosen.threads or available_cores())
    model = load_run(RunDir(run), device=chosen.device, dtype=getattr(torch, chosen.dtype))
    context = model.config.max_position_embeddings
    if chosen.length > context:
        raise ConfigError(
            f"length={chosen.length} exceeds the model's context of {context}",
            where=WHERE,
            remedy=f"Use length={context} or less.",
        )
    limits = {
        name: limit for name in ("kl", "changed", "lost") if (limit := getattr(chosen, f"max_{name}")) is not None
    }
    report = measure_sparse_attention(
        model,
        Tokenizer.load(RunDir(run).tokenizer_file),
        [NamedText(*text) for text in named_texts([name for name in names if name not in PLANTED])],
        [kind for kind in PLANTED if kind in names],
        name=str(run),
        length=chosen.length or min(context, MOST),
        windows=chosen.windows,
        budgets=chosen.budgets or (),
        limited=bool(limits),
        progress=progress_bar_callback("attention", "measurement"),
    )
    exceeded = report.exceeded(limits)
    print(report_as_text(report))
    if chosen.out:
        write_json(Path(chosen.out), report.to_json())
        print(f"{chosen.out}: all values, by passage and layer")
    if chosen.page:
        write_atomic(Path(chosen.page), attention_page(report, exceeded).encode())
        print(f"{chosen.page}: the tables and a chart")
    if exceeded:
        print("\n".join(exceeded))
        raise typer.Exit(1)
