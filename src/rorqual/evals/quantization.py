"""What quantised weights change of a model's predictions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean

import torch

from rorqual.core.records import RunDir
from rorqual.engine import Engine
from rorqual.evals.damage import NamedText, PassageDamage, compare_predictions, summarise
from rorqual.evals.stats import Difference
from rorqual.model.load.run_directory import load_run
from rorqual.ops.layer import Layer
from rorqual.report.table import Table


@torch.no_grad()
def measure_quantization(
    run: RunDir,
    dtype: str,
    texts: Sequence[NamedText],
    *,
    length: int,
    windows: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, list[PassageDamage]]:
    """Compare the predictions of a run in float32 with those of its engine with `dtype`, on at most `windows` windows of each text.

    A forward pass computes what an engine step computes, except that a step also rounds the KV cache to bfloat16, and the inputs of
    experts. Raises DataError if a text is too short, and ConfigError if the native backend does not run the model.
    """
    engine = Engine(run.path, dtype=dtype, engine_cores=1)
    model, quantized, found = load_run(run), engine.scoring_model.float(), dict[str, list[PassageDamage]]()
    for layer in quantized.modules():
        if isinstance(layer, Layer):
            layer.known = {name: tuple(tensor.float() for tensor in tensors) for name, tensors in layer.known.items()}
    rows = [(text.name, ids) for text in texts for ids in text.windows(engine.tokenizer, length, windows)]
    for done, (name, ids) in enumerate(rows, start=1):
        tokens = torch.tensor(ids)
        before, after = (
            one.logits(one(tokens[None, :-1]).hidden[0]).float().log_softmax(-1) for one in (model, quantized)
        )
        found.setdefault(name, []).append(compare_predictions(before, after, tokens[1:]))
        progress(done, len(rows))
    return found


def quantization_table(found: dict[str, list[PassageDamage]], dtype: str) -> Table:
    """Return a row for each text."""

    def cell(value: Difference, form: str) -> str:
        return f"{value.mean:{form}} [{value.interval.low:{form}}, {value.interval.high:{form}}]"

    rows = []
    for name, passages in found.items():
        one = summarise(passages)
        before, after = (math.exp(fmean(getattr(each, key) for each in passages)) for key in ("loss_before", "loss"))
        changes = (cell(one.kl, ".2g"), cell(one.changed, ".2%"), cell(one.lost, ".2%"))
        rows.append((name, f"{one.scored:,}", *changes, f"{before:.2f}", f"{after:.2f}"))
    heads = ("text", "tokens", "KL", "changed", "lost", "perplexity", f"in {dtype}")
    return Table(title=f"What {dtype} changes, by text", heads=heads, rows=tuple(rows))
