"""Expert specialisation by family: counts, mutual information compared with shuffled labels, and ablation of experts."""

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
from rorqual.evals.evaluating import pick
from rorqual.evals.stats import Floats
from rorqual.model.decoder import Decoder
from rorqual.tasks.task import Task


def expert_use(
    generator: Generator, task: Task, n_experts: int, *, count: int, seed: int, params: SamplingParams
) -> dict[str, Any]:
    """Count how often each expert processes the greedy answers to `count` dev problems of each family and level.

    The counts cover every position of prompt and answer that the model processed. `share` [layer][family][expert] is
    the fraction of a family's router choices that go to the expert. `load` [layer][expert] is the fraction of all
    families' router choices that go to the expert.
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
        [
            np.bincount(chosen[chosen >= 0], minlength=n_experts)
            for chosen in (flat[:, layer].ravel() for layer in range(layers))
        ]
    )


# ---- router choices on given documents


@dataclass(frozen=True)
class Choices:
    """The router's choices, one row for each of n tokens.

    `document` [n] is the index of the token's document, and `token` [n] is the token id. `before` [n] is the previous token
    id, or -1 at the start of a document. `experts` [n, MoE layers, k] are the experts that process the token.
    """

    document: Ints
    token: Ints
    before: Ints
    experts: Ints


@torch.no_grad()
def choices(model: Decoder, samples: Sequence[Sample], row: int, *, rows: int = 32) -> Choices:
    """Return the router's choices while `model` reads `samples`, packed into rows of `row` tokens. Padding is excluded."""
    packed = pack(samples, row)
    batch = packed.batch
    number = np.full(batch.tokens.shape, PADDING)
    for document, (at, start, length) in enumerate(packed.places):
        number[at, start : start + length] = document
    before = np.where(batch.positions > 0, np.roll(batch.tokens, 1, axis=1), -1)
    chosen = []
    for start in range(0, batch.n_rows, rows):
        part = batch.rows(start, min(start + rows, batch.n_rows))
        tokens, positions, segments = (torch.from_numpy(x) for x in (part.tokens, part.positions, part.segments))
        routing = model(tokens, positions, segments=segments).routing
        chosen.append(torch.stack([layer.indices for layer in routing], dim=1).numpy())  # [tokens, layers, k]
    read = number.ravel() != PADDING
    experts = np.concatenate(chosen)[read]
    return Choices(number.ravel()[read], batch.tokens.ravel()[read], before.ravel()[read], experts)


def counts(experts: Ints, group: Ints, n_experts: int, n_groups: int) -> Floats:
    """Count how often the tokens of each group use each expert: experts [n, k], group [n] -> [groups, experts].

    A negative entry of `experts` means no expert.
    """
    flat = (group[:, None] * n_experts + experts)[experts >= 0]
    return np.bincount(flat, minlength=n_groups * n_experts).reshape(n_groups, n_experts).astype(float)


# ---- mutual information of expert and family


def information(table: NDArray[Any]) -> Floats:
    """Return the plug-in estimate of mutual information, in bits, from a table of counts [..., a, b].

    The estimate is 0 if all rows have the same distribution.
    """
    table = np.asarray(table, float)
    total = np.maximum(table.sum((-2, -1), keepdims=True), 1e-300)
    joint = table / total
    apart = joint.sum(-1, keepdims=True) * joint.sum(-2, keepdims=True)
    ratio = np.divide(joint, apart, out=np.ones_like(joint), where=joint > 0)
    return np.asarray((joint * np.log2(ratio)).sum((-2, -1)))


@dataclass(frozen=True)
class Dependence:
    """Mutual information (`bits`), with the values for shuffled labels (`shuffled`). The plug-in estimate is usually
    above 0 even if expert and label are independent."""

    bits: float
    shuffled: Floats

    @property
    def p_value(self) -> float:
        """The probability that shuffled labels give at least `bits`. The true labels count as one shuffle."""
        return float((1 + (self.shuffled >= self.bits).sum()) / (1 + len(self.shuffled)))


def dependence(
    experts: Ints, document: Ints, label: Ints, within: Ints, *, n_experts: int, shuffles: int, seed: int
) -> Dependence:
    """Return the mutual information of expert and document label given `within`: the sum of
    p(w) I(expert; label | w) over the values w of `within`.

    experts [n, k], document [n], within [n]; label [documents]. Labels are shuffled among documents, not among tokens,
    because the tokens of one document tend to choose the same experts. For each w, labels are shuffled only among the
    documents with a token whose `within` is w. This preserves the joint distribution of labels and w.
    """
    rng = np.random.default_rng(seed)
    n_labels = int(label.max()) + 1
    bits, shuffled = 0.0, np.zeros(shuffles)
    order = np.argsort(within, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(within[order])) + 1):
        documents, position = np.unique(document[rows], return_inverse=True)
        each = counts(experts[rows], position, n_experts, len(documents))  # [documents that contain the value, experts]
        labels = label[documents]
        weight = len(rows) / len(order)
        bits += weight * float(information(_by_label(labels[None], each, n_labels))[0])
        drawn = rng.permuted(np.broadcast_to(labels, (shuffles, len(labels))), axis=1)
        shuffled += weight * information(_by_label(drawn, each, n_labels))
    return Dependence(bits, shuffled)


def _by_label(labels: Ints, each: Floats, n_labels: int) -> Floats:
    """Sum the expert counts by label.

    Shapes: `labels` [shuffles, documents], `each` [documents, experts], and the result [shuffles, labels, experts].
    """
    return np.stack([(labels == value).astype(float) @ each for value in range(n_labels)], axis=1)


# ---- ablation


def lift(table: NDArray[Any]) -> Floats:
    """Return each expert's share of a family's tokens, divided by the expert's mean share over all families.

    table [families, experts] holds token counts.
    """
    share = table / table.sum(-1, keepdims=True)
    return np.asarray(share / np.maximum(share.mean(0, keepdims=True), 1e-12))


def without_experts(model: Decoder, gone: Sequence[Sequence[int]]) -> Decoder:
    """Return a copy of `model` whose routers never choose the experts in `gone`.

    `gone` has one list for each MoE layer outside the MTP modules. Each token goes to the best remaining experts.

    Raises ConfigError if a router cannot exclude experts, or if fewer experts remain than a token needs.
    """
    ablated = copy.deepcopy(model)
    for layer, (router, experts) in enumerate(zip(ablated.routers(), gone)):
        try:
            router.exclude(experts)
        except ConfigError as error:
            raise ConfigError(error.what, where=f"experts, layer {layer}", remedy=error.remedy) from None
    return ablated
