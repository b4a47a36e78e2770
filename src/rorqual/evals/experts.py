"""Which expert serves which family: counted, measured in bits against shuffled labels, and tested by taking experts away."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rorqual.core.errors import ConfigError
from rorqual.data.pack import PADDING, Ints, Sample, pack
from rorqual.engine.request import Generator, Request, SamplingParams
from rorqual.evals.run import pick
from rorqual.evals.stats import Floats
from rorqual.model.decoder import Decoder
from rorqual.tasks.base import Task


def expert_use(
    generator: Generator, task: Task, n_experts: int, *, count: int, seed: int, params: SamplingParams
) -> dict[str, Any]:
    """Greedy answers to `count` development problems of each family and level; over every position fed:

    share [layer][family][expert], the part of a family's choices that went to each expert; load [layer][expert] over all.
    """
    problems = pick(task, "dev", count, seed, True)
    answers = generator.generate([Request(p.messages, params) for p in problems])
    families = list(dict.fromkeys(p.family for p in problems))
    chosen: dict[str, list[Any]] = {family: [] for family in families}
    for problem, group in zip(problems, answers, strict=True):
        chosen[problem.family] += [c.experts for c in group if c.experts is not None]
    if not any(chosen.values()):
        return {"layers": [], "families": families, "share": [], "load": []}
    counts = np.stack([_count(chosen[family], n_experts) for family in families], axis=1)  # [layer, family, expert]
    load = counts.sum(1)
    return {
        "layers": list(range(counts.shape[0])),
        "families": families,
        "share": (counts / counts.sum(-1, keepdims=True)).tolist(),
        "load": (load / load.sum(-1, keepdims=True)).tolist(),
    }


def _count(experts: Sequence[Any], n_experts: int) -> Any:
    layers = experts[0].shape[1]
    flat = np.concatenate([np.asarray(e).reshape(e.shape[0], layers, -1) for e in experts])  # [positions, layers, k]
    return np.stack(
        [np.bincount(one[one >= 0], minlength=n_experts) for one in (flat[:, layer].ravel() for layer in range(layers))]
    )


# ---- choices of a model that reads given documents


@dataclass(frozen=True)
class Choices:
    """A row for each token that was read: its document [n], its id [n], the id before it [n] (-1 at a document's start), and the
    experts that served it [n, moe layers, k]."""

    document: Ints
    token: Ints
    before: Ints
    experts: Ints


@torch.no_grad()
def choices(model: Decoder, samples: Sequence[Sample], row: int, *, rows: int = 32) -> Choices:
    """What the router chooses where `model` reads `samples`, packed into rows of `row` tokens; padding is left out."""
    packed = pack(samples, row)
    batch = packed.batch
    number = np.full(batch.tokens.shape, PADDING)
    for document, (at, start, length) in enumerate(packed.places):
        number[at, start : start + length] = document
    before = np.where(batch.positions > 0, np.roll(batch.tokens, 1, axis=1), -1)
    found = []
    for start in range(0, batch.n_rows, rows):
        part = batch.rows(start, min(start + rows, batch.n_rows))
        tokens, positions, segments = (torch.from_numpy(x) for x in (part.tokens, part.positions, part.segments))
        routing = model(tokens, positions, segments=segments).routing
        found.append(torch.stack([one.indices for one in routing], dim=1).numpy())  # [tokens, layers, k]
    read = number.ravel() != PADDING
    experts = np.concatenate(found)[read]
    return Choices(number.ravel()[read], batch.tokens.ravel()[read], before.ravel()[read], experts)


def counts(experts: Ints, group: Ints, n_experts: int, n_groups: int) -> Floats:
    """experts [n, k] (below 0: none), group [n] -> how often each group met each expert [groups, experts]."""
    flat = (group[:, None] * n_experts + experts)[experts >= 0]
    return np.bincount(flat, minlength=n_groups * n_experts).reshape(n_groups, n_experts).astype(float)


# ---- how much an expert says of a family


def information(table: NDArray[Any]) -> Floats:
    """Mutual information in bits of counts [..., a, b], as they are (plug-in): 0 where rows have one distribution."""
    table = np.asarray(table, float)
    total = np.maximum(table.sum((-2, -1), keepdims=True), 1e-300)
    joint = table / total
    apart = joint.sum(-1, keepdims=True) * joint.sum(-2, keepdims=True)
    ratio = np.divide(joint, apart, out=np.ones_like(joint), where=joint > 0)
    return np.asarray((joint * np.log2(ratio)).sum((-2, -1)))


@dataclass(frozen=True)
class Dependence:
    """`bits`, and the same for labels shuffled: a plug-in estimate is above 0 by chance alone."""

    bits: float
    shuffled: Floats

    @property
    def p_value(self) -> float:
        """Probability of as many bits from shuffled labels, the true ones counted among them."""
        return float((1 + (self.shuffled >= self.bits).sum()) / (1 + len(self.shuffled)))


def dependence(
    experts: Ints, document: Ints, label: Ints, within: Ints, *, n_experts: int, shuffles: int, seed: int
) -> Dependence:
    """Bits that the expert says of a document's label, given `within`: sum over its values w of p(w) I(expert; label | w).

    experts [n, k], document [n], within [n]; label [documents]. Labels are shuffled among documents and not among tokens, for the
    tokens of a document choose alike; and for each value of `within` among those documents that have it, so that how labels and
    values go together stays as it is.
    """
    rng = np.random.default_rng(seed)
    n_labels = int(label.max()) + 1
    bits, shuffled = 0.0, np.zeros(shuffles)
    order = np.argsort(within, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(within[order])) + 1):
        here, position = np.unique(document[rows], return_inverse=True)
        each = counts(experts[rows], position, n_experts, len(here))  # [documents here, experts]
        labels = label[here]
        weight = len(rows) / len(order)
        bits += weight * float(information(_by_label(labels[None], each, n_labels))[0])
        drawn = rng.permuted(np.broadcast_to(labels, (shuffles, len(labels))), axis=1)
        shuffled += weight * information(_by_label(drawn, each, n_labels))
    return Dependence(bits, shuffled)


def _by_label(labels: Ints, each: Floats, n_labels: int) -> Floats:
    """labels [shuffles, documents], each [documents, experts] -> [shuffles, labels, experts]."""
    return np.stack([(labels == one).astype(float) @ each for one in range(n_labels)], axis=1)


# ---- a model without some of its experts


def lift(table: NDArray[Any]) -> Floats:
    """Counts [families, experts] -> an expert's share of a family's choices, over its mean share in all families."""
    share = table / table.sum(-1, keepdims=True)
    return np.asarray(share / np.maximum(share.mean(0, keepdims=True), 1e-12))


def without_experts(model: Decoder, gone: Sequence[Sequence[int]]) -> Decoder:
    """A copy of `model` whose routers never choose the experts `gone` [main moe layer]; each token goes to its next best ones.

    Errors: `ConfigError` where a router cannot, or fewer are left than serve a token.
    """
    made = copy.deepcopy(model)
    for layer, (router, experts) in enumerate(zip(made.routers(), gone)):
        try:
            router.exclude(experts)
        except ConfigError as error:
            raise ConfigError(error.what, where=f"experts, layer {layer}", remedy=error.remedy) from None
    return made
