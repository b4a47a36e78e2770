"""Find the checkpoint family of a `model_type` or of a model configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rorqual.core.errors import ConfigError, nearest
from rorqual.model.config import ModelConfig
from rorqual.model.load import deepseek_v3, llama, qwen2, qwen3, qwen3_moe
from rorqual.model.load.names import NameMap


@dataclass(frozen=True)
class CheckpointFamily:
    """The checkpoint format of one model family: its `model_types`, and conversions in both directions.

    `config_from_hf(data, where)` converts a `config.json` to a ModelConfig, and `config_to_hf(config)` converts it
    back. `name_map(config)` covers every tensor. `config_from_hf`, `config_to_hf` and `name_map` raise ConfigError if
    the format does not support the model.
    """

    model_types: tuple[str, ...]
    config_from_hf: Callable[[Mapping[str, Any], str], ModelConfig]
    config_to_hf: Callable[[ModelConfig], dict[str, Any]]
    name_map: Callable[[ModelConfig], NameMap]


FAMILIES = (
    CheckpointFamily(
        ("deepseek_v3", "deepseek_v2", "deepseek_v32"),
        deepseek_v3.config_from_hf,
        deepseek_v3.config_to_hf,
        deepseek_v3.name_map,
    ),
    CheckpointFamily(("qwen3",), qwen3.config_from_hf, qwen3.config_to_hf, qwen3.name_map),
    CheckpointFamily(("qwen3_moe",), qwen3_moe.config_from_hf, qwen3_moe.config_to_hf, qwen3_moe.name_map),
    CheckpointFamily(("qwen2",), qwen2.config_from_hf, qwen2.config_to_hf, qwen2.name_map),
    CheckpointFamily(("llama",), llama.config_from_hf, llama.config_to_hf, llama.name_map),
)
"""All checkpoint families, in the order in which `family_for` tries them."""


def known_types() -> tuple[str, ...]:
    """Return every supported `model_type`, sorted."""
    return tuple(sorted(name for family in FAMILIES for name in family.model_types))


def family_of(model_type: str, where: str) -> CheckpointFamily:
    """Return the checkpoint family of a `model_type`. Raises ConfigError listing the supported types if the type is unknown."""
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    near = nearest(model_type, known_types())
    names = ", ".join(known_types())
    raise ConfigError(
        f"unknown model_type '{model_type}'; supported: {names}",
        where=where,
        remedy=near if near.startswith("Did") else "Other architectures are not supported.",
    )


def family_for(config: ModelConfig) -> CheckpointFamily:
    """Return the first checkpoint family that can express a model.

    If there is none, raises ConfigError with one reason per family.
    """
    reasons = []
    for family in FAMILIES:
        try:
            family.config_to_hf(config)
        except ConfigError as error:
            reasons.append(error.what)
        else:
            return family
    raise ConfigError(
        f"no published family can express this model: {'; '.join(reasons)}",
        where="config",
        remedy="Use the run directory, because this model cannot be exported.",
    )
