"""Gradients of one update, its micro-batches shared among threads.

torch releases the interpreter while an operation runs, so two threads keep two cores busy; each runs its operations on one
core. Every micro-batch's gradient is kept apart and they are added in order: the number of threads changes no bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rorqual.core.errors import NumericsError
from rorqual.core.memory import keep_freed
from rorqual.model.adapter import trained
from rorqual.model.decoder import Decoder
from rorqual.ops.moe import Routing
from rorqual.train.balance import count
from rorqual.train.batch import TrainBatch
from rorqual.train.objectives import Objective


@dataclass
class Update:
    """One update's gradient, loss and record. `means` hold (sum, weight), `counts` the load of each router's experts."""

    grads: list[Tensor]
    loss: float
    means: dict[str, tuple[float, float]] = field(default_factory=dict)
    maxima: dict[str, float] = field(default_factory=dict)
    counts: list[Tensor] = field(default_factory=list)

    def add(self, other: Update) -> None:
        """Add the next micro-batch's share, in place."""
        for mine, theirs in zip(self.grads, other.grads, strict=True):
            mine.add_(theirs)
        self.loss += other.loss
        for name, (total, weight) in other.means.items():
            had = self.means.get(name, (0.0, 0.0))
            self.means[name] = (had[0] + total, had[1] + weight)
        for name, value in other.maxima.items():
            self.maxima[name] = max(value, self.maxima.get(name, -math.inf))
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]


@contextmanager
def workers(threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool whose threads each run torch's operations on one core, and so does the caller meanwhile."""
    keep_freed()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def gradient(
    model: Decoder,
    objectives: Sequence[Objective],
    batch: TrainBatch,
    *,
    parts: int,
    pool: ThreadPoolExecutor,
    dtype: torch.dtype = torch.float32,
    where: str = "",
) -> Update:
    """The gradient of the objectives' means over the whole `batch`, computed in `parts` micro-batches: of each of `trained(model)`."""
    totals = [max(objective.weight(batch), 1e-20) for objective in objectives]
    micro = batch.split(parts)
    tasks = [pool.submit(_one, model, objectives, part, totals, dtype) for part in micro]
    first, *rest = [task.result() for task in tasks]
    for other in rest:
        first.add(other)
    if not math.isfinite(first.loss):
        raise NumericsError(
            f"the loss is {first.loss}",
            where=where,
            remedy="Lower optim.lr or optim.clip; the newest checkpoint, if there is one, holds the weights from before it.",
        )
    return first


def compare(
    model: Decoder,
    objectives: Sequence[Objective],
    batches: Sequence[TrainBatch],
    *,
    parts: int,
    pool: ThreadPoolExecutor,
    dtype: torch.dtype = torch.float32,
) -> tuple[Update, list[Tensor | None]]:
    """What the trainer, before any update, makes of everything that was just sampled: means and maxima, no gradient.

    With them, for each batch, its log-probabilities [rows, seq] of the targets, if an objective `wants_old`.
    """
    jobs = [[pool.submit(_look, model, objectives, part, dtype) for part in batch.split(parts)] for batch in batches]
    seen, old = Update([], 0.0), list[Tensor | None]()
    for looks in ([job.result() for job in mine] for mine in jobs):
        for update, _ in looks:
            seen.add(update)
        logprobs = [found for _, found in looks if found is not None]
        old.append(torch.cat(logprobs) if logprobs else None)
    return seen, old


@torch.no_grad()  # threads do not inherit it
def _look(
    model: Decoder, objectives: Sequence[Objective], batch: TrainBatch, dtype: torch.dtype
) -> tuple[Update, Tensor | None]:
    with torch.autocast(batch.tokens.device.type, dtype=dtype, enabled=dtype != torch.float32):
        output = model(batch.tokens, batch.positions, segments=batch.segments, replay=batch.replay)
        terms = [objective.term(model, batch, output) for objective in objectives]
    seen = Update([], 0.0)
    for term in terms:
        seen.means |= term.means
        seen.maxima |= term.maxima
    if batch.replay is not None:
        _record_replay(seen, output.routing, batch.segments.flatten() >= 0)
    return seen, next((term.logprobs for term in terms if term.logprobs is not None), None)


def _one(
    model: Decoder, objectives: Sequence[Objective], batch: TrainBatch, totals: Sequence[float], dtype: torch.dtype
) -> Update:
    params = list(trained(model).values())
    with torch.autocast(batch.tokens.device.type, dtype=dtype, enabled=dtype != torch.float32):
        output = model(batch.tokens, batch.positions, segments=batch.segments, replay=batch.replay)
        terms = [objective.term(model, batch, output) for objective in objectives]
    loss = sum(
        (o.coefficient * t.sum / total for o, t, total in zip(objectives, terms, totals)),
        torch.zeros((), device=batch.tokens.device),
    )
    grads = torch.autograd.grad(loss, params, allow_unused=True)
    valid = batch.segments.flatten() >= 0
    update = Update(
        [torch.zeros_like(p) if g is None else g for p, g in zip(params, grads, strict=True)], float(loss.detach())
    )
    routed: list[tuple[Routing, Tensor]] = [(routing, valid) for routing in output.routing]
    for objective, term in zip(objectives, terms):
        weight = objective.weight(batch)
        update.means[f"loss/{objective.kind}"] = (float(term.sum.detach()), weight)
        update.means |= term.means
        update.maxima |= term.maxima
        routed += zip(term.routing, term.valid, strict=True)
    if batch.replay is not None:
        _record_replay(update, output.routing, valid)
    update.counts = [count(routing, ok, routing.scores.shape[-1]) for routing, ok in routed]
    return update


def _record_replay(update: Update, routing: Sequence[Routing], valid: Tensor) -> None:
    """How many expert choices differ from what the trainer's own router would choose, and by how much at most."""
    flips, tokens, gap = 0.0, 0.0, 0.0
    for one in routing:
        differs = (one.own.sort(-1).values != one.indices.sort(-1).values).any(-1) & valid
        flips, tokens = flips + float(differs.sum()), tokens + float(valid.sum())
        gap = max(gap, float(one.gap[valid].max()))
    update.means["routing_flips"] = (flips, tokens)
    update.maxima["routing_gap"] = gap
