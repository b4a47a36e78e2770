"""Expert specialisation by family: counts of choices, mutual information compared with shuffled labels, and ablation of experts."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rorqual.data.pack import Ints
from rorqual.evals.stats import Floats
from rorqual.model.decoder import Decoder


def count_expert_use(experts: Ints, group: Ints, n_experts: int, n_groups: int) -> Floats:
    """Count how often the tokens of each group use each expert: experts [n, k], group [n] -> [groups, experts].

    A negative entry of `experts` means no expert.
    """
    flat = (group[:, None] * n_experts + experts)[experts >= 0]
    return np.bincount(flat, minlength=n_groups * n_experts).reshape(n_groups, n_experts).astype(float)


# ---- mutual information of expert and family


def mutual_information(table: NDArray[Any]) -> Floats:
    """Return the plug-in estimate of mutual information, in bits, from a table of counts [..., a, b].

    The estimate is 0 if all rows of the table have the same distribution.
    """
    table = np.asarray(table, float)
    total = np.maximum(table.sum((-2, -1), keepdims=True), 1e-300)
    joint = table / total
    apart = joint.sum(-1, keepdims=True) * joint.sum(-2, keepdims=True)
    ratio = np.divide(joint, apart, out=np.ones_like(joint), where=joint > 0)
    return np.asarray((joint * np.log2(ratio)).sum((-2, -1)))


def expert_label_information(
    experts: Ints, document: Ints, label: Ints, within: Ints, *, n_experts: int, shuffles: int, seed: int
) -> tuple[float, float]:
    """Return the mutual information of expert and document label given `within`, and the mean of this mutual information with
    shuffled labels, in bits.

    The mutual information is the sum of p(w) I(expert; label | w) over the values w of `within`. The plug-in estimate is
    usually above 0 even if expert and label are independent.

    Shapes: `experts` [n, k], `document` [n], `within` [n] and `label` [documents]. Labels are shuffled among documents, not
    among tokens, because the tokens of one document tend to choose the same experts. For each w, labels are shuffled only among
    the documents with a token whose `within` is w. This restriction preserves the joint distribution of labels and `within`.
    """
    rng = np.random.default_rng(seed)
    n_labels = int(label.max()) + 1
    bits, shuffled = 0.0, np.zeros(shuffles)
    order = np.argsort(within, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(within[order])) + 1):
        documents, position = np.unique(document[rows], return_inverse=True)
        each = count_expert_use(
            experts[rows], position, n_experts, len(documents)
        )  # [documents that contain the value, experts]
        labels = label[documents]
        weight = len(rows) / len(order)
        bits += weight * float(mutual_information(_sum_by_label(labels[None], each, n_labels))[0])
        drawn = rng.permuted(np.broadcast_to(labels, (shuffles, len(labels))), axis=1)
        shuffled += weight * mutual_information(_sum_by_label(drawn, each, n_labels))
    return bits, float(shuffled.mean())


def _sum_by_label(labels: Ints, each: Floats, n_labels: int) -> Floats:
    """Sum the expert counts by label.

    Shapes: `labels` [shuffles, documents], `each` [documents, experts], and the returned sums [shuffles, labels, experts].
    """
    return np.stack([(labels == value).astype(float) @ each for value in range(n_labels)], axis=1)


# ---- ablation


def lift(table: NDArray[Any]) -> Floats:
    """Return each expert's share of a family's tokens, divided by the expert's mean share over all families.

    `table` [families, experts] holds token counts.
    """
    share = table / table.sum(-1, keepdims=True)
    return np.asarray(share / np.maximum(share.mean(0, keepdims=True), 1e-12))


def without_experts(model: Decoder, gone: Sequence[Sequence[int]]) -> Decoder:
    """Return a copy of `model` whose routers never choose the experts in `gone`.

    `gone` has one list of expert indices for each MoE layer outside the MTP modules. Each token goes to the highest-scoring
    experts that are not in `gone`.

    Raises ConfigError if a router cannot exclude experts, or if fewer experts remain than a token needs.
    """
    ablated = copy.deepcopy(model)
    for router, experts in zip(ablated.routing_ffns(), gone, strict=False):
        router.exclude_experts(experts)
    return ablated
