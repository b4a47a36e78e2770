"""Find the checkpoint family of a `model_type` or of a model configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from rorqual.core.errors import ConfigError, suggest_name
from rorqual.model.config import ModelConfig
from rorqual.model.load import deepseek_v3, llama, qwen2, qwen3, qwen3_moe
from rorqual.model.load.names import NameMap


class CheckpointFamily(Protocol):
    """The checkpoint format of one model family: the family's `model_types`, and conversions in both directions.

    `config_from_hf(data, where)` converts a `config.json` to a ModelConfig, and `config_to_hf(config)` converts a ModelConfig
    to a `config.json`. `name_map(config)` covers every tensor of the model. `config_from_hf`, `config_to_hf` and `name_map`
    raise ConfigError if the format does not support the model. A Python module that defines `model_types`, `config_from_hf`,
    `config_to_hf` and `name_map` is also a checkpoint family.
    """

    @property
    def model_types(self) -> tuple[str, ...]: ...

    def config_from_hf(self, data: Mapping[str, Any], where: str = "config.json") -> ModelConfig: ...

    def config_to_hf(self, config: ModelConfig) -> dict[str, Any]: ...

    def name_map(self, config: ModelConfig) -> NameMap: ...


FAMILIES: tuple[CheckpointFamily, ...] = (deepseek_v3, qwen3.FAMILY, qwen3_moe, qwen2.FAMILY, llama.FAMILY)
"""All checkpoint families, in the order in which `family_for` tries them."""


def known_model_types() -> tuple[str, ...]:
    """Return every supported `model_type` of `config.json`, sorted."""
    return tuple(sorted(name for family in FAMILIES for name in family.model_types))


def family_of(model_type: str, where: str) -> CheckpointFamily:
    """Return the checkpoint family of a `model_type`. Raises ConfigError listing the supported model types if `model_type` is
    unknown."""
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    near = suggest_name(model_type, known_model_types())
    names = ", ".join(known_model_types())
    raise ConfigError(
        f"unknown model_type '{model_type}'; supported: {names}",
        where=where,
        remedy=near if near.startswith("Did") else "Other architectures are not supported.",
    )


def family_for(config: ModelConfig) -> CheckpointFamily:
    """Return the first checkpoint family that can express a model.

    If no family can express the model, raises ConfigError with one reason per family.
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
