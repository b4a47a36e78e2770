"""Compute the gradient of one update, with its micro-batches spread over threads.

torch releases the GIL while an operation runs, so two threads keep two cores busy. Each thread runs its operations on one
core. Micro-batches are summed in order, so the number of threads does not change a bit.

A single thread calls `backward()`, which adds to each parameter's `.grad`; the hooks of FSDP2 and DDP run only there. Several
threads would add in varying order, so each keeps its micro-batch's gradient apart. With a torch.distributed process group one
thread is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rorqual.core.errors import NumericsError
from rorqual.core.memory import keep_freed
from rorqual.model.adapter import HoldsParts, trained
from rorqual.model.decoder import Decoder, Output
from rorqual.ops.layer import Layer
from rorqual.ops.moe import Routing
from rorqual.train.balance import count
from rorqual.train.batch import TrainBatch
from rorqual.train.objectives import Objective


@dataclass
class Update:
    """One update's gradient, loss and metrics. `means` hold (sum, weight), `counts` the load of each router's experts.

    `grads` are the `.grad` tensors of the trained parameters. `zeros` counts the participating parameters whose gradient is
    all zeros.
    """

    grads: list[Tensor]
    loss: float
    means: dict[str, tuple[float, float]] = field(default_factory=dict)
    maxima: dict[str, float] = field(default_factory=dict)
    counts: list[Tensor] = field(default_factory=list)
    zeros: int = 0

    def add(self, other: Update) -> None:
        """Add the metrics of the next micro-batch in place. Gradients are added in `gradient`."""
        self.loss += other.loss
        for name, (total, weight) in other.means.items():
            had = self.means.get(name, (0.0, 0.0))
            self.means[name] = (had[0] + total, had[1] + weight)
        for name, value in other.maxima.items():
            self.maxima[name] = max(value, self.maxima.get(name, -math.inf))
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]


class Workers(ThreadPoolExecutor):
    """A pool of `threads` threads, each of which runs torch operations on one core."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads, initializer=torch.set_num_threads, initargs=(1,))
        self.threads = threads


@contextmanager
def workers(threads: int) -> Iterator[Workers]:
    """Open a thread pool. Its threads, and the caller meanwhile, each run torch operations on one core."""
    keep_freed()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with Workers(threads) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def gradient(
    model: Decoder,
    objectives: Sequence[Objective],
    batch: TrainBatch,
    *,
    parts: int,
    pool: Workers,
    dtype: torch.dtype = torch.float32,
    where: str = "",
) -> Update:
    """Compute the gradient of the objectives' means over the whole `batch`, in `parts` micro-batches, for `trained(model)`.

    Raises NumericsError if the loss is not finite, if no trained parameter has a gradient, or if one lacks a gradient although
    its module ran.
    """
    model = model.ops.route(model)
    totals = [max(objective.weight(batch), 1e-20) for objective in objectives]
    micro = batch.split(parts)
    params = trained(model)
    for parameter in params.values():
        parameter.grad = None
    with modules_that_run(model) as ran:
        if pool.threads == 1 or (dist.is_available() and dist.is_initialized()):
            # Run in a pool thread too: it does not inherit a grad mode that the caller may have set.
            turns = (pool.submit(_one, model, objectives, part, totals, dtype, None).result() for part in micro)
            first, *rest = [update for update, _ in turns]
        else:
            leaves = list(params.values())
            tasks = [pool.submit(_one, model, objectives, part, totals, dtype, leaves) for part in micro]
            for _, grads in (done := [task.result() for task in tasks]):
                for parameter, found in zip(leaves, grads, strict=True):
                    if found is not None:
                        parameter.grad = found if parameter.grad is None else parameter.grad.add_(found)
            first, *rest = [update for update, _ in done]
    for other in rest:
        first.add(other)
    if not math.isfinite(first.loss):
        raise NumericsError(
            f"the loss is {first.loss}",
            where=where,
            remedy="Lower optim.lr or optim.clip. The newest checkpoint, if there is one, has the weights from before.",
        )
    if not any(objective.reads_hidden for objective in objectives):
        ran.clear()
    first.grads, first.zeros = checked(model, params, ran, where)
    return first


@contextmanager
def modules_that_run(model: nn.Module) -> Iterator[set[nn.Module]]:
    """Collect the modules of `model` that take part inside the block, in any thread.

    A module takes part if its `forward` is called, or if a `Layer` whose `forward` is called reads its weights (`Layer.derived`).
    """
    ran = set[nn.Module]()
    hooks = [module.register_forward_pre_hook(lambda module, _: ran.add(module)) for module in model.modules()]
    try:
        yield ran
    finally:
        for hook in hooks:
            hook.remove()
    for layer in [module for module in ran if isinstance(module, Layer)]:
        sources = [getattr(layer, source, None) for source in layer.derived.values()]  # None in a prepared copy
        ran |= {source for source in sources if isinstance(source, nn.Module)}


def checked(
    model: nn.Module, params: dict[str, nn.Parameter], ran: set[nn.Module], where: str = ""
) -> tuple[list[Tensor], int]:
    """Return the gradient of each parameter, and the number of participating parameters whose gradient is all zeros.

    A parameter participates if its module is in `ran`. Any other parameter without a gradient gets zeros and is not counted.
    In `HoldsParts` modules the router decides which experts participate, so any of their parameters may lack a gradient.
    """
    modules = dict(model.named_modules())
    grads, found, missing = list[Tensor](), list[Tensor](), list[str]()
    for name, parameter in params.items():
        owner = name
        while owner not in modules:
            owner = owner.rpartition(".")[0]
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
            if modules[owner] in ran and not isinstance(modules[owner], HoldsParts):
                missing.append(name)
        else:
            found.append(parameter.grad)
        grads.append(parameter.grad)
    if missing or not found:
        shown = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        raise NumericsError(
            f"no gradient reaches {shown}, although their modules ran"
            if found
            else "no trained parameter has a gradient",
            where=where,
            remedy="Look for detach(), no_grad() or a copy of the weights between the parameter and the loss.",
        )
    return grads, len(found) - int(torch.stack([grad.any() for grad in found]).sum())


def compare(
    model: Decoder,
    objectives: Sequence[Objective],
    batches: Sequence[TrainBatch],
    *,
    parts: int,
    pool: Workers,
    dtype: torch.dtype = torch.float32,
) -> tuple[Update, list[Tensor | None]]:
    """Compare trainer and sampler on fresh samples, before any update and without gradients. Return means and maxima.

    If an objective `wants_old`, also return for each batch the trainer's log-probabilities [rows, seq] of the targets.
    """
    model = model.ops.route(model)
    jobs = [[pool.submit(_look, model, objectives, part, dtype) for part in batch.split(parts)] for batch in batches]
    seen, old = Update([], 0.0), list[Tensor | None]()
    for looks in ([job.result() for job in mine] for mine in jobs):
        for update, _ in looks:
            seen.add(update)
        logprobs = [found for _, found in looks if found is not None]
        old.append(torch.cat(logprobs) if logprobs else None)
    return seen, old


@torch.no_grad()  # grad mode is per thread; pool threads do not inherit it
def _look(
    model: Decoder, objectives: Sequence[Objective], batch: TrainBatch, dtype: torch.dtype
) -> tuple[Update, Tensor | None]:
    with torch.autocast(batch.tokens.device.type, dtype=dtype, enabled=dtype != torch.float32):
        output = _forward(model, objectives, batch)
        terms = [objective.term(model, batch, output) for objective in objectives]
    seen = Update([], 0.0)
    for term in terms:
        seen.means |= term.means
        seen.maxima |= term.maxima
    if batch.replay is not None:
        fresh = batch.segments >= 0 if batch.ages is None else (batch.segments >= 0) & (batch.ages == 0)
        _record_replay(seen, output.routing, fresh.flatten())
    return seen, next((term.logprobs for term in terms if term.logprobs is not None), None)


def _one(
    model: Decoder,
    objectives: Sequence[Objective],
    batch: TrainBatch,
    totals: Sequence[float],
    dtype: torch.dtype,
    leaves: Sequence[nn.Parameter] | None,
) -> tuple[Update, Sequence[Tensor | None]]:
    """Compute one micro-batch: its metrics and the gradients of `leaves`. Without `leaves`, add to every `.grad`."""
    with torch.autocast(batch.tokens.device.type, dtype=dtype, enabled=dtype != torch.float32):
        output = _forward(model, objectives, batch)
        terms = [objective.term(model, batch, output) for objective in objectives]
    loss = sum(
        (o.coefficient * t.sum / total for o, t, total in zip(objectives, terms, totals)),
        torch.zeros((), device=batch.tokens.device),
    )
    grads: Sequence[Tensor | None] = [None] * len(leaves or ())
    if loss.requires_grad and leaves is not None:
        grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    elif loss.requires_grad:  # otherwise nothing is trained, which `checked` reports
        loss.backward()
    valid = batch.segments.flatten() >= 0
    update = Update([], float(loss.detach()))
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
    return update, grads


def _forward(model: Decoder, objectives: Sequence[Objective], batch: TrainBatch) -> Output:
    record = frozenset[str]().union(*(objective.records() for objective in objectives))
    output: Output = model(batch.tokens, batch.positions, segments=batch.segments, replay=batch.replay, record=record)
    return output


def _record_replay(update: Update, routing: Sequence[Routing], valid: Tensor) -> None:
    """Record how many expert choices differ from the trainer's own routing, and by how much at most."""
    flips, tokens, gap = replayed(routing, valid).tolist()
    if tokens:  # otherwise older weights sampled all of it
        update.means["routing_flips"] = (flips, tokens)
        update.maxima["routing_gap"] = gap


def replayed(routing: Sequence[Routing], valid: Tensor) -> Tensor:
    """Return three numbers over all routers in fp64: the choices that differ from the router's own, all choices at `valid`
    [tokens], and the largest gap between the scores of a replayed and an own choice, at least 0.
    """
    flips, gap = (torch.zeros((), dtype=torch.float64, device=valid.device) for _ in range(2))
    for one in routing:
        flips = flips + ((one.own.sort(-1).values != one.indices.sort(-1).values).any(-1) & valid).sum()
        gap = torch.maximum(gap, one.gap.masked_fill(~valid, 0).max().double())
    return torch.stack((flips, len(routing) * valid.sum().double(), gap))
