"""Estimate the cost of serving: KV-cache size, batch size, tokens per second by a roofline model, and the price of a
million tokens.

Prefill and decode run on separate machines, as in DeepSeek's service. Prefill computes prompts. A decode step generates one
token for each sequence of a batch. The time of a prefill or a decode step is the larger of its memory time and its compute
time (the roofline), divided by the utilisation. Time for network transfers is included as a lower utilisation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from rorqual.core.errors import ConfigError
from rorqual.model.account import account
from rorqual.model.config import ModelConfig
from rorqual.plan.hardware import Device, Dtype
from rorqual.plan.layout import RESERVE
from rorqual.plan.numbers import format_bytes
from rorqual.plan.price import MILLION, Price

BYTES: dict[Dtype, int] = {"fp32": 4, "bf16": 2, "fp8": 1}
CHUNK = 8192
"""Number of prompt tokens for which prefill reads the weights once."""
DAY_PREFILL, DAY_DECODE = 0.19, 0.33
"""Shares of this module's roofline that DeepSeek's service reached on H800 in February 2025, for prefill and decode. A test
derives the two shares from the figures in `published.py`."""


@dataclass(frozen=True)
class AverageRequest:
    """An average request: the numbers of prompt tokens and reply tokens, and the share of the prompt tokens that is in the
    cache."""

    prompt: int
    reply: int
    hit_rate: float

    @property
    def sequence_length(self) -> int:
        """Number of tokens of prompt and reply together."""
        return self.prompt + self.reply

    @property
    def mean_attended_keys(self) -> float:
        """Mean number of keys to which a reply token attends."""
        return self.prompt + self.reply / 2


@dataclass(frozen=True)
class Replica:
    """`n` devices that hold one copy of a model.

    Experts are sharded over all devices, and all other weights over each group of `tp` devices. Each group of `tp` devices
    serves different sequences. `value_bytes` is the size of one value in the KV cache. `prefill_used` and `decode_used` are
    the assumed utilisations of prefill and decode: the achieved shares of the roofline.
    """

    device: Device
    n: int
    tp: int
    dtype: Dtype
    value_bytes: int = 2
    prefill_used: float = DAY_PREFILL
    decode_used: float = DAY_DECODE

    @property
    def n_groups(self) -> int:
        """Number of tensor-parallel groups."""
        return self.n // self.tp


@dataclass(frozen=True)
class DecodeStep:
    """The estimated time of a decode step in seconds: to read the `weights`, to read the KV `cache`, to `compute`, and in
    total (`seconds`)."""

    weights: float
    cache: float
    compute: float
    seconds: float

    @property
    def bottleneck(self) -> Literal["memory", "compute"]:
        """The resource that limits the speed of the decode step: memory bandwidth or compute."""
        return "memory" if self.weights + self.cache >= self.compute else "compute"


@dataclass(frozen=True)
class ServingEstimate:
    """The serving estimate of a replica.

    `weights` and `free` are the bytes of weights and of free memory per device. `batch` is the number of concurrent sequences
    per tensor-parallel group. The prefill and decode rates are in tokens per second per device. `per_sequence` is the decode
    rate that one user sees, in tokens per second.
    """

    cache_bytes: int
    weights: float
    free: float
    batch: int
    step: DecodeStep
    prefill_rate: float
    decode_rate: float
    per_sequence: float


def split_parameter_count(model: ModelConfig) -> tuple[int, int]:
    """Return the numbers of parameters outside and inside routed experts, without MTP modules."""
    experts = sum(ffn.routed_params(model.hidden_size) * s.layers for s in model.stages for ffn in s.ffns)
    return account(model).total - experts, experts


def decode_flops(model: ModelConfig, keys: float) -> float:
    """Return the FLOPs of one decoded token that attends to `keys` keys. MLA is assumed to be computed in its absorbed form,
    on the cached latents."""
    attention = sum(a.decode_flops(model.hidden_size, keys) * s.layers for s in model.stages for a in s.attentions)
    return account(model).flops + attention


def cache_share_per_device(model: ModelConfig, tp: int) -> float:
    """Return the share of a token's KV cache that each of `tp` devices stores.

    Key and value heads are split over the devices; MLA's latent is replicated on each device.
    """
    total = stored = 0.0
    for layers, attention in ((stage.layers, a) for stage in model.stages for a in stage.attentions):
        for part in attention.cache_spec():
            size = part.values_per_token * layers
            total, stored = total + size, stored + size / min(tp, part.heads)
    return stored / total


def weight_bytes_per_device(model: ModelConfig, replica: Replica) -> float:
    """Return the number of bytes of weights on each device of the replica."""
    shared, experts = split_parameter_count(model)
    return (shared / replica.tp + experts / replica.n) * BYTES[replica.dtype]


def touched_expert_share(model: ModelConfig, tokens: float) -> float:
    """Return the expected share of routed experts that `tokens` tokens select.

    If each token selects k of n experts and all experts are equally likely, the expected share is 1 - (1 - k / n)^tokens.
    """
    ffn = next((ffn for ffn in model.ffns if ffn.n_experts()), None)
    return 1.0 if ffn is None else 1 - (1 - ffn.active_experts() / ffn.n_experts()) ** tokens


def decode_step(model: ModelConfig, replica: Replica, batch: float, keys: float) -> DecodeStep:
    """Estimate the time of a decode step with `batch` sequences per tensor-parallel group, each attending to `keys` keys."""
    shared, experts = split_parameter_count(model)
    device, size = replica.device, BYTES[replica.dtype]
    read = shared / replica.tp + experts / replica.n * touched_expert_share(model, batch * replica.n_groups)
    cache = account(model, cache_value_bytes=replica.value_bytes).cache_bytes * cache_share_per_device(
        model, replica.tp
    )
    weights, cache_seconds = read * size / device.bandwidth, batch * keys * cache / device.bandwidth
    compute = batch * decode_flops(model, keys) / replica.tp / device.flops(replica.dtype)
    return DecodeStep(weights, cache_seconds, compute, max(weights + cache_seconds, compute) / replica.decode_used)


def prefill_rate(model: ModelConfig, replica: Replica, prompt: float, hit_rate: float = 0.0) -> float:
    """Return the prompt tokens per second that one device computes. Each token attends to all tokens before it,
    including cached tokens."""
    keys = prompt * (1 + hit_rate) / 2
    flops = account(model, context=round(keys)).flops
    read = weight_bytes_per_device(model, replica) / replica.device.bandwidth
    compute = CHUNK * flops / replica.tp / replica.device.flops(replica.dtype)
    return CHUNK / replica.tp / max(read, compute) * replica.prefill_used


def largest_batch(model: ModelConfig, replica: Replica, mix: AverageRequest) -> int:
    """Return how many sequences of `mix.sequence_length` tokens fit in the memory of a tensor-parallel group, in addition to the weights.

    Raises ConfigError, stating how much memory is missing, if not even one sequence fits.
    """
    free = replica.device.memory * (1 - RESERVE) - weight_bytes_per_device(model, replica)
    sequence_size = sequence_bytes(model, replica, mix)
    if free < sequence_size:
        n, tp = smallest_replica(model, replica, mix)
        raise ConfigError(
            f"the model does not fit on {replica.n} x {replica.device.title} (tp={replica.tp}) in {replica.dtype}: weights of "
            f"{format_bytes(weight_bytes_per_device(model, replica))} per device and one sequence of {mix.sequence_length:,} tokens "
            f"({format_bytes(sequence_size)}) exceed the usable memory by {format_bytes(sequence_size - free)}",
            where="n",
            remedy=f"It fits on n={n} tp={tp}.",
        )
    return int(free // sequence_size)


def sequence_bytes(model: ModelConfig, replica: Replica, mix: AverageRequest) -> float:
    """Return the KV-cache bytes that a sequence of `mix.sequence_length` tokens takes on each device of its tensor-parallel group."""
    size = account(model, cache_value_bytes=replica.value_bytes).cache_bytes
    return size * cache_share_per_device(model, replica.tp) * mix.sequence_length


def smallest_replica(model: ModelConfig, replica: Replica, mix: AverageRequest) -> tuple[int, int]:
    """Return the smallest `n` and `tp`, both powers of two, for which the model and one sequence fit in memory.

    Raises ConfigError if no valid replica of up to 4,096 devices has enough memory.
    """
    dense = split_parameter_count(model)[1] == 0
    usable = replica.device.memory * (1 - RESERVE)
    best = float("inf")
    for n in (2**power for power in range(13)):
        for tp in (2**power for power in range(n.bit_length())):
            candidate = replace(replica, n=n, tp=tp)
            if (
                any(size % tp for size in query_heads(model))
                or (tp > replica.device.node and tp > 1)
                or (dense and tp < n)
            ):
                continue
            needed = weight_bytes_per_device(model, candidate) + sequence_bytes(model, candidate, mix)
            best = min(best, needed)
            if needed <= usable:
                return n, tp
    raise ConfigError(
        f"no replica of {replica.device.title} can hold the model in {replica.dtype}: the best replica needs "
        f"{format_bytes(best)} per device, {format_bytes(best - usable)} more than the usable {format_bytes(usable)}",
        where="hardware",
        remedy="Use a smaller dtype=, fewer tokens (prompt=, reply=), or devices with more memory.",
    )


def query_heads(model: ModelConfig) -> set[int]:
    """Return the query-head counts of the attention layers. The tensor-parallel degree must divide each head count."""
    return {int(getattr(attention, "num_attention_heads", 1)) for attention in model.attentions}


def estimate_serving(model: ModelConfig, replica: Replica, mix: AverageRequest, batch: int = 0) -> ServingEstimate:
    """Estimate the throughput of a replica. If `batch` is 0, the batch is the largest batch that fits in memory."""
    check_tensor_parallel(model, replica)
    most = largest_batch(model, replica, mix)
    if batch > most:
        raise ConfigError(
            f"the cache of batch={batch} does not fit in memory",
            where="batch",
            remedy=f"Use at most {most} per group of {replica.tp} devices.",
        )
    chosen = batch or most
    step = decode_step(model, replica, chosen, mix.mean_attended_keys)
    weights = weight_bytes_per_device(model, replica)
    return ServingEstimate(
        cache_bytes=account(model, cache_value_bytes=replica.value_bytes).cache_bytes,
        weights=weights,
        free=replica.device.memory * (1 - RESERVE) - weights,
        batch=chosen,
        step=step,
        prefill_rate=prefill_rate(model, replica, mix.prompt, mix.hit_rate),
        decode_rate=chosen / replica.tp / step.seconds,
        per_sequence=1 / step.seconds,
    )


def check_tensor_parallel(model: ModelConfig, replica: Replica) -> None:
    """Raise ConfigError unless the tensor-parallel degree divides the numbers of devices and of query heads.

    The error names the nearest valid tensor-parallel degree.
    """
    heads = query_heads(model)
    good = [tp for tp in range(1, replica.n + 1) if replica.n % tp == 0 and all(h % tp == 0 for h in heads)]
    if replica.tp not in good:
        near = min(good, key=lambda tp: (abs(tp - replica.tp), tp))
        raise ConfigError(
            f"tp={replica.tp} does not divide n={replica.n} and num_attention_heads={', '.join(map(str, sorted(heads)))}",
            where="tp",
            remedy=f"Use tp={near}, the nearest valid value.",
        )


def token_prices(served: ServingEstimate, price_hour: float, margin: float, name: str = "planned") -> Price:
    """Return the serving prices in USD per million tokens. `margin` is added to the devices' rent (a margin of 0.5 adds half
    of the rent).

    Cached prompt tokens are free: cached tokens need no compute, and the prices exclude the cost of the disk that stores the
    cache.
    """
    second = price_hour / 3600 * (1 + margin)
    return Price(
        name, 0.0, second / served.prefill_rate * MILLION, second / served.decode_rate * MILLION, "", "this plan"
    )
