"""Estimate training memory per device, by part: weights, gradients, optimizer state, activations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from rorqual.model.config import ModelConfig, Stage

Recompute = Literal["none", "selective", "full"]
PrecisionName = Literal["fp32", "bf16", "fp8"]


@dataclass(frozen=True)
class Precision:
    """The bytes per parameter of weights, gradients and optimizer state, and the bytes per saved activation.

    A value of the residual stream that is saved for the backward pass takes `residual` bytes.
    """

    weights: int
    gradients: int
    optimizer: int
    activation: int
    residual: int
    source: str


PRECISIONS: dict[PrecisionName, Precision] = {
    "fp32": Precision(4, 4, 8, 4, 4, "weights, gradients and AdamW's moments in fp32, as in Rorqual"),
    "bf16": Precision(2, 4, 12, 2, 2, "bf16 weights; gradients, master weights and moments in fp32, as in Megatron-LM"),
    "fp8": Precision(1, 4, 8, 1, 2, "DeepSeek-V3, section 3.3: fp8 weights and saved inputs; fp32 gradients and master weights, bf16 moments"),
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """A parallel layout: `dp` x `tp` x `pp` devices, with routed experts sharded over `ep` of the `dp` x `tp` devices of a
    pipeline stage.

    Tensor parallelism (`tp`) splits attention, dense networks and embeddings, and also saved activations (sequence
    parallelism). The weights of one expert are not split across devices.

    `zero` is the ZeRO stage (Rajbhandari et al. 2020). ZeRO 1 shards the optimizer state over data-parallel devices, ZeRO 2
    also the gradients, and ZeRO 3 also the weights. ZeRO 3 fetches a temporary copy of one layer's weights at a time. The
    memory estimate leaves out the temporary copy.

    `recompute="selective"` recomputes norms, MLA's up-projections and SwiGLU's product (V3, section 3.2.3).
    `recompute="full"` saves only the input of each layer. `microbatch` is the number of rows per micro-batch. The pipeline
    schedule is 1F1B: stage s of the `pp` pipeline stages (counted from 0) holds the activations of `pp` - s micro-batches.
    """

    dp: int = 1
    tp: int = 1
    pp: int = 1
    ep: int = 1
    zero: int = 1
    recompute: Recompute = "selective"
    microbatch: int = 1

    @property
    def n_devices(self) -> int:
        return self.dp * self.tp * self.pp

    def __str__(self) -> str:
        return (
            f"dp={self.dp} tp={self.tp} pp={self.pp} ep={self.ep} zero={self.zero} "
            f"recompute={self.recompute} microbatch={self.microbatch}"
        )


@dataclass(frozen=True)
class DeviceMemory:
    """Training memory of one device, in bytes. The device holds the pipeline stage `stage` with `layers` layers."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    stage: int = 0
    layers: int = 0

    @property
    def total_bytes(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations

    def named_parts(self) -> tuple[tuple[str, float], ...]:
        """Return (name, size in bytes) of each part of the device's memory."""
        names = ("weights", "gradients", "optimizer", "activations")
        return tuple((name, float(getattr(self, name))) for name in names)


@dataclass(frozen=True)
class LayerSizes:
    """Sizes of one layer: the numbers of parameters, and the numbers of values that are saved per token for the backward
    pass.

    `shared` and `experts` are the numbers of parameters outside and inside routed experts. `residual` is the number of saved
    values of the residual stream. `saved` is the number of all other saved values. `whole` is the number that `saved` would
    be without recomputation.
    """

    shared: int
    experts: int
    residual: int
    saved: int
    whole: int


def layer_sizes(stage: Stage, hidden: int, recompute: Recompute) -> LayerSizes:
    """Return the sizes of one layer of `stage`."""
    routed = sum(ffn.routed_params(hidden) for ffn in stage.ffns)
    saved_values = {
        mode: sum(
            part.saved_activations(hidden, without_recomputation=mode) for part in stage.attention_and_ffn_configs
        )
        for mode in (True, False)
    }
    saved = {"none": saved_values[True], "selective": saved_values[False], "full": 0}[recompute]
    return LayerSizes(
        shared=stage.cost(hidden, 0).params - routed,
        experts=routed,
        residual=stage.block.streams() * hidden if recompute == "full" else stage.block.residual_values(hidden),
        saved=saved,
        whole=saved_values[True],
    )  # fmt: skip


def stage_sizes(layers: int, pp: int) -> list[int]:
    """Return the number of layers of each of the `pp` pipeline stages. The numbers are as equal as possible.

    If `layers` is not divisible by `pp`, the pipeline stages directly after the first take one extra layer each, because the
    first stage holds the most micro-batches.
    """
    base, remainder = divmod(layers, pp)
    return [base + (1 if 1 <= index <= remainder else 0) for index in range(pp)]


def device_memory(model: ModelConfig, layout: Layout, *, context: int, precision: Precision) -> DeviceMemory:
    """Return the memory of the device that needs the most memory, for training on rows of `context` tokens."""
    return max(_stage_memories(model, layout, context, precision), key=lambda memory: memory.total_bytes)


def _stage_memories(model: ModelConfig, layout: Layout, context: int, precision: Precision) -> Iterator[DeviceMemory]:
    by_stage = {id(stage): layer_sizes(stage, model.hidden_size, layout.recompute) for stage in model.stages}
    layers = [by_stage[id(stage)] for stage in model.layers]
    sums = {
        name: [0, *accumulate(getattr(layer, name) for layer in layers)]
        for name in ("shared", "experts", "residual", "saved")
    }
    tokens, begin = layout.microbatch * context, 0
    for place, size in enumerate(stage_sizes(len(layers), layout.pp)):
        part = {name: run[begin + size] - run[begin] for name, run in sums.items()}
        if place == 0:
            part["shared"] += model.vocab_size * model.hidden_size
        activations = (part["residual"] * precision.residual + part["saved"] * precision.activation) * (
            layout.pp - place
        )
        if layout.recompute == "full" and size:  # the backward pass recomputes one whole layer at a time
            activations += max(layer.whole for layer in layers[begin : begin + size]) * precision.activation
        if place == layout.pp - 1:
            activations += _add_last_stage_parameters(
                model, layers[-1], part, alone=layout.pp == 1, precision=precision
            )
        begin += size
        yield _memory_of_shard(
            part["shared"], part["experts"], activations * tokens / layout.tp, layout, precision, place, size
        )


def _add_last_stage_parameters(
    model: ModelConfig, last: LayerSizes, part: dict[str, int], *, alone: bool, precision: Precision
) -> int:
    """Add the last pipeline stage's extra parameters to `part`: norm, head, MTP modules.

    Returns the additional activation bytes per token of the last stage: saved values of the MTP modules, and, for the main
    model and each MTP module, the logits and their gradients in fp32.
    """
    n_mtp, hidden = model.num_nextn_predict_layers, model.hidden_size
    ends = model.last_block_config.boundary_cost(hidden).params
    own_head = 0 if model.tie_word_embeddings and alone else model.vocab_size * hidden
    part["shared"] += own_head + hidden + ends + n_mtp * (last.shared + 2 * hidden * hidden + 3 * hidden + ends)
    part["experts"] += n_mtp * last.experts
    block = (last.residual * precision.residual + last.saved * precision.activation) * n_mtp
    return block + 8 * model.vocab_size * (1 + n_mtp)


def _memory_of_shard(
    shared: int, experts: int, activations: float, layout: Layout, precision: Precision, place: int, layers: int
) -> DeviceMemory:
    """Return the memory of a device that holds a shard of the pipeline stage `place`.

    Tensor or expert parallelism divides the parameters over devices. ZeRO then shards weights, gradients and optimizer
    state over the devices that would hold copies of the same parameters.
    """
    groups = ((shared / layout.tp, layout.dp), (experts / layout.ep, layout.dp * layout.tp / layout.ep))
    weights, gradients, optimizer = (
        sum(count / (copies if layout.zero >= level else 1) for count, copies in groups) * size
        for level, size in ((3, precision.weights), (2, precision.gradients), (1, precision.optimizer))
    )
    return DeviceMemory(weights, gradients, optimizer, activations, place, layers)
