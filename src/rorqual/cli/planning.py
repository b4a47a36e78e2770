"""Settings of `rorqual plan`, and the rows of its tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, model_validator

from rorqual.cli.accounts import count
from rorqual.core.config import Config
from rorqual.core.errors import ConfigError
from rorqual.core.ledger import CORE_HOUR
from rorqual.model.config import ModelConfig
from rorqual.plan.hardware import REACHED, V3_USED, Device, Dtype, device
from rorqual.plan.layout import RESERVE, Room, choose, misfits, nearest_dividing, nearest_fitting
from rorqual.plan.memory import PRECISIONS, Layout, Memory, PrecisionName, Recompute, device_memory
from rorqual.plan.numbers import Amount, Count, Positions, duration, flops, gigabytes, money, short
from rorqual.plan.price import PRICES, Price
from rorqual.plan.serve import (
    DAY_DECODE,
    DAY_PREFILL,
    Mix,
    Replica,
    Serving,
    serving,
    smallest_replica,
    split_weights,
    token_prices,
)
from rorqual.plan.time import TrainingCost, training_cost, training_flops

Rows = list[tuple[str, str]]


class Rented(Config):
    """Settings of both plans.

    `price`: USD per hour of one device, or 0 for the table's value. `out`: folder for a page with plots.
    """

    hardware: str = "h800"
    price: Amount = Field(0.0, ge=0)
    out: str = ""

    def device(self) -> Device:
        return device(self.hardware)

    def rent(self) -> float:
        """Return the rent in USD per device-hour. Raises ConfigError if neither the user nor the table gives one."""
        found = self.price or self.device().price
        if not found:
            raise ConfigError(
                f"the hardware table has no rent for {self.device().title}",
                where="price",
                remedy="Give price=USD_PER_HOUR.",
            )
        return found

    def rent_words(self) -> str:
        return f"${self.rent():.2f} per hour, {'as given' if self.price else self.device().price_source}"


class TrainPlan(Rented):
    """Settings of a training plan: `tokens` to train on, `n` devices, rows of `context` tokens.

    The parallel layout is chosen unless one of dp, tp, pp, ep is given. A degree of 0 then means 1, or for dp the remaining
    devices. `utilisation`: share of the bf16 peak, or 0 for the table's value. `full_attention`: count attention over whole
    rows instead of its causal half. `mtp`: count multi-token prediction modules.
    """

    tokens: Amount = Field(gt=0)
    n: Count = Field(8, ge=1)
    context: Positions = Field(4096, ge=1)
    utilisation: float = Field(0.0, ge=0, le=1)
    precision: PrecisionName = "bf16"
    dp: Count = Field(0, ge=0)
    tp: Count = Field(0, ge=0)
    pp: Count = Field(0, ge=0)
    ep: Count = Field(0, ge=0)
    zero: int = Field(1, ge=0, le=3)
    recompute: Recompute = "selective"
    microbatch: Count = Field(1, ge=1)
    full_attention: bool = False
    mtp: bool = False

    def used(self) -> float:
        return self.utilisation or self.device().utilisation

    def layout(self) -> Layout | None:
        """Return the requested layout, or None if no degree is given."""
        if not (self.dp or self.tp or self.pp or self.ep):
            return None
        tp, pp, ep = self.tp or 1, self.pp or 1, self.ep or 1
        dp = self.dp or max(1, self.n // (tp * pp))
        return Layout(dp, tp, pp, ep, self.zero, self.recompute, self.microbatch)

    def room(self) -> Room:
        return Room(self.n, self.device().node, self.device().memory * (1 - RESERVE))


class ServePlan(Rented):
    """Settings of a serving plan.

    A replica has `n` devices (0: the fewest that hold the model) and splits attention over `tp` of them. Requests have
    `prompt` and `reply` tokens; the prefix cache holds the share `hit_rate` of prompt tokens. `batch` 0 is the largest that
    fits. `margin` is added to the rent. `busy`: share of the rented hours that are used. `prefill_used`, `decode_used`:
    shares of the roofline that are reached.
    """

    n: Count = Field(0, ge=0)
    tp: Count = Field(0, ge=0)
    dtype: Dtype = "fp8"
    cache_bytes: int = Field(2, ge=1, le=4)
    prompt: Count = Field(4000, ge=1)
    reply: Count = Field(1000, ge=1)
    hit_rate: float = Field(0.5, ge=0, le=1)
    batch: Count = Field(0, ge=0)
    margin: float = Field(0.5, ge=0)
    busy: float = Field(1.0, gt=0, le=1)
    prefill_used: float = Field(DAY_PREFILL, gt=0, le=1)
    decode_used: float = Field(DAY_DECODE, gt=0, le=1)

    @model_validator(mode="after")
    def _degrees(self) -> Self:
        if self.tp and not self.n:
            raise ValueError(f"tp={self.tp} also needs n=, the number of devices of a replica")
        return self

    def mix(self) -> Mix:
        return Mix(self.prompt, self.reply, self.hit_rate)

    def replica(self, model: ModelConfig) -> Replica:
        """Return the requested replica, or the smallest that holds the model and one sequence.

        A dense model is split over all devices by tensor parallelism unless `tp` is given.
        """
        dense = not any(ffn.experts_per_token() for ffn in model.ffns)
        tp = self.tp or (self.n if dense and self.n else 1)
        made = Replica(
            self.device(), self.n or 1, tp, self.dtype, self.cache_bytes, self.prefill_used, self.decode_used
        )
        if self.n:
            return made
        found = smallest_replica(model, made, self.mix())
        return Replica(self.device(), *found, self.dtype, self.cache_bytes, self.prefill_used, self.decode_used)


class RunPlan(Config):
    """Settings of a plan for a run: more `steps` or `tokens` (0: the remaining steps), optionally of another `model`."""

    steps: Count = Field(0, ge=0)
    tokens: Amount = Field(0.0, ge=0)
    model: str = ""
    core_hour: float = Field(CORE_HOUR, ge=0)


class QuickstartPlan(Config):
    """Settings of a quickstart forecast: `size`, `seed` and `threads` (0: all cores)."""

    size: Literal["small", "full"] = "full"
    seed: int = Field(0, ge=0)
    threads: int = Field(0, ge=0)


@dataclass(frozen=True)
class Trained:
    """A training plan: cost, layout and memory per device. `nearest`: the nearest layout that fits, if this one does not."""

    cost: TrainingCost
    layout: Layout
    memory: Memory
    nearest: tuple[Layout, Memory] | None


def plan_training(model: ModelConfig, asked: TrainPlan) -> Trained:
    """Plan a training. Raises ConfigError if the requested layout does not divide the model or the devices."""
    each = training_flops(model, asked.context, causal=not asked.full_attention, mtp=asked.mtp)
    cost = training_cost(
        each, asked.tokens, n=asked.n, peak=asked.device().flops("bf16"), utilisation=asked.used(), price=asked.rent()
    )
    precision, room, layout = PRECISIONS[asked.precision], asked.room(), asked.layout()
    if layout is None:
        return Trained(cost, *choose(model, room, asked.context, precision, asked.microbatch), None)
    if reasons := misfits(model, layout, asked.n):
        near = nearest_dividing(model, layout, room)
        raise ConfigError("; ".join(reasons), where="layout", remedy=f"The nearest valid layout is {near}.")
    memory = device_memory(model, layout, context=asked.context, precision=precision)
    fits = memory.total <= room.usable
    return Trained(
        cost, layout, memory, None if fits else nearest_fitting(model, layout, room, asked.context, precision)
    )


def training_rows(model: ModelConfig, asked: TrainPlan, made: Trained) -> Rows:
    """Return the rows of a training plan, one per figure."""
    card, cost = asked.device(), made.cost
    attention = "attention over whole rows" if asked.full_attention else "causal attention, half a row on average"
    peak = card.flops("bf16")
    source = "as given" if asked.utilisation else "the table's; DeepSeek-V3 reached 0.389 on H800 (ISCA 2025)"
    rows = [
        ("hardware", f"{asked.n:,} x {card.title} ({card.source})"),
        ("FLOPs per token", f"{flops(cost.flops_per_token)}: {attention}, rows of {asked.context:,}{', with MTP' if asked.mtp else ''}"),
        ("FLOPs", f"{flops(cost.flops)} for {short(asked.tokens)} tokens"),
        ("speed", f"{short(peak * asked.used())}FLOP/s per device: {asked.used():.3g} of {short(peak)} in bf16, {source}"),
        ("device-hours", short(cost.hours)),
        ("time", duration(cost.seconds)),
        ("money", f"{money(cost.usd)} at {asked.rent_words()}"),
        *([] if asked.utilisation or card.utilisation != V3_USED else [("upper estimate", range_words(asked, cost))]),
        ("", ""),
        ("layout", f"{made.layout} ({'as given' if asked.layout() else 'chosen'}), {asked.precision}: {PRECISIONS[asked.precision].source}"),
        *memory_rows(made.memory, asked),
    ]  # fmt: skip
    if made.nearest:
        rows += [("", ""), ("nearest that fits", str(made.nearest[0])), *memory_rows(made.nearest[1], asked)]
    return rows


def range_words(asked: TrainPlan, cost: TrainingCost) -> str:
    """Return the cost at the lowest utilisation that published trainings reached. The default is the highest."""
    times = {name: asked.used() / share for name, share in REACHED.items()}
    told = ", ".join(f"{name} {share:.2f}" for name, share in REACHED.items())
    return (
        f"up to {short(cost.hours * max(times.values()))} device-hours and {money(cost.usd * max(times.values()))}: by their published "
        f"hours, whole trainings reached a lower utilisation ({told}). Give utilisation= if you know yours."
    )


def memory_rows(memory: Memory, asked: TrainPlan) -> Rows:
    """Return the memory per device by part, and whether the total fits."""
    card, usable = asked.device(), asked.room().usable
    left = usable - memory.total
    verdict = f"fits, {gigabytes(left)} free" if left >= 0 else f"does not fit, {gigabytes(-left)} too much"
    where = f"pipeline stage {memory.stage + 1}, {memory.layers} layers"
    total = f"{gigabytes(memory.total)} of {gigabytes(usable)} ({gigabytes(card.memory)} less {RESERVE:.0%} reserve): {verdict} ({where})"
    return [*((f"  {name}", gigabytes(size)) for name, size in memory.parts()), ("  per device", total)]


@dataclass(frozen=True)
class Served:
    """A serving plan: the replica, its throughput, and the price of its tokens with the margin."""

    replica: Replica
    serving: Serving
    price: Price


def plan_serving(model: ModelConfig, asked: ServePlan) -> Served:
    """Plan the serving of `model`."""
    replica = asked.replica(model)
    served = serving(model, replica, asked.mix(), asked.batch)
    return Served(replica, served, token_prices(served, asked.rent() / asked.busy, asked.margin))


def serving_rows(model: ModelConfig, asked: ServePlan, made: Served) -> Rows:
    """Return the rows of a serving plan, one per figure."""
    replica, served, mix = made.replica, made.serving, asked.mix()
    group, step, price = replica.tp, served.step, made.price
    where = "device" if group == 1 else f"{group} devices"
    blended = price.blended(mix.prompt, mix.reply, mix.hit_rate)
    shares = f"prefill reaches {asked.prefill_used:.2g} and decode {asked.decode_used:.2g} of the roofline"
    known = asked.prefill_used == DAY_PREFILL and asked.decode_used == DAY_DECODE
    return [
        ("replica", f"{replica.n:,} x {replica.device.title}, tp={group}, {count(sum(split_weights(model)))} parameters in {replica.dtype}"),
        ("KV cache", f"{served.cache_bytes:,} bytes per token, {gigabytes(served.cache_bytes * mix.longest)} for {mix.longest:,} tokens"),
        ("memory per device", f"{gigabytes(served.weights)} of weights, {gigabytes(served.free)} for KV cache"),
        ("batch", f"{served.batch:,} sequences on each {where}, {served.batch * replica.groups:,} in total"),
        ("decode step", f"{duration(step.seconds)}, bound by {step.bound}: weights {duration(step.weights)}, KV cache {duration(step.cache)}, "
                        f"compute {duration(step.compute)} at the roofline"),
        ("decode", f"{served.decode_rate:,.0f} tokens/s per device, {served.per_sequence:.1f} tokens/s per sequence"),
        ("prefill", f"{served.prefill_rate:,.0f} tokens/s per device, not counting tokens found in the cache"),
        ("shares", shares + (", as DeepSeek's service did in February 2025" if known else ", as given")),
        ("cost", f"{asked.rent_words()}{'' if asked.busy == 1 else f', busy {asked.busy:.0%} of them'}; margin {asked.margin:.0%}"),
        ("price per million", f"prompt {money(price.miss)}, found in the cache {money(price.hit)}, reply {money(price.output)}"),
        ("  of this mix", f"{money(blended)}: {mix.prompt:,} prompt tokens, {mix.hit_rate:.0%} of them cached, {mix.reply:,} reply tokens"),
        *((f"  {row.name}, {row.date}", money(row.blended(mix.prompt, mix.reply, mix.hit_rate))) for row in PRICES),
    ]  # fmt: skip
