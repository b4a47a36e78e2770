"""Reading a published `config.json` strictly: a key that could change the function and is not understood is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from rorqual.core.config import Config, parse
from rorqual.core.errors import ConfigError, nearest
from rorqual.ops.rope import Rope

HARMLESS = frozenset(
    [
        "architectures",
        "auto_map",
        "torch_dtype",
        "dtype",
        "transformers_version",
        "use_cache",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "pretraining_tp",
        "attention_dropout",
        "return_dict",
        "output_hidden_states",
        "output_attentions",
        "output_router_logits",
        "chunk_size_feed_forward",
        "is_encoder_decoder",
        "id2label",
        "label2id",
        "problem_type",
        "_name_or_path",
        "quantization_config",
        "aux_loss_alpha",
        "seq_aux",
        "ep_size",
    ]
)
"""Keys that do not change the function computed from given weights (quantised weights are refused by name)."""

_YARN = ["factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"]
_MISSING = object()
C = TypeVar("C", bound=Config)


class Keys:
    """The keys of a `config.json`, each to be taken once; what is left at `end` is refused."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.where = where
        self._left = {key: value for key, value in data.items() if key not in HARMLESS}
        self._taken: list[str] = []

    def take(self, key: str, default: Any = _MISSING) -> Any:
        """The value; without a default a missing key is an error."""
        self._taken.append(key)
        value = self._left.pop(key, default)
        if value is _MISSING:
            raise ConfigError(f"key '{key}' is missing", where=self.where, remedy="Use the model's own config.json.")
        return value

    def integer(self, key: str, default: Any = _MISSING) -> int:
        """A whole number."""
        value = self.take(key, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ConfigError(f"key '{key}' is {value!r}, not a whole number", where=self.where)
        return value

    def build(self, cls: type[C], **fields: Any) -> C:
        """`cls` of these fields; a value that does not fit is a `ConfigError` of this file."""
        return parse(cls, fields, where=self.where)

    def expect(self, key: str, *allowed: Any) -> None:
        """Refuse a key whose value is none of `allowed`; absent is fine."""
        value = self.take(key, allowed[0])
        if value not in allowed:
            raise ConfigError(
                f"key '{key}' is {value!r}, but only {' or '.join(map(repr, allowed))} is supported", where=self.where
            )

    def rope(self, default_theta: float) -> Rope:
        """From `rope_theta` and `rope_scaling` (as published) or `rope_parameters` (transformers 5)."""
        scaling = dict(self.take("rope_scaling", None) or {})
        scaling |= self.take("rope_parameters", None) or {}
        theta = self.take("rope_theta", default_theta)
        theta = scaling.pop("rope_theta", theta)
        kinds = {scaling.pop(key, None) for key in ("type", "rope_type")} - {None}
        kind = kinds.pop() if len(kinds) == 1 else "default" if not kinds else f"both {sorted(kinds)}"
        if kind == "default" and not scaling:
            return self.build(Rope, theta=theta)
        unknown = sorted(key for key, value in scaling.items() if key not in _YARN and value is not None)
        if kind != "yarn" or unknown:
            raise ConfigError(
                f"rope scaling '{kind}' with {unknown or sorted(scaling)} is not supported: only 'default' and 'yarn' are",
                where=self.where,
            )
        return self.build(Rope, theta=theta, yarn={k: v for k, v in scaling.items() if v is not None})

    def end(self) -> None:
        """Refuse whatever was not taken."""
        for key in self._left:
            raise ConfigError(
                f"unknown key '{key}'",
                where=self.where,
                remedy=f"{nearest(key, self._taken)} Remove it if it does not change the model's function.",
            )


def rope_to_hf(rope: Rope) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`, as checkpoints publish them."""
    if rope.yarn is None:
        return {"rope_theta": rope.theta, "rope_scaling": None}
    return {"rope_theta": rope.theta, "rope_scaling": {"type": "yarn", **rope.yarn.model_dump()}}
