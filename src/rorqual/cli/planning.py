"""Settings of `rorqual plan`, the computation of training and serving plans, and the rows of the plans' tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, model_validator

from rorqual.cli.inspecting import count_text
from rorqual.core.config import Config
from rorqual.core.errors import ConfigError
from rorqual.core.ledger import CORE_HOUR
from rorqual.model.config import ModelConfig
from rorqual.plan.hardware import REACHED, V3_USED, Device, Dtype, device
from rorqual.plan.layout import RESERVE, TrainingDevices, choose_layout, invalid_layout_reasons
from rorqual.plan.memory import PRECISIONS, DeviceMemory, Layout, PrecisionName, Recompute, device_memory
from rorqual.plan.numbers import (
    Amount,
    Count,
    Positions,
    format_bytes,
    format_duration,
    format_flops,
    format_short,
    format_usd,
)
from rorqual.plan.price import PRICES, Price
from rorqual.plan.serve import (
    DAY_DECODE,
    DAY_PREFILL,
    AverageRequest,
    Replica,
    ServingEstimate,
    estimate_serving,
    smallest_replica,
    split_parameter_count,
    token_prices,
)
from rorqual.plan.time import TrainingCost, training_cost, training_flops

Rows = list[tuple[str, str]]


class RentedDevices(Config):
    """The device settings that training plans and serving plans share."""

    hardware: str = Field("h800", description="row of the hardware table (--tables)")
    price: Amount = Field(0.0, ge=0, description="USD per device-hour; 0: the table's")
    out: str = Field("", description="folder of an HTML page")

    def device(self) -> Device:
        """Return the row of the hardware table for the setting `hardware`."""
        return device(self.hardware)

    def usd_per_device_hour(self) -> float:
        """Return the rental price in USD per device-hour.

        Raises ConfigError if neither the settings nor the hardware table has a rental price.
        """
        price = self.price or self.device().price
        if not price:
            raise ConfigError(
                f"the hardware table has no rental price for {self.device().title}",
                where="price",
                remedy="Give price=USD_PER_HOUR.",
            )
        return price

    def price_text(self) -> str:
        """Return the rental price and the price's source as text."""
        return f"${self.usd_per_device_hour():.2f} per hour, {'as given' if self.price else self.device().price_source}"


class TrainPlanSettings(RentedDevices):
    """Settings of a training plan."""

    tokens: Amount = Field(gt=0, description="training tokens, such as 14.8T")
    n: Count = Field(8, ge=1, description="devices")
    context: Positions = Field(4096, ge=1, description="tokens per row")
    utilisation: float = Field(0.0, ge=0, le=1, description="share of the bf16 peak; 0: the table's")
    precision: PrecisionName = Field("bf16", description="type of matrix products")
    dp: Count = Field(0, ge=0, description="data-parallel degree; without any degree, the planner chooses a layout")
    tp: Count = Field(0, ge=0, description="tensor-parallel degree")
    pp: Count = Field(0, ge=0, description="pipeline degree")
    ep: Count = Field(0, ge=0, description="expert-parallel degree")
    zero: int = Field(1, ge=0, le=3, description="stage of ZeRO")
    recompute: Recompute = Field("selective", description="activations that are computed again")
    microbatch: Count = Field(1, ge=1, description="rows per micro-batch")
    full_attention: bool = Field(False, description="count attention without a causal mask, twice as much")
    mtp: bool = Field(False, description="count the multi-token prediction modules")

    def peak_share(self) -> float:
        """Return the share of the device's bf16 peak FLOP/s that training is assumed to reach."""
        return self.utilisation or self.device().utilisation

    def layout(self) -> Layout | None:
        """Return the requested parallel layout, or None if all degrees of parallelism are 0."""
        if not (self.dp or self.tp or self.pp or self.ep):
            return None
        tp, pp, ep = self.tp or 1, self.pp or 1, self.ep or 1
        dp = self.dp or max(1, self.n // (tp * pp))
        return Layout(dp, tp, pp, ep, self.zero, self.recompute, self.microbatch)

    def layout_limits(self) -> TrainingDevices:
        """Return the number of devices and the memory per device that a parallel layout may use."""
        return TrainingDevices(self.n, self.device().node, self.device().memory * (1 - RESERVE))


class ServePlanSettings(RentedDevices):
    """Settings of a serving plan."""

    n: Count = Field(0, ge=0, description="devices per replica; 0: the fewest whose memory suffices")
    tp: Count = Field(0, ge=0, description="devices that share attention; needs n")
    dtype: Dtype = Field("fp8", description="type of the weights")
    cache_bytes: int = Field(2, ge=1, le=4, description="bytes per value of the KV cache")
    prompt: Count = Field(4000, ge=1, description="prompt tokens per request")
    reply: Count = Field(1000, ge=1, description="reply tokens per request")
    hit_rate: float = Field(0.5, ge=0, le=1, description="share of prompt tokens in the prefix cache")
    batch: Count = Field(0, ge=0, description="sequences per tp devices; 0: the most that fit")
    margin: float = Field(0.5, ge=0, description="profit as a share of the cost")
    busy: float = Field(1.0, gt=0, le=1, description="share of the rented hours in use")
    prefill_used: float = Field(DAY_PREFILL, gt=0, le=1, description="share of the roofline that prefill reaches")
    decode_used: float = Field(DAY_DECODE, gt=0, le=1, description="share of the roofline that decoding reaches")

    @model_validator(mode="after")
    def _check_degrees(self) -> Self:
        if self.tp and not self.n:
            raise ValueError(f"tp={self.tp} also needs n=, the number of devices of a replica")
        return self

    def average_request(self) -> AverageRequest:
        """Return the token counts of a typical request."""
        return AverageRequest(self.prompt, self.reply, self.hit_rate)

    def replica(self, model: ModelConfig) -> Replica:
        """Return the requested replica, or the smallest replica that has memory for the model and one sequence.

        Unless `tp` is set, a dense model is split over all devices by tensor parallelism.
        """
        dense = not any(ffn.experts_per_token() for ffn in model.ffns)
        tp = self.tp or (self.n if dense and self.n else 1)
        minimal = Replica(
            self.device(), self.n or 1, tp, self.dtype, self.cache_bytes, self.prefill_used, self.decode_used
        )
        if self.n:
            return minimal
        size = smallest_replica(model, minimal, self.average_request())
        return Replica(self.device(), *size, self.dtype, self.cache_bytes, self.prefill_used, self.decode_used)


class RunPlanSettings(Config):
    """Settings of a plan for further training of a run."""

    steps: Count = Field(0, ge=0, description="further steps; default: those that remain, or ten times the run's")
    tokens: Amount = Field(0.0, ge=0, description="the same in tokens")
    model: str = Field("", description="plan this model instead of the run's")
    core_hour: float = Field(CORE_HOUR, ge=0, description="USD per core-hour")


class QuickstartPlanSettings(Config):
    """Settings of a quickstart forecast."""

    size: Literal["small", "full"] = Field("full", description="amount of training")
    seed: int = Field(0, ge=0, description="seed of the quickstart")
    threads: int = Field(0, ge=0, description="threads; 0: all cores")


@dataclass(frozen=True)
class PlannedTraining:
    """A training plan: the cost, the parallel layout, and the memory per device.

    `chosen`: if `layout` does not fit in memory, the layout that the planner chooses instead, with the memory use of this
    layout; else None.
    """

    cost: TrainingCost
    layout: Layout
    memory: DeviceMemory
    chosen: tuple[Layout, DeviceMemory] | None


def plan_training(model: ModelConfig, settings: TrainPlanSettings) -> PlannedTraining:
    """Plan the training of `model`.

    Raises ConfigError if the requested degrees of parallelism do not match the model's dimensions or the number of devices."""
    flops_per_token = training_flops(model, settings.context, causal=not settings.full_attention, mtp=settings.mtp)
    cost = training_cost(
        flops_per_token,
        settings.tokens,
        n=settings.n,
        peak=settings.device().flops("bf16"),
        utilisation=settings.peak_share(),
        price=settings.usd_per_device_hour(),
    )
    precision, room, layout = PRECISIONS[settings.precision], settings.layout_limits(), settings.layout()
    if layout is None:
        return PlannedTraining(
            cost, *choose_layout(model, room, settings.context, precision, settings.microbatch), None
        )
    if reasons := invalid_layout_reasons(model, layout, settings.n):
        remedy = "Without degrees, the plan chooses a layout that fits."
        raise ConfigError("; ".join(reasons), where="layout", remedy=remedy)
    memory = device_memory(model, layout, context=settings.context, precision=precision)
    fits = memory.total_bytes <= room.usable
    chosen = None if fits else choose_layout(model, room, settings.context, precision, settings.microbatch)
    return PlannedTraining(cost, layout, memory, chosen)


def training_rows(model: ModelConfig, settings: TrainPlanSettings, plan: PlannedTraining) -> Rows:
    """Return the table rows of a training plan as (name, value)."""
    card, cost = settings.device(), plan.cost
    attention = "attention over whole rows" if settings.full_attention else "causal attention, half a row on average"
    peak = card.flops("bf16")
    source = "as given" if settings.utilisation else "the table's; DeepSeek-V3 reached 0.389 on H800 (ISCA 2025)"
    rows = [
        ("hardware", f"{settings.n:,} x {card.title} ({card.source})"),
        ("FLOPs per token", f"{format_flops(cost.flops_per_token)}: {attention}, rows of {settings.context:,}"
                            f"{', with MTP' if settings.mtp else ''}"),
        ("FLOPs", f"{format_flops(cost.flops)} for {format_short(settings.tokens)} tokens"),
        ("speed", f"{format_short(peak * settings.peak_share())}FLOP/s per device: {settings.peak_share():.3g} of "
                  f"{format_short(peak)} in bf16, {source}"),
        ("device-hours", format_short(cost.hours)),
        ("time", format_duration(cost.seconds)),
        ("money", f"{format_usd(cost.usd)} at {settings.price_text()}"),
        *([] if settings.utilisation or card.utilisation != V3_USED else [("upper estimate", cost_range_text(settings, cost))]),
        ("", ""),
        ("layout", f"{plan.layout} ({'as given' if settings.layout() else 'chosen'}), "
                   f"{settings.precision}: {PRECISIONS[settings.precision].source}"),
        *memory_rows(plan.memory, settings),
    ]  # fmt: skip
    if plan.chosen:
        rows += [("", ""), ("layout that fits", str(plan.chosen[0])), *memory_rows(plan.chosen[1], settings)]
    return rows


def cost_range_text(settings: TrainPlanSettings, cost: TrainingCost) -> str:
    """Return a text with the training cost at the lowest utilisation in `REACHED`.

    `REACHED` lists the utilisation of published training runs. The default utilisation is that of DeepSeek-V3's training,
    which is higher than all utilisations in `REACHED`."""
    times = {name: settings.peak_share() / share for name, share in REACHED.items()}
    shares = ", ".join(f"{name} {share:.2f}" for name, share in REACHED.items())
    return (
        f"up to {format_short(cost.hours * max(times.values()))} device-hours and {format_usd(cost.usd * max(times.values()))}: published "
        f"hours of complete training runs imply a lower utilisation ({shares}). Give utilisation= if you know yours."
    )


def memory_rows(memory: DeviceMemory, settings: TrainPlanSettings) -> Rows:
    """Return one table row per part of a device's memory. The last row has the total, and states whether the total fits
    in the device's usable memory."""
    card, usable = settings.device(), settings.layout_limits().usable
    free = usable - memory.total_bytes
    verdict = f"fits, {format_bytes(free)} free" if free >= 0 else f"does not fit, {format_bytes(-free)} too much"
    where = f"pipeline stage {memory.stage + 1}, {memory.layers} layers"
    limit = f"{format_bytes(usable)} ({format_bytes(card.memory)} less {RESERVE:.0%} reserve)"
    total = f"{format_bytes(memory.total_bytes)} of {limit}: {verdict} ({where})"
    return [*((f"  {name}", format_bytes(size)) for name, size in memory.named_parts()), ("  per device", total)]


@dataclass(frozen=True)
class PlannedServing:
    """A serving plan: the replica, the replica's throughput, and the token prices including the margin."""

    replica: Replica
    serving: ServingEstimate
    price: Price


def plan_serving(model: ModelConfig, settings: ServePlanSettings) -> PlannedServing:
    """Plan the serving of `model`: the replica, the replica's throughput, and the token prices."""
    replica = settings.replica(model)
    serving_ = estimate_serving(model, replica, settings.average_request(), settings.batch)
    return PlannedServing(
        replica, serving_, token_prices(serving_, settings.usd_per_device_hour() / settings.busy, settings.margin)
    )


def serving_rows(model: ModelConfig, settings: ServePlanSettings, plan: PlannedServing) -> Rows:
    """Return the table rows of a serving plan as (name, value)."""
    replica, serving_, mix = plan.replica, plan.serving, settings.average_request()
    group, step, price = replica.tp, serving_.step, plan.price
    where = "device" if group == 1 else f"{group} devices"
    blended = price.blended_price(mix.prompt, mix.reply, mix.hit_rate)
    shares = f"prefill reaches {settings.prefill_used:.2g} and decode {settings.decode_used:.2g} of the roofline"
    is_default = settings.prefill_used == DAY_PREFILL and settings.decode_used == DAY_DECODE
    return [
        ("replica", f"{replica.n:,} x {replica.device.title}, tp={group}, "
                    f"{count_text(sum(split_parameter_count(model)))} parameters in {replica.dtype}"),
        ("KV cache", f"{serving_.cache_bytes:,} bytes per token, {format_bytes(serving_.cache_bytes * mix.sequence_length)} "
                     f"for {mix.sequence_length:,} tokens"),
        ("memory per device", f"{format_bytes(serving_.weights)} of weights, {format_bytes(serving_.free)} for KV cache"),
        ("batch", f"{serving_.batch:,} sequences on each {where}, {serving_.batch * replica.n_groups:,} in total"),
        ("decode step", f"{format_duration(step.seconds)}, bound by {step.bottleneck}: weights {format_duration(step.weights)}, "
                        f"KV cache {format_duration(step.cache)}, compute {format_duration(step.compute)} at the roofline"),
        ("decode", f"{serving_.decode_rate:,.0f} tokens/s per device, {serving_.per_sequence:.1f} tokens/s per sequence"),
        ("prefill", f"{serving_.prefill_rate:,.0f} tokens/s per device, not counting tokens found in the cache"),
        ("shares", shares + (", as DeepSeek's service did in February 2025" if is_default else ", as given")),
        ("cost", f"{settings.price_text()}{'' if settings.busy == 1 else f', busy {settings.busy:.0%} of them'}; margin {settings.margin:.0%}"),
        ("price per million", f"prompt {format_usd(price.miss)}, found in the cache {format_usd(price.hit)}, reply {format_usd(price.output)}"),
        ("  of this mix", f"{format_usd(blended)}: {mix.prompt:,} prompt tokens, {mix.hit_rate:.0%} of them cached, {mix.reply:,} reply tokens"),
        *((f"  {row.name}, {row.date}", format_usd(row.blended_price(mix.prompt, mix.reply, mix.hit_rate))) for row in PRICES),
    ]  # fmt: skip
