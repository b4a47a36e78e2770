"""Conversion of RoPE scaling between GGUF and `rope_scaling` in a Hugging Face `config.json`.

llama.cpp has no header keys for Llama 3.1's RoPE scaling. The GGUF files of llama.cpp store the divisor of each RoPE frequency
in the tensor `rope_freqs.weight`. GGUF files that Rorqual exports also store the scaling parameters, in header keys such as
`rope.scaling.llama3_factor`. If these header keys are missing or disagree with `rope_freqs.weight`, the parameters of the
published models are tried.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from rorqual.core.config import parse_config
from rorqual.core.errors import CheckpointError, ConfigError
from rorqual.model.load.config_keys import ConfigKeys
from rorqual.ops.rope import Llama3Scaling, Rope, inverse_frequencies

FREQS = "rope_freqs.weight"
LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor")
PUBLISHED: Mapping[str, Any] = MappingProxyType(
    {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
)
"""The RoPE scaling parameters, except `factor`, of all published Llama 3.1, 3.2 and 3.3 models."""
AGREE = 1e-4
"""Relative tolerance in comparisons of RoPE frequency divisors. Rounding to fp32 changes the divisors of published models by a
relative 5e-6."""


def scaling_from_keys(k: ConfigKeys, theta: float, factors: Sequence[float], *, latent: bool) -> dict[str, Any] | None:
    """Return the value of `rope_scaling` for the header keys `k`, or None if RoPE is not scaled.

    `factors` holds the values of the tensor `rope_freqs.weight`, if the GGUF file has this tensor. `latent` is True for
    DeepSeek's MLA.
    """
    kind = k.take("rope.scaling.type", "none")
    log_multiplier = k.take("rope.scaling.yarn_log_multiplier", 0.0)
    factor, original = k.take("rope.scaling.factor", 1.0), k.take("rope.scaling.original_context_length", 0)
    for name in ("attn_factor", "yarn_attn_factor", "yarn_ext_factor"):
        k.expect_value(f"rope.scaling.{name}", 1.0)
    fast, slow = k.take("rope.scaling.yarn_beta_fast", 32.0), k.take("rope.scaling.yarn_beta_slow", 1.0)
    stored = {name: k.take(f"rope.scaling.llama3_{name}", 0.0) for name in LLAMA3}
    if factors:
        return _llama3_scaling(theta, factors, stored | {"original_max_position_embeddings": original}, k.where)
    if kind == "none" or factor == 1.0:
        return None
    if kind == "linear":
        return {"type": "linear", "factor": factor}
    k.expect_value("rope.scaling.type", "none", "linear", "yarn")
    scaling = {"type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    scaling |= {"beta_fast": fast, "beta_slow": slow}
    if latent:
        # The key `rope.scaling.yarn_log_multiplier` holds 0.1 * mscale_all_dim. In DeepSeek's models mscale equals
        # mscale_all_dim, so the RoPE table is unscaled.
        mscale = round(log_multiplier * 10, 6)
        scaling |= {"mscale": mscale, "mscale_all_dim": mscale}
    return scaling


def _llama3_scaling(
    theta: float, factors: Sequence[float], stored: dict[str, Any], where: str
) -> dict[str, Any] | None:
    """Return the `rope_scaling` whose frequency divisors are `factors`, or None if all frequency divisors are 1.

    The scaling parameters in `stored` are tried first, then no scaling, then the scaling parameters of the published models.
    Raises CheckpointError if the divisors of none of these scalings agree with `factors`.
    """
    for parameters in (stored, {}, {"factor": max(factors), **PUBLISHED}):
        if all(parameters.values()):
            scaling = parse_config(Llama3Scaling, parameters, where=where) if parameters else None
            found = frequency_divisors(Rope(theta=theta, llama3=scaling), 2 * len(factors))
            if torch.allclose(found, torch.tensor(factors), rtol=AGREE, atol=0):
                return None if scaling is None else {"rope_type": "llama3", **scaling.model_dump()}
    raise CheckpointError(
        f"tensor '{FREQS}' does not hold the divisors of a published Llama 3.1 scaling",
        where=where,
        remedy="GGUF does not store the parameters of this scaling: import the model from its Hugging Face folder.",
    )


def frequency_divisors(rope: Rope, dim: int) -> Tensor:
    """Return the divisor of each RoPE frequency [dim / 2], which is the content of the tensor `rope_freqs.weight`."""
    return inverse_frequencies(Rope(theta=rope.theta), dim) / inverse_frequencies(rope, dim)


def scaling_keys(scaling: Mapping[str, Any] | None, *, latent: bool) -> dict[str, Any]:
    """Return the GGUF header keys for `rope_scaling`. Raises ConfigError if llama.cpp cannot reproduce the RoPE scaling."""
    kind = None if not scaling else scaling.get("type", scaling.get("rope_type"))
    if not scaling:
        return {}
    if kind == "llama3":  # for import only: llama.cpp uses `rope_freqs.weight` and ignores these keys
        parameters = {f"rope.scaling.llama3_{name}": float(scaling[name]) for name in LLAMA3}
        return parameters | {"rope.scaling.original_context_length": scaling["original_max_position_embeddings"]}
    if kind == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling["factor"])}
    mscale, all_dim = scaling.get("mscale", 1.0), scaling.get("mscale_all_dim", 0.0)
    expressible = mscale == all_dim and all_dim if latent else math.isclose(mscale, 1.0) and not all_dim
    if kind != "yarn" or not expressible or scaling.get("attention_factor"):
        raise ConfigError(
            f"llama.cpp cannot reproduce the rope scaling {dict(scaling)}",
            where="config",
            remedy="Supported: llama3, linear, and yarn without attention_factor. In yarn, MLA needs a nonzero mscale "
            "equal to mscale_all_dim, and other models need mscale 1 and no mscale_all_dim.",
        )
    extra = {"rope.scaling.yarn_log_multiplier": 0.1 * all_dim} if latent else {}
    return extra | {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": float(scaling["factor"]),
        "rope.scaling.original_context_length": scaling["original_max_position_embeddings"],
        "rope.scaling.yarn_beta_fast": float(scaling.get("beta_fast", 32.0)),
        "rope.scaling.yarn_beta_slow": float(scaling.get("beta_slow", 1.0)),
    }
