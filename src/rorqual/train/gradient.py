"""Compute the gradient of one update, with its micro-batches spread over threads.

torch releases the GIL while an operation runs, so two threads keep two cores busy. Each thread runs its operations on
one core. The gradients of micro-batches are added in a fixed order, so the gradient of an update is bit-identical for any
number of threads.

With one thread, `backward()` accumulates into each parameter's `.grad` and runs the hooks of FSDP2 and DDP. If several threads
accumulated into `.grad`, the order of the sums would vary. Each thread therefore returns the gradient of its micro-batch, and
the caller adds the gradients. Several processes (`dist.ranks`) each compute the gradients of some micro-batches, which are added in
the same order. In a torch.distributed process group of one process, one thread is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rorqual.core.errors import ConfigError, NumericsError
from rorqual.core.memory import keep_freed_memory
from rorqual.dist.digests import tensors_digest
from rorqual.dist.ranks import current_ranks
from rorqual.model.adapter import HasTrainedSlices, trained_parameters
from rorqual.model.decoder import Decoder, DecoderOutput
from rorqual.ops.layer import Layer
from rorqual.ops.moe import Routing
from rorqual.train.balance import count_tokens_per_expert
from rorqual.train.batch import TrainBatch
from rorqual.train.objectives import LossTerm, Objective


@dataclass
class UpdateResult:
    """The gradient, loss and metrics of one update.

    `grads` are the `.grad` tensors of the trained parameters. `means` maps metric names to (sum, weight). `counts`
    holds the load per expert of each router. `zeros` is the number of parameters whose module ran and whose gradient has only
    zeros.
    """

    grads: list[Tensor]
    loss: float
    means: dict[str, tuple[float, float]] = field(default_factory=dict)
    maxima: dict[str, float] = field(default_factory=dict)
    counts: list[Tensor] = field(default_factory=list)
    zeros: int = 0

    def add(self, other: UpdateResult) -> None:
        """Add the loss and the metrics of another micro-batch or update in place. The function `gradient` adds the
        gradients."""
        self.loss += other.loss
        self.zeros = max(self.zeros, other.zeros)
        for name, (total, weight) in other.means.items():
            previous = self.means.get(name, (0.0, 0.0))
            self.means[name] = (previous[0] + total, previous[1] + weight)
        for name, value in other.maxima.items():
            self.maxima[name] = max(value, self.maxima.get(name, -math.inf))
        if self.counts:
            self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        else:
            self.counts = other.counts


class TorchThreadPool(ThreadPoolExecutor):
    """A pool of `threads` threads, each of which runs torch operations on one core."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads, initializer=torch.set_num_threads, initargs=(1,))
        self.threads = threads


@contextmanager
def open_workers(threads: int) -> Iterator[TorchThreadPool]:
    """Open a thread pool. Inside the block, each pool thread and the calling thread run torch operations on one core."""
    keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with TorchThreadPool(threads) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def gradient(
    model: Decoder,
    objectives: Sequence[Objective],
    batch: TrainBatch,
    *,
    parts: int,
    pool: TorchThreadPool,
    dtype: torch.dtype = torch.float32,
    where: str = "",
) -> UpdateResult:
    """Compute the gradient of the loss on `batch` with respect to the trained parameters, in `parts` micro-batches.

    Raises NumericsError if the loss is not finite, if no trained parameter has a gradient, or if a parameter has no
    gradient although its module ran. In a process group of several processes, every process must pass the same model and batch;
    ConfigError is raised if the parameters are sharded.
    """
    ranks = current_ranks()
    model = model.ops.route_linears(model)
    totals = [max(objective.weight(batch), 1e-20) for objective in objectives]
    micro = split_for(objectives, batch, parts)
    params = trained_parameters(model)
    # hasattr, because the import of DTensor takes two seconds
    if ranks.count > 1 and any(hasattr(parameter, "full_tensor") for parameter in params.values()):
        raise ConfigError(
            f"{ranks.count} processes train a model with sharded parameters",
            where="torch.distributed",
            remedy="Leave the parameters whole: each process adds its share of the gradients.",
        )
    for parameter in params.values():
        parameter.grad = None
    modules = dict(model.named_modules())
    with training_mode(model), modules_that_run(modules.values()) as ran:
        if ranks.count == 1 and (pool.threads == 1 or (dist.is_available() and dist.is_initialized())):
            # Use a pool thread here too, because a pool thread does not inherit the caller's grad mode.
            results = (pool.submit(_gradient, model, objectives, part, totals, dtype, None).result() for part in micro)
            updates = [update for update, _ in results]
        else:
            leaves = list(params.values())
            tasks = [
                pool.submit(_gradient, model, objectives, part, totals, dtype, leaves) for part in ranks.share(micro)
            ]
            done = [task.result() for task in tasks]
            updates = [update for update, _ in done]
            present = [[grad is not None for grad in grads] for _, grads in done]
            if ranks.count > 1:
                of_ranks = ranks.gather(
                    [(digest_of(batch), updates, present, [n for n, m in modules.items() if m in ran])]
                )
                ranks.check_same("the batch", [digest for digest, *_ in of_ranks])
                updates = [update for _, part, _, _ in of_ranks for update in part]
                present = [flags for _, _, part, _ in of_ranks for flags in part]
                ran |= {modules[name] for *_, names in of_ranks for name in names}
            sums = ranks.add_in_order([grads for _, grads in done], present, leaves)
            for parameter, grad in zip(leaves, sums, strict=True):
                parameter.grad = grad
    first, *others = updates
    for other in others:
        first.add(other)
    if not math.isfinite(first.loss):
        raise NumericsError(
            f"the loss is {first.loss}",
            where=where,
            remedy="Lower optim.lr or optim.clip, and give another out=. The newest checkpoint, if there is one, has finite weights: "
            "from=RUN continues from it.",
        )
    if not any(objective.reads_hidden for objective in objectives):
        ran.clear()
    first.grads, first.zeros = checked_gradients(modules, params, ran, where)
    return first


def digest_of(batch: TrainBatch) -> str:
    """Return a digest of what the ranks' batches must have in common."""
    return tensors_digest((batch.tokens, batch.targets, batch.loss_mask))


def split_for(objectives: Sequence[Objective], batch: TrainBatch, parts: int) -> list[TrainBatch]:
    """Split `batch` into at most `parts` micro-batches that keep the rows together which the objectives need together."""
    return batch.split(parts, math.lcm(*(objective.rows_together for objective in objectives)))


@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """Put `model` into training mode inside the `with` block, and into evaluation mode after the block."""
    model.train()
    try:
        yield
    finally:
        model.eval()


@contextmanager
def modules_that_run(modules: Iterable[nn.Module]) -> Iterator[set[nn.Module]]:
    """Collect the modules in `modules` that run inside the `with` block, in any thread.

    A module runs if its `forward` is called, or if the `forward` of a `Layer` reads its weights through
    `Layer.derived`.
    """
    ran = set[nn.Module]()
    hooks = [module.register_forward_pre_hook(lambda module, _: ran.add(module)) for module in modules]
    try:
        yield ran
    finally:
        for hook in hooks:
            hook.remove()
    for layer in [module for module in ran if isinstance(module, Layer)]:
        sources = [
            getattr(layer, source, None) for source in layer.derived.values()
        ]  # a copy with repacked weights has None instead of the submodule
        ran |= {source for source in sources if isinstance(source, nn.Module)}


def checked_gradients(
    modules: Mapping[str, nn.Module], params: Mapping[str, nn.Parameter], ran: set[nn.Module], where: str = ""
) -> tuple[list[Tensor], int]:
    """Return the gradient of each parameter of `modules`, and the number of computed gradients that are all zeros.

    A missing gradient is an error if the parameter's module is in `ran`. If the module is not in `ran`, the missing
    gradient is replaced by zeros, which are not counted. For parameters of `HasTrainedSlices` modules, a missing gradient is
    never an error, because the router decides which experts run.
    """
    grads, computed, missing = list[Tensor](), list[Tensor](), list[str]()
    for name, parameter in params.items():
        owner = name
        while owner not in modules:
            owner = owner.rpartition(".")[0]
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
            if modules[owner] in ran and not isinstance(modules[owner], HasTrainedSlices):
                missing.append(name)
        else:
            computed.append(parameter.grad)
        grads.append(parameter.grad)
    if missing or not computed:
        shown = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        raise NumericsError(
            f"no gradient reaches {shown}, although their modules ran"
            if computed
            else "no trained parameter has a gradient",
            where=where,
            remedy="Look for detach(), no_grad() or a copy of the weights between the parameter and the loss.",
        )
    return grads, len(computed) - int(torch.stack([grad.any() for grad in computed]).sum())


def compare_with_sampler(
    model: Decoder,
    objectives: Sequence[Objective],
    batches: Sequence[TrainBatch],
    *,
    parts: int,
    pool: TorchThreadPool,
    dtype: torch.dtype = torch.float32,
) -> tuple[UpdateResult, list[Tensor | None]]:
    """Compare trainer and sampler on new samples, before any update and without gradients. Return the metrics of the
    comparison.

    If an objective sets `needs_old_logprobs`, also return the trainer's log-probabilities of the targets [rows, seq] for each
    batch. If no objective sets `needs_old_logprobs`, return None for each batch.
    """
    model, ranks = model.ops.route_linears(model), current_ranks()
    micro = [split_for(objectives, batch, parts) for batch in batches]
    every = [part for of_batch in micro for part in of_batch]
    jobs = [pool.submit(_compare_batch, model, objectives, part, dtype) for part in ranks.share(every)]
    compared = iter(ranks.gather([job.result() for job in jobs]))
    total, old = UpdateResult([], 0.0), list[Tensor | None]()
    for of_batch in micro:
        results = [next(compared) for _ in of_batch]
        for update, _ in results:
            total.add(update)
        logprobs = [part for _, part in results if part is not None]
        old.append(torch.cat(logprobs) if logprobs else None)
    return total, old


@torch.no_grad()  # grad mode is per thread; pool threads do not inherit it
def _compare_batch(
    model: Decoder, objectives: Sequence[Objective], batch: TrainBatch, dtype: torch.dtype
) -> tuple[UpdateResult, Tensor | None]:
    output, terms = _forward(model, objectives, batch, dtype)
    compared = UpdateResult([], 0.0)
    for term in terms:
        compared.means |= term.means
        compared.maxima |= term.maxima
    if batch.replay is not None:
        fresh = batch.segments >= 0 if batch.ages is None else (batch.segments >= 0) & (batch.ages == 0)
        _record_replay_metrics(compared, output.routing, fresh.flatten())
    return compared, next((term.logprobs for term in terms if term.logprobs is not None), None)


def _gradient(
    model: Decoder,
    objectives: Sequence[Objective],
    batch: TrainBatch,
    totals: Sequence[float],
    dtype: torch.dtype,
    leaves: Sequence[nn.Parameter] | None,
) -> tuple[UpdateResult, Sequence[Tensor | None]]:
    """Return the metrics of a micro-batch and the gradients with respect to `leaves`.

    Without `leaves`, add the gradients to the `.grad` of the trained parameters.
    """
    output, terms = _forward(model, objectives, batch, dtype)
    loss = sum(
        (o.coefficient * t.sum / total for o, t, total in zip(objectives, terms, totals)),
        torch.zeros((), device=batch.tokens.device),
    )
    grads: Sequence[Tensor | None] = [None] * len(leaves or ())
    if loss.requires_grad and leaves is not None:
        grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    elif loss.requires_grad:  # otherwise no parameter gets a gradient; `checked_gradients` reports this
        loss.backward()
    valid = batch.segments.flatten() >= 0
    update = UpdateResult([], float(loss.detach()))
    routed: list[tuple[Routing, Tensor]] = [(routing, valid) for routing in output.routing]
    for objective, term in zip(objectives, terms):
        weight = objective.weight(batch)
        update.means[f"loss/{objective.kind}"] = (float(term.sum.detach()), weight)
        update.means |= term.means
        update.maxima |= term.maxima
        routed += zip(term.routing, term.valid, strict=True)
    if batch.replay is not None:
        _record_replay_metrics(update, output.routing, valid)
    update.counts = [count_tokens_per_expert(routing, ok, routing.scores.shape[-1]) for routing, ok in routed]
    return update, grads


def _forward(
    model: Decoder, objectives: Sequence[Objective], batch: TrainBatch, dtype: torch.dtype
) -> tuple[DecoderOutput, list[LossTerm]]:
    """Run the model with matrix products in `dtype`. Return the model's output and the loss term of each objective."""
    record = frozenset[str]().union(*(objective.recorded_tensors() for objective in objectives))
    # Threads share autocast's cache of weights, so with the cache the gradient of a weight that is used twice depends on their timing.
    with torch.autocast(batch.tokens.device.type, dtype=dtype, enabled=dtype != torch.float32, cache_enabled=False):
        output = model(batch.tokens, batch.positions, segments=batch.segments, replay=batch.replay, record=record)
        return output, [objective.term(model, batch, output) for objective in objectives]


def _record_replay_metrics(update: UpdateResult, routing: Sequence[Routing], valid: Tensor) -> None:
    """Record the largest gap of router scores, and the number of tokens whose replayed experts differ from the trainer's own
    choice."""
    flips, tokens, gap = compare_replayed_experts(routing, valid).tolist()
    if tokens:  # `tokens` is 0 if older weights sampled the whole batch
        update.means["routing_flips"] = (flips, tokens)
        update.maxima["routing_gap"] = gap


def compare_replayed_experts(routing: Sequence[Routing], valid: Tensor) -> Tensor:
    """Compare replayed experts with the routers' own choices. `valid` [tokens] is False for padding.

    Return three fp64 numbers over all routers: the number of tokens with different experts, the number of compared tokens, and
    the largest score gap.
    """
    flips, gap = (torch.zeros((), dtype=torch.float64, device=valid.device) for _ in range(2))
    for one in routing:
        flips = flips + ((one.own.sort(-1).values != one.indices.sort(-1).values).any(-1) & valid).sum()
        gap = torch.maximum(gap, one.gap.masked_fill(~valid, 0).max().double())
    return torch.stack((flips, len(routing) * valid.sum().double(), gap))
