"""Partial training: choose the experts that the run's data uses (ESFT), and report the cost of the trained part."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rorqual.core.records import RunDir
from rorqual.data.chat import chat_format
from rorqual.data.tokenizer import Tokenizer
from rorqual.model.adapter import ESFT, Adapter, Selection, trained
from rorqual.model.adapter.esft import n_stacked, relevance, routed, select
from rorqual.model.adapter.files import base_of
from rorqual.model.decoder import Decoder
from rorqual.train.batch import TrainBatch
from rorqual.train.optim import Optimizer
from rorqual.train.run import Run
from rorqual.train.sources import Materials
from rorqual.train.workers import workers

ROWS = 16
"""Rows in one forward pass. It is fixed, because it determines rounding, and rounding may decide between two experts."""


def begin(run: Run, out: RunDir, base: Path, model: Decoder, tokenizer: Tokenizer, threads: int) -> Adapter:
    """Return the adapter of a new run on the checkpoint `base`, whose weights `model` holds."""
    experts = find_experts(run, model, tokenizer, threads)
    return Adapter(base=base_of(base, named=run.start.run, seen_from=out.path), tune=run.tune, experts=experts)


def find_experts(run: Run, model: Decoder, tokenizer: Tokenizer, threads: int) -> Selection:
    """Return ESFT's experts, chosen by how `model` routes the batches of the run's first steps. Other kinds have none.

    Rows that a source samples with the model count like training rows. Padding does not count.
    """
    tune = run.tune
    if not isinstance(tune, ESFT):
        return ()
    layers = routed(model)
    chat = chat_format(tokenizer, run.chat)
    source = run.source.build(Materials(model, tokenizer, chat, run.seed, threads))
    experts = [n_stacked(ffn) for ffn in layers.values()]
    totals = [torch.zeros(n, dtype=torch.float64) for n in experts]
    with workers(threads) as pool:
        for step in range(tune.sample):
            work = source.step(step)
            parts = [part for batch in (*work.batches, *work.unlearned) for part in _parts(batch)]
            for found in pool.map(lambda part: _look(model, part, tune, run.device), parts):
                # Identity experts come after the stacked ones and have no weights to train.
                totals = [total + one[:n] for total, one, n in zip(totals, found, experts, strict=True)]
    return select(totals, tune.p)


def _parts(batch: TrainBatch) -> list[TrainBatch]:
    return batch.split(-(-len(batch.tokens) // ROWS))


@torch.no_grad()  # grad mode is per thread; pool threads do not inherit it
def _look(model: Decoder, given: TrainBatch, tune: ESFT, device: str) -> Sequence[Tensor]:
    batch = given.to(device)
    routing = model(batch.tokens, batch.positions, segments=batch.segments).routing
    row = torch.arange(len(batch.tokens), device=batch.tokens.device).unsqueeze(-1)
    name = torch.where(batch.segments >= 0, row * (batch.tokens.shape[1] + 1) + batch.segments, -1).flatten()
    names, number = name.unique(return_inverse=True)
    if int(names[0]) < 0:
        number = number - 1  # padding's name sorts first
    return relevance(routing, number, tune.score, int(number.max()) + 1)


# ---- cost


def cost(model: Decoder, optimizer: Optimizer) -> dict[str, int]:
    """Return the number of trained parameters and the bytes of the optimizer state."""
    held = optimizer.state().values()
    return {
        "trained_parameters": sum(p.numel() for p in trained(model).values()),
        "optimizer_bytes": sum(t.numel() * t.element_size() for t in held),
    }


def begun(model: Decoder, adapter: Adapter) -> str:
    """Return a message that says how much of the model is trained, and which experts."""
    part = sum(p.numel() for p in trained(model).values())
    added = part if not adapter.experts else 0
    total = sum(p.numel() for p in model.parameters()) - added
    line = f"{adapter.tune.kind}: {part:,} trained parameters added to {total:,} ({part / total:.2%})"
    if adapter.experts:
        layers = routed(model).values()
        counts = ", ".join(f"{len(chosen)} of {n_stacked(ffn)}" for ffn, chosen in zip(layers, adapter.experts))
        line = f"esft: {part:,} of {total:,} parameters trained ({part / total:.2%}); experts, layer by layer: {counts}"
    return line


def ended(costs: dict[str, int], seconds: float, steps: int) -> str:
    """Return a message with the optimizer's memory, the process's peak memory, and the time per step."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return (
        f"optimizer state {costs['optimizer_bytes']:,} bytes for {costs['trained_parameters']:,} parameters; "
        f"peak memory of the process {peak / 1e6:,.0f} MB; {seconds / max(steps, 1):.3f} s a step"
    )
