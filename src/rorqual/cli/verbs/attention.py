"""The command `rorqual attention RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rorqual.cli.machine import cores
from rorqual.cli.settings import WHERE, Placement, Settings, check_device, read
from rorqual.core.config import Count, Natural, Share
from rorqual.core.errors import ConfigError
from rorqual.core.records import RunDir, write_json


class AttentionSettings(Placement):
    """Settings of `rorqual attention`.

    `length`: tokens per window; 0: the context of the model, at most 1,024. `windows`: number of windows. `min_recall`: lowest
    recall of a layer at which the command succeeds. `out`: JSON file for all values.
    """

    data: str = ""
    length: Natural = 0
    windows: Count = 8
    min_recall: Share = 0.0
    out: str = ""
    threads: Natural = 0


MOST = 1024
"""Largest default length of a window, because memory grows with the square of the length."""


def attention(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run of a model with sparse attention (kind dsa).")],
    settings: Settings = None,
) -> None:
    """Measure what sparse attention misses on a text.

    The last tenth of the text is split into windows. At each layer, dense attention is computed on the same inputs as sparse
    attention. The table shows the share of dense attention on the selected positions, the recall of the positions with the
    largest weights, and the change of the output.

    Keys: data=FILE (text), length=TOKENS, windows=8, min_recall=0.9 (exit with status 1 if a layer's recall is lower), out=FILE.json,
    device=, dtype=, threads=N.
    """
    chosen = read(AttentionSettings, settings)
    check_device(chosen.device)
    if not chosen.data:
        raise ConfigError("key 'data' is missing", where=WHERE, remedy="Give a text file: data=FILE.")

    import torch

    from rorqual.cli.measure import held_out_text
    from rorqual.data.tokenizer import Tokenizer
    from rorqual.evals.missed import measure_missed
    from rorqual.evals.missed_table import missed_table
    from rorqual.model.load.run import load_run

    torch.set_num_threads(chosen.threads or cores())
    model = load_run(RunDir(run), device=chosen.device, dtype=getattr(torch, chosen.dtype))
    context = model.config.max_position_embeddings
    if chosen.length > context:
        raise ConfigError(
            f"length={chosen.length} exceeds the model's context of {context}",
            where=WHERE,
            remedy=f"Use length={context} or less.",
        )
    length = chosen.length or min(context, MOST)
    ids = Tokenizer.load(RunDir(run).tokenizer_file).encode(held_out_text(chosen.data))
    count = min(chosen.windows, (len(ids) - 1) // length)
    if count < 1:
        raise ConfigError(
            f"the last tenth of the text has {len(ids)} tokens, which do not fill a window of {length}",
            where=chosen.data,
            remedy="Give a longer text, or a smaller length=.",
        )
    tokens = torch.tensor([ids[i * length : (i + 1) * length + 1] for i in range(count)], device=chosen.device)
    missed = measure_missed(model, tokens, where=str(run))
    print(missed_table(missed, str(run), chosen.data))
    if chosen.out:
        write_json(Path(chosen.out), {"run": str(run), "data": chosen.data, **missed.to_json()})
        print(f"{chosen.out}: all values, by layer, head and distance")
    if missed.recall < chosen.min_recall:
        print(f"recall {missed.recall:.3f} is below min_recall={chosen.min_recall:g}")
        raise typer.Exit(1)
