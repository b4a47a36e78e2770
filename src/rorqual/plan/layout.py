"""Search the parallel layouts whose degrees divide the model's dimensions and the device count, and select a layout that fits
in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from rorqual.core.errors import ConfigError
from rorqual.model.config import ModelConfig
from rorqual.plan.memory import DeviceMemory, Layout, Precision, Recompute, device_memory
from rorqual.plan.numbers import format_bytes

RESERVE = 0.08
"""Share of a device's memory that a plan reserves for the framework, the framework's buffers, and fragmentation."""
MODES: tuple[Recompute, ...] = ("none", "selective", "full")


@dataclass(frozen=True)
class TrainingDevices:
    """The devices available for training: number of devices `n`, devices per machine `node`, and `usable` bytes per device."""

    n: int
    node: int
    usable: float


def invalid_layout_reasons(model: ModelConfig, layout: Layout, n: int) -> list[str]:
    """Return the reasons why `layout` is not valid for the model's dimensions or the number of devices.

    If `layout` is valid, return an empty list.
    """
    problems = []
    if layout.n_devices != n:
        problems.append(f"dp x tp x pp is {layout.n_devices}, but n is {n}")
    if layout.pp > len(model.layers):
        problems.append(f"pp={layout.pp} exceeds the model's {len(model.layers)} layers")
    for name, size in _tensor_parallel_sizes(model):
        if size % layout.tp:
            problems.append(f"tp={layout.tp} does not divide {name}={size}")
    experts = _expert_counts(model)
    if not experts and layout.ep > 1:
        problems.append(f"ep={layout.ep}, but the model has no routed experts")
    for size in experts:
        if size % layout.ep:
            problems.append(f"ep={layout.ep} does not divide n_routed_experts={size}")
    if (layout.dp * layout.tp) % layout.ep:
        problems.append(f"ep={layout.ep} does not divide dp x tp = {layout.dp * layout.tp}")
    return problems


def _tensor_parallel_sizes(model: ModelConfig) -> list[tuple[str, int]]:
    """Return (name, size) of each distinct model dimension that tensor parallelism divides."""
    dimensions: dict[tuple[str, int], None] = {}
    for stage in model.stages:
        for part in stage.attention_and_ffn_configs:
            dimensions |= dict.fromkeys(part.split_by_tp().items())
    return list(dimensions)


def _expert_counts(model: ModelConfig) -> set[int]:
    return {ffn.n_experts() for stage in model.stages for ffn in stage.ffns if ffn.n_experts()}


def divisors(number: int) -> list[int]:
    """Return the divisors of `number`, ascending."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


def valid_layouts(model: ModelConfig, room: TrainingDevices, microbatch: int = 1) -> Iterator[Layout]:
    """Yield every valid layout of `room.n` devices whose tensor parallelism stays within a machine."""
    experts = _expert_counts(model)
    for tp in divisors(room.n):
        if tp > room.node or any(size % tp for _, size in _tensor_parallel_sizes(model)):
            continue
        for pp in divisors(room.n // tp):
            if pp > len(model.layers):
                break
            dp = room.n // tp // pp
            for ep in divisors(math.gcd(dp * tp, *experts)) if experts else [1]:
                for zero in range(4):
                    for recompute in MODES:
                        yield Layout(dp, tp, pp, ep, zero, recompute, microbatch)


def layout_overhead(layout: Layout) -> float:
    """Return a rough score of a layout's overhead, to rank the layouts that fit in memory. The score is not a time.

    Tensor parallelism communicates in every layer. Full recomputation of activations adds a third of the FLOPs. ZeRO 3
    fetches weights for every micro-batch. A pipeline has bubbles at the start and the end of a training step. Expert
    parallelism needs an all-to-all exchange.
    """
    recompute_score = (0.0, 0.3, 3.0)[MODES.index(layout.recompute)]
    zero_score = (0.0, 0.1, 1.5, 8.0)[layout.zero]
    return 2 * math.log2(layout.tp) + math.log2(layout.pp) + 0.5 * math.log2(layout.ep) + recompute_score + zero_score


def choose_layout(
    model: ModelConfig, room: TrainingDevices, context: int, precision: Precision, microbatch: int = 1
) -> tuple[Layout, DeviceMemory]:
    """Return the layout with the lowest `layout_overhead` of all valid layouts that fit in memory, and the memory that this
    layout uses per device.

    Raises ConfigError if no valid layout fits in memory.
    """
    for layout in sorted(valid_layouts(model, room, microbatch), key=layout_overhead):
        memory = device_memory(model, layout, context=context, precision=precision)
        if memory.total_bytes <= room.usable:
            return layout, memory
    raise ConfigError(
        f"the training fits in no layout of {room.n} devices with {format_bytes(room.usable)} of usable memory each",
        where="n",
        remedy="Use more devices, devices with more memory, or shorter rows.",
    )
