"""Fine-tune part of a model: select ESFT's experts from the training data, and report the cost of training."""

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
from rorqual.model.adapter import ESFT, Adapter, SelectedExperts, trained_parameters
from rorqual.model.adapter.esft import expert_relevance, n_stacked_experts, routing_networks, select_experts
from rorqual.model.adapter.files import record_base_checkpoint
from rorqual.model.decoder import Decoder
from rorqual.train.batch import TrainBatch
from rorqual.train.gradient import open_workers
from rorqual.train.optim import Optimizer
from rorqual.train.run import Run
from rorqual.train.sources import SourceInputs

ROWS = 16
"""Number of rows per forward pass of the expert selection. The number of rows is fixed, because it affects rounding, and
rounding can change the selected experts."""


def begin_tuning(run: Run, out: RunDir, base: Path, model: Decoder, tokenizer: Tokenizer, threads: int) -> Adapter:
    """Create the adapter record of a new run. `model` holds the weights of the checkpoint `base`."""
    experts = find_experts(run, model, tokenizer, threads)
    return Adapter(
        base=record_base_checkpoint(base, named=run.start.run, seen_from=out.path), tune=run.tune, experts=experts
    )


def find_experts(run: Run, model: Decoder, tokenizer: Tokenizer, threads: int) -> SelectedExperts:
    """Select the experts that ESFT trains. The selection depends on how `model` routes the batches of the first steps. Return
    () if the run does not use ESFT.

    The selection counts the tokens of all samples, even if the source excludes a sample from training. Padding tokens are not
    counted.
    """
    tune = run.tune
    if not isinstance(tune, ESFT):
        return ()
    layers = routing_networks(model)
    chat = chat_format(tokenizer, run.chat)
    source = run.source.build(SourceInputs(model, tokenizer, chat, run.seed, threads))
    experts = [n_stacked_experts(ffn) for ffn in layers.values()]
    totals = [torch.zeros(n, dtype=torch.float64) for n in experts]
    with open_workers(threads) as pool:
        for step in range(tune.sample):
            work = source.step(step)
            parts = [part for batch in (*work.batches, *work.unlearned) for part in _split_batch(batch)]
            for scores in pool.map(lambda part: _relevance(model, part, tune, run.device), parts):
                # `[:n]` leaves out the identity experts, which come last and have no weights to train.
                totals = [total + score[:n] for total, score, n in zip(totals, scores, experts, strict=True)]
    return select_experts(totals, tune.p)


def _split_batch(batch: TrainBatch) -> list[TrainBatch]:
    return batch.split(-(-len(batch.tokens) // ROWS))


@torch.no_grad()  # grad mode is per thread; pool threads do not inherit it
def _relevance(model: Decoder, part: TrainBatch, tune: ESFT, device: str) -> Sequence[Tensor]:
    batch = part.to(device)
    routing = model(batch.tokens, batch.positions, segments=batch.segments).routing
    documents, number = batch.document_indices.flatten().unique(return_inverse=True)
    if int(documents[0]) < 0:
        number = number - 1  # padding sorts first and gets -1
    return expert_relevance(routing, number, tune.score, int(number.max()) + 1)


# ---- cost


def tuning_cost(model: Decoder, optimizer: Optimizer) -> dict[str, int]:
    """Return the number of trained parameters and the size of the optimizer state in bytes."""
    state = optimizer.state().values()
    return {
        "trained_parameters": sum(p.numel() for p in trained_parameters(model).values()),
        "optimizer_bytes": sum(t.numel() * t.element_size() for t in state),
    }


def tuning_start_message(model: Decoder, adapter: Adapter) -> str:
    """Return a message with the share of trained parameters and the number of trained experts per layer."""
    part = sum(p.numel() for p in trained_parameters(model).values())
    added = part if not adapter.experts else 0
    total = sum(p.numel() for p in model.parameters()) - added
    line = f"{adapter.tune.kind}: {part:,} trained parameters added to {total:,} ({part / total:.2%})"
    if adapter.experts:
        layers = routing_networks(model).values()
        counts = ", ".join(f"{len(chosen)} of {n_stacked_experts(ffn)}" for ffn, chosen in zip(layers, adapter.experts))
        line = f"esft: {part:,} of {total:,} parameters trained ({part / total:.2%}); experts, layer by layer: {counts}"
    return line


def tuning_end_message(costs: dict[str, int], seconds: float, steps: int) -> str:
    """Return a message with the size of the optimizer state, the peak memory of the process and the time per training step."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return (
        f"optimizer state {costs['optimizer_bytes']:,} bytes for {costs['trained_parameters']:,} parameters; "
        f"peak memory of the process {peak / 1e6:,.0f} MB; {seconds / max(steps, 1):.3f} s per step"
    )
