"""Layouts: which divide, which fit, and the nearest that does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from rorqual.core.errors import ConfigError
from rorqual.model.account import account
from rorqual.model.config import ModelConfig
from rorqual.plan.memory import Layout, Memory, Precision, Recompute, device_memory
from rorqual.plan.numbers import gigabytes

RESERVE = 0.08
"""Share of a device's memory that is left free for the framework, its buffers and fragments. An assumption."""
MODES: tuple[Recompute, ...] = ("none", "selective", "full")
MOST = 2**20


@dataclass(frozen=True)
class Room:
    """Where a training is to fit: devices, how many share a machine, bytes of each that may be used."""

    n: int
    node: int
    usable: float


def misfits(model: ModelConfig, layout: Layout, n: int) -> list[str]:
    """Why `layout` does not divide the model or the devices, in words; empty where it does."""
    found = []
    if layout.devices != n:
        found.append(f"dp x tp x pp is {layout.devices}, and there are {n} devices")
    if layout.pp > len(model.layers):
        found.append(f"pp={layout.pp} is more than its {len(model.layers)} layers")
    for name, size in _split_by_tp(model):
        if size % layout.tp:
            found.append(f"tp={layout.tp} does not divide {name}={size}")
    experts = _experts(model)
    if not experts and layout.ep > 1:
        found.append(f"ep={layout.ep}, and it has no routed experts")
    for size in experts:
        if size % layout.ep:
            found.append(f"ep={layout.ep} does not divide n_routed_experts={size}")
    if (layout.dp * layout.tp) % layout.ep:
        found.append(f"ep={layout.ep} does not divide dp x tp = {layout.dp * layout.tp}")
    return found


def _split_by_tp(model: ModelConfig) -> list[tuple[str, int]]:
    """What tensor parallelism cuts, by its name in the configuration, each once."""
    found: dict[tuple[str, int], None] = {}
    for stage in model.stages:
        for part in stage.parts:
            found |= dict.fromkeys(part.split_by_tp().items())
    return list(found)


def _experts(model: ModelConfig) -> set[int]:
    return {ffn.n_experts() for stage in model.stages for ffn in stage.ffns if ffn.n_experts()}


def divisors(number: int) -> list[int]:
    """Ascending."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


def dividing(model: ModelConfig, room: Room, microbatches: tuple[int, ...] = (1,)) -> Iterator[Layout]:
    """Every layout of `room.n` devices that divides, tensor parallelism within a machine."""
    experts = _experts(model)
    for tp in divisors(room.n):
        if tp > room.node or any(size % tp for _, size in _split_by_tp(model)):
            continue
        for pp in divisors(room.n // tp):
            if pp > len(model.layers):
                break
            dp = room.n // tp // pp
            for ep in divisors(math.gcd(dp * tp, *experts)) if experts else [1]:
                for zero in range(4):
                    for recompute in MODES:
                        for size in microbatches:
                            yield Layout(dp, tp, pp, ep, zero, recompute, size)


def distance(one: Layout, other: Layout) -> float:
    """How much must be changed: doublings of each degree, and half a step for ZeRO, recomputation and microbatch each."""
    degrees = sum(abs(math.log2(getattr(one, name) / getattr(other, name))) for name in ("tp", "pp", "ep"))
    modes = abs(MODES.index(one.recompute) - MODES.index(other.recompute))
    return degrees + 0.5 * (abs(one.zero - other.zero) + modes + abs(math.log2(one.microbatch / other.microbatch)))


def burden(layout: Layout) -> float:
    """What a layout costs beside memory, to choose among those that fit: a rough order, not a time.

    Tensor parallelism speaks in every layer, full recomputation adds a third of the FLOPs, ZeRO 3 fetches weights for every
    microbatch, a pipeline idles at its ends, experts elsewhere need an exchange.
    """
    again = (0.0, 0.3, 3.0)[MODES.index(layout.recompute)]
    shared = (0.0, 0.1, 1.5, 8.0)[layout.zero]
    return 2 * math.log2(layout.tp) + math.log2(layout.pp) + 0.5 * math.log2(layout.ep) + again + shared


def nearest_dividing(model: ModelConfig, layout: Layout, room: Room) -> Layout:
    """The layout that divides with the least change of `layout`."""
    found = dividing(model, room, (layout.microbatch,))
    return min(found, key=lambda other: (distance(layout, other), other.zero != layout.zero, burden(other)))


def fitting(
    model: ModelConfig, room: Room, microbatches: tuple[int, ...], context: int, precision: Precision,
    rank: Callable[[Layout], float],
) -> tuple[Layout, Memory] | None:  # fmt: skip
    """The layout of least `rank` that divides and fits, with its memory; None where none does."""
    if least_bytes(model, precision) / room.n > room.usable:
        return None
    for layout in sorted(dividing(model, room, microbatches), key=lambda one: (rank(one), burden(one))):
        memory = device_memory(model, layout, context=context, precision=precision)
        if memory.total <= room.usable:
            return layout, memory
    return None


def choose(
    model: ModelConfig, room: Room, context: int, precision: Precision, microbatch: int = 1
) -> tuple[Layout, Memory]:
    """The layout of least burden that fits; a ConfigError that says by how much the tightest does not, and how many devices would."""
    found = fitting(model, room, (microbatch,), context, precision, burden)
    if found is None:
        raise never_fits(model, room, context, precision)
    return found


def nearest_fitting(
    model: ModelConfig, layout: Layout, room: Room, context: int, precision: Precision
) -> tuple[Layout, Memory]:
    """The layout that fits with the least change of `layout`; a ConfigError where none does."""
    sizes = {2**power for power in range(layout.microbatch.bit_length())} | {layout.microbatch}
    found = fitting(model, room, tuple(sorted(sizes)), context, precision, lambda one: distance(layout, one))
    if found is None:
        raise never_fits(model, room, context, precision)
    return found


def least_bytes(model: ModelConfig, precision: Precision) -> float:
    """Bytes of weights, gradients and optimizer, once: what all devices together must hold at least."""
    a = account(model)
    return (a.total + a.mtp) * (precision.weights + precision.gradients + precision.optimizer)


def never_fits(model: ModelConfig, room: Room, context: int, precision: Precision) -> ConfigError:
    """What no layout of these devices can do: by how much, and with how many devices one could."""
    best = min(
        (device_memory(model, one, context=context, precision=precision).total, str(one))
        for one in dividing(model, room)
        if one.recompute == "full" and one.zero == 3
    )
    n, enough = room.n, None
    while enough is None and n < MOST:
        n = 2 * n if n >= room.node else room.node
        enough = fitting(model, replace(room, n=n), (1,), context, precision, burden)
    remedy = (
        f"It fits on {n} such devices: {enough[0]}." if enough else "Take devices with more memory, or shorter rows."
    )
    return ConfigError(
        f"no layout of {room.n} devices holds it: the tightest ({best[1]}) needs {gigabytes(best[0])} on a device that has "
        f"{gigabytes(room.usable)} to use, {gigabytes(best[0] - room.usable)} too much",
        where="n",
        remedy=remedy,
    )
