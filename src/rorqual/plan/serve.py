"""What serving takes: cache, batch, tokens a second by roofline, and the price of a million tokens at a margin.

Two machines share the work, as DeepSeek runs it: prefill computes prompts, decode makes one token for each sequence of a
batch at a time. Either takes the longer of two times, reading memory and computing (the roofline), divided by the share of the
roofline that is reached. What the network takes is in that share.
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
"""Tokens of prompts that prefill computes at once: weights are read once for as many."""
DAY_PREFILL, DAY_DECODE = 0.19, 0.33
"""Shares of the roofline that DeepSeek's service reached on H800 in February 2025, by this roofline: `published.py` derives them,
and a test holds them to it."""


@dataclass(frozen=True)
class Mix:
    """A request: tokens of prompt and of reply, and the share of the prompt that the cache holds already."""

    prompt: int
    reply: int
    hit_rate: float

    @property
    def longest(self) -> int:
        return self.prompt + self.reply

    @property
    def attended(self) -> float:
        """Keys that a token of the reply attends to, in the mean."""
        return self.prompt + self.reply / 2


@dataclass(frozen=True)
class Replica:
    """`n` devices that hold a model once: experts spread over all of them, the rest over each `tp`, whose groups serve sequences of
    their own. `value_bytes`: of a cached value. `prefill_used`, `decode_used`: shares of the roofline that are reached."""

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
    """One decode step of a batch: seconds to read weights and cache, seconds to compute, and what it really takes."""

    weights: float
    cache: float
    compute: float
    seconds: float

    @property
    def bound(self) -> Literal["memory", "compute"]:
        return "memory" if self.weights + self.cache >= self.compute else "compute"


@dataclass(frozen=True)
class Serving:
    """`batch`: sequences of each group at once. Rates are tokens a second of one device; `per_sequence`: what a reader sees."""

    cache_bytes: int
    weights: float
    free: float
    batch: int
    step: DecodeStep
    prefill_rate: float
    decode_rate: float
    per_sequence: float


def split_weights(model: ModelConfig) -> tuple[int, int]:
    """Parameters outside routed experts, and inside; without prediction modules."""
    experts = sum(ffn.routed_params(model.hidden_size) * s.layers for s in model.stages for ffn in s.ffns)
    return account(model).total - experts, experts


def decode_flops(model: ModelConfig, keys: float) -> float:
    """FLOPs of one token at decode with `keys` attended. MLA runs absorbed: its queries meet the latents themselves."""
    attention = sum(a.decode_flops(model.hidden_size, keys) * s.layers for s in model.stages for a in s.attentions)
    return account(model).flops + attention


def cache_copies(model: ModelConfig, tp: int) -> float:
    """Shares of a token's cache that each of `tp` devices holds: heads of keys and values are divided, MLA's latent is copied."""
    width = held = 0.0
    for layers, attention in ((stage.layers, a) for stage in model.stages for a in stage.attentions):
        for part in attention.cache_spec():
            size = part.values * layers
            width, held = width + size, held + size / min(tp, part.heads)
    return held / width


def weights_per_device(model: ModelConfig, replica: Replica) -> float:
    """Bytes."""
    shared, experts = split_weights(model)
    return (shared / replica.tp + experts / replica.n) * BYTES[replica.dtype]


def touched(model: ModelConfig, tokens: float) -> float:
    """Share of the routed experts that `tokens` tokens reach, if each chooses evenly: 1 - (1 - k / n)^tokens."""
    ffn = next((ffn for ffn in model.ffns if ffn.n_experts()), None)
    return 1.0 if ffn is None else 1 - (1 - ffn.active_experts() / ffn.n_experts()) ** tokens


def decode_step(model: ModelConfig, replica: Replica, batch: float, keys: float) -> DecodeStep:
    """A step of `batch` sequences in each group that attend to `keys` keys each."""
    shared, experts = split_weights(model)
    device, size = replica.device, BYTES[replica.dtype]
    read = shared / replica.tp + experts / replica.n * touched(model, batch * replica.groups)
    cache = account(model, cache_value_bytes=replica.value_bytes).cache_bytes * cache_copies(model, replica.tp)
    weights, kept = read * size / device.bandwidth, batch * keys * cache / device.bandwidth
    compute = batch * decode_flops(model, keys) / replica.tp / device.flops(replica.dtype)
    return DecodeStep(weights, kept, compute, max(weights + kept, compute) / replica.decode_used)


def prefill_rate(model: ModelConfig, replica: Replica, prompt: float, hit_rate: float = 0.0) -> float:
    """Tokens of prompts that one device computes in a second; each attends to those before it, the cached ones too."""
    keys = prompt * (1 + hit_rate) / 2
    flops = account(model, context=round(keys)).flops
    shared, experts = split_weights(model)
    read = (shared / replica.tp + experts / replica.n) * BYTES[replica.dtype] / replica.device.bandwidth
    compute = CHUNK * flops / replica.tp / replica.device.flops(replica.dtype)
    return CHUNK / replica.tp / max(read, compute) * replica.prefill_used


def largest_batch(model: ModelConfig, replica: Replica, mix: Mix) -> int:
    """Sequences whose whole cache fits beside the weights of a group; a ConfigError where none does, saying by how much."""
    free = replica.device.memory * (1 - RESERVE) - weights_per_device(model, replica)
    each = sequence_bytes(model, replica, mix)
    if free < each:
        n, tp = smallest_replica(model, replica, mix)
        raise ConfigError(
            f"{replica.n} x {replica.device.title} (tp={replica.tp}) cannot hold it in {replica.dtype}: weights of "
            f"{gigabytes(weights_per_device(model, replica))} a device and one sequence of {mix.longest:,} tokens "
            f"({gigabytes(each)}) are {gigabytes(each - free)} more than it has to use",
            where="n",
            remedy=f"It fits on n={n} tp={tp}.",
        )
    return int(free // each)


def sequence_bytes(model: ModelConfig, replica: Replica, mix: Mix) -> float:
    """Bytes of the cache of a whole sequence on each device of its group."""
    size = account(model, cache_value_bytes=replica.value_bytes).cache_bytes
    return size * cache_copies(model, replica.tp) * mix.longest


def smallest_replica(model: ModelConfig, replica: Replica, mix: Mix) -> tuple[int, int]:
    """The least (n, tp), powers of two, that hold the model and one sequence; a ConfigError where 4,096 devices do not."""
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
        f"no replica of {replica.device.title} holds it in {replica.dtype}: the best needs {gigabytes(best)} on a device that has "
        f"{gigabytes(usable)} to use, {gigabytes(best - usable)} too much",
        where="hardware",
        remedy="Take a smaller type (dtype=), fewer tokens (prompt=, reply=), or larger devices.",
    )


def query_heads(model: ModelConfig) -> set[int]:
    """What a tensor-parallel degree must divide."""
    return {int(getattr(attention, "num_attention_heads", 1)) for attention in model.attentions}


def serving(model: ModelConfig, replica: Replica, mix: Mix, batch: int = 0) -> Serving:
    """The plan of a replica; `batch` 0: the largest that fits."""
    check(model, replica)
    most = largest_batch(model, replica, mix)
    if batch > most:
        raise ConfigError(
            f"batch={batch} needs more cache than there is room for",
            where="batch",
            remedy=f"The largest is {most} for each group of {replica.tp}.",
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
    """Refuse a replica that does not divide, with what does."""
    heads = query_heads(model)
    good = [tp for tp in range(1, replica.n + 1) if replica.n % tp == 0 and all(h % tp == 0 for h in heads)]
    if replica.tp not in good:
        near = min(good, key=lambda tp: (abs(tp - replica.tp), tp))
        raise ConfigError(
            f"tp={replica.tp} does not divide n={replica.n} and num_attention_heads={', '.join(map(str, sorted(heads)))}",
            where="tp",
            remedy=f"The nearest that does: tp={near}.",
        )


def token_prices(served: Serving, price_hour: float, margin: float, name: str = "planned") -> Price:
    """USD a million tokens at `margin` over the rent of the devices (0.5: half as much again). A token found in the cache
    computes nothing; the disk that it lies on is not in the plan, and so it is free here."""
    second = price_hour / 3600 * (1 + margin)
    return Price(
        name, 0.0, second / served.prefill_rate * MILLION, second / served.decode_rate * MILLION, "", "this plan"
    )
