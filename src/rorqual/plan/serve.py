"""Serving estimates: cache, batch, tokens per second by roofline, and the price of a million tokens at a margin.

Prefill and decode run on separate machines, as DeepSeek runs them. Prefill computes prompts; decode generates one token
per sequence of a batch at a time. Each takes the longer of memory time and compute time (the roofline), divided by the
utilisation. Network time is part of the utilisation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from rorqual.core.errors import ConfigError
from rorqual.model.account import account
from rorqual.model.config import ModelConfig
from rorqual.plan.hardware import Device, Dtype
from rorqual.plan.layout import RESERVE
from rorqual.plan.numbers import gigabytes
from rorqual.plan.price import MILLION, Price

BYTES: dict[Dtype, int] = {"fp32": 4, "bf16": 2, "fp8": 1}
CHUNK = 8192
"""Prompt tokens that prefill computes per read of the weights."""
DAY_PREFILL, DAY_DECODE = 0.19, 0.33
"""Share of this roofline that DeepSeek's service reached on H800 in February 2025. `published.py` derives both, and a test
compares them."""


@dataclass(frozen=True)
class Mix:
    """A request: prompt tokens, reply tokens, and the share of the prompt that is in the cache."""

    prompt: int
    reply: int
    hit_rate: float

    @property
    def longest(self) -> int:
        return self.prompt + self.reply

    @property
    def attended(self) -> float:
        """Mean number of keys that a reply token attends to."""
        return self.prompt + self.reply / 2


@dataclass(frozen=True)
class Replica:
    """`n` devices that hold one copy of a model.

    Experts are spread over all devices, and other weights over each group of `tp`. Each group serves its own sequences.
    `value_bytes` is the size of a cached value. `prefill_used` and `decode_used` are the achieved shares of the
    roofline.
    """

    device: Device
    n: int
    tp: int
    dtype: Dtype
    value_bytes: int = 2
    prefill_used: float = DAY_PREFILL
    decode_used: float = DAY_DECODE

    @property
    def groups(self) -> int:
        return self.n // self.tp


@dataclass(frozen=True)
class DecodeStep:
    """One decode step of a batch: seconds to read weights and cache, seconds to compute, and actual seconds."""

    weights: float
    cache: float
    compute: float
    seconds: float

    @property
    def bound(self) -> Literal["memory", "compute"]:
        return "memory" if self.weights + self.cache >= self.compute else "compute"


@dataclass(frozen=True)
class Serving:
    """The estimate for a replica.

    `batch` is the number of concurrent sequences per group. Rates are tokens per second per device. `per_sequence` is
    the rate that one user sees.
    """

    cache_bytes: int
    weights: float
    free: float
    batch: int
    step: DecodeStep
    prefill_rate: float
    decode_rate: float
    per_sequence: float


def split_weights(model: ModelConfig) -> tuple[int, int]:
    """Return the parameters outside and inside routed experts, without MTP modules."""
    experts = sum(ffn.routed_params(model.hidden_size) * s.layers for s in model.stages for ffn in s.ffns)
    return account(model).total - experts, experts


def decode_flops(model: ModelConfig, keys: float) -> float:
    """Return the FLOPs of one decoded token that attends to `keys` keys. MLA runs absorbed, on the latents."""
    attention = sum(a.decode_flops(model.hidden_size, keys) * s.layers for s in model.stages for a in s.attentions)
    return account(model).flops + attention


def cache_copies(model: ModelConfig, tp: int) -> float:
    """Return the share of a token's cache that each of `tp` devices holds. Key and value heads are split; MLA's latent is replicated."""
    width = held = 0.0
    for layers, attention in ((stage.layers, a) for stage in model.stages for a in stage.attentions):
        for part in attention.cache_spec():
            size = part.values * layers
            width, held = width + size, held + size / min(tp, part.heads)
    return held / width


def weights_per_device(model: ModelConfig, replica: Replica) -> float:
    """Return the bytes of weights on each device."""
    shared, experts = split_weights(model)
    return (shared / replica.tp + experts / replica.n) * BYTES[replica.dtype]


def touched(model: ModelConfig, tokens: float) -> float:
    """Return the share of routed experts that `tokens` tokens reach under even routing: 1 - (1 - k / n)^tokens."""
    ffn = next((ffn for ffn in model.ffns if ffn.n_experts()), None)
    return 1.0 if ffn is None else 1 - (1 - ffn.active_experts() / ffn.n_experts()) ** tokens


def decode_step(model: ModelConfig, replica: Replica, batch: float, keys: float) -> DecodeStep:
    """Estimate a decode step with `batch` sequences per group, each attending to `keys` keys."""
    shared, experts = split_weights(model)
    device, size = replica.device, BYTES[replica.dtype]
    read = shared / replica.tp + experts / replica.n * touched(model, batch * replica.groups)
    cache = account(model, cache_value_bytes=replica.value_bytes).cache_bytes * cache_copies(model, replica.tp)
    weights, kept = read * size / device.bandwidth, batch * keys * cache / device.bandwidth
    compute = batch * decode_flops(model, keys) / replica.tp / device.flops(replica.dtype)
    return DecodeStep(weights, kept, compute, max(weights + kept, compute) / replica.decode_used)


def prefill_rate(model: ModelConfig, replica: Replica, prompt: float, hit_rate: float = 0.0) -> float:
    """Return the prompt tokens per second that one device computes. Each attends to all tokens before it, cached ones included."""
    keys = prompt * (1 + hit_rate) / 2
    flops = account(model, context=round(keys)).flops
    shared, experts = split_weights(model)
    read = (shared / replica.tp + experts / replica.n) * BYTES[replica.dtype] / replica.device.bandwidth
    compute = CHUNK * flops / replica.tp / replica.device.flops(replica.dtype)
    return CHUNK / replica.tp / max(read, compute) * replica.prefill_used


def largest_batch(model: ModelConfig, replica: Replica, mix: Mix) -> int:
    """Return how many sequences' full cache fits next to a group's weights. Raises ConfigError with the shortfall if none fits."""
    free = replica.device.memory * (1 - RESERVE) - weights_per_device(model, replica)
    each = sequence_bytes(model, replica, mix)
    if free < each:
        n, tp = smallest_replica(model, replica, mix)
        raise ConfigError(
            f"the model does not fit on {replica.n} x {replica.device.title} (tp={replica.tp}) in {replica.dtype}: weights of "
            f"{gigabytes(weights_per_device(model, replica))} per device and one sequence of {mix.longest:,} tokens "
            f"({gigabytes(each)}) exceed the usable memory by {gigabytes(each - free)}",
            where="n",
            remedy=f"It fits on n={n} tp={tp}.",
        )
    return int(free // each)


def sequence_bytes(model: ModelConfig, replica: Replica, mix: Mix) -> float:
    """Return the cache bytes of a full sequence on each device of its group."""
    size = account(model, cache_value_bytes=replica.value_bytes).cache_bytes
    return size * cache_copies(model, replica.tp) * mix.longest


def smallest_replica(model: ModelConfig, replica: Replica, mix: Mix) -> tuple[int, int]:
    """Return the smallest (n, tp), powers of two, that hold the model and one sequence.

    Raises ConfigError if 4,096 devices do not.
    """
    dense = split_weights(model)[1] == 0
    usable = replica.device.memory * (1 - RESERVE)
    best = float("inf")
    for n in (2**power for power in range(13)):
        for tp in (2**power for power in range(n.bit_length())):
            made = replace(replica, n=n, tp=tp)
            if (
                any(size % tp for size in query_heads(model))
                or (tp > replica.device.node and tp > 1)
                or (dense and tp < n)
            ):
                continue
            needed = weights_per_device(model, made) + sequence_bytes(model, made, mix)
            best = min(best, needed)
            if needed <= usable:
                return n, tp
    raise ConfigError(
        f"the model fits on no replica of {replica.device.title} in {replica.dtype}: the best needs {gigabytes(best)} per device, "
        f"{gigabytes(best - usable)} more than the usable {gigabytes(usable)}",
        where="hardware",
        remedy="Use a smaller dtype=, fewer tokens (prompt=, reply=), or devices with more memory.",
    )


def query_heads(model: ModelConfig) -> set[int]:
    """Return the head counts that a tensor-parallel degree must divide."""
    return {int(getattr(attention, "num_attention_heads", 1)) for attention in model.attentions}


def serving(model: ModelConfig, replica: Replica, mix: Mix, batch: int = 0) -> Serving:
    """Estimate the serving of a replica. `batch` 0 means the largest that fits."""
    check(model, replica)
    most = largest_batch(model, replica, mix)
    if batch > most:
        raise ConfigError(
            f"the cache of batch={batch} does not fit in memory",
            where="batch",
            remedy=f"Use at most {most} for each group of {replica.tp}.",
        )
    chosen = batch or most
    step = decode_step(model, replica, chosen, mix.attended)
    weights = weights_per_device(model, replica)
    return Serving(
        cache_bytes=account(model, cache_value_bytes=replica.value_bytes).cache_bytes,
        weights=weights,
        free=replica.device.memory * (1 - RESERVE) - weights,
        batch=chosen,
        step=step,
        prefill_rate=prefill_rate(model, replica, mix.prompt, mix.hit_rate),
        decode_rate=chosen / replica.tp / step.seconds,
        per_sequence=1 / step.seconds,
    )


def check(model: ModelConfig, replica: Replica) -> None:
    """Refuse a tensor-parallel degree that does not divide, and name the nearest that does."""
    heads = query_heads(model)
    good = [tp for tp in range(1, replica.n + 1) if replica.n % tp == 0 and all(h % tp == 0 for h in heads)]
    if replica.tp not in good:
        near = min(good, key=lambda tp: (abs(tp - replica.tp), tp))
        raise ConfigError(
            f"tp={replica.tp} does not divide n={replica.n} and num_attention_heads={', '.join(map(str, sorted(heads)))}",
            where="tp",
            remedy=f"Use tp={near}, the nearest that does.",
        )


def token_prices(served: Serving, price_hour: float, margin: float, name: str = "planned") -> Price:
    """Return the USD per million tokens at `margin` over the devices' rent (0.5: rent plus half).

    A cached prompt token needs no compute. The disk that stores the cache is not in the plan, so cached tokens are
    free.
    """
    second = price_hour / 3600 * (1 + margin)
    return Price(
        name, 0.0, second / served.prefill_rate * MILLION, second / served.decode_rate * MILLION, "", "this plan"
    )
