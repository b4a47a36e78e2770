"""Read a published `config.json` strictly: reject unknown keys, because an unknown key could change the outputs of the model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

from rorqual.core.config import Config, parse_config
from rorqual.core.errors import ConfigError, suggest_name
from rorqual.ops.rope import Rope

HARMLESS = frozenset(
    [
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
        "aux_loss_alpha",
        "router_aux_loss_coef",
        "seq_aux",
        "ep_size",
        "transformers.js_config",
    ]
)
"""Keys of `config.json` that do not affect the output of a model with given weights."""

_YARN = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_EXTENSIONS: Mapping[str, tuple[str, ...]] = {
    "yarn": (*_YARN, "attention_factor"),
    "llama3": _LLAMA3,
    "linear": ("factor",),
}
_FP8: Mapping[str, tuple[Any, ...]] = {
    "quant_method": ("fp8",),
    "weight_block_size": ([128, 128],),
    "fmt": ("e4m3", None),
    "activation_scheme": ("dynamic", None),
    "scale_fmt": ("ue8m0", None),
}
MOST_LAYERS = 10_000
_MISSING = object()
C = TypeVar("C", bound=Config)


class ConfigKeys:
    """A reader of a `config.json`, or of the header of a GGUF file, that tracks which keys were read.

    `refuse_unknown_keys` rejects keys that were not read and are not in `harmless`.
    """

    def __init__(self, data: Mapping[str, Any], where: str, harmless: Collection[str] = HARMLESS) -> None:
        self.where = where
        self._data, self._harmless = data, harmless
        self._taken: set[str] = set()

    def take(self, key: str, default: Any = _MISSING) -> Any:
        """Return the value of `key`. Raises ConfigError if `key` is missing and no `default` is given."""
        self._taken.add(key)
        value = self._data.get(key, default)
        if value is _MISSING:
            raise ConfigError(f"key '{key}' is missing", where=self.where, remedy="Use the model's own config.json.")
        return value

    def integer(self, key: str, default: Any = _MISSING) -> int:
        """Return the value of `key`, which must be an integer."""
        value = self.take(key, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ConfigError(f"key '{key}' is {value!r}, not an integer", where=self.where)
        return value

    def layer_count(self) -> int:
        """Return `num_hidden_layers`. Raises ConfigError unless `num_hidden_layers` is between 1 and `MOST_LAYERS`, because
        more layers could exhaust memory."""
        value = self.integer("num_hidden_layers")
        if not 1 <= value <= MOST_LAYERS:
            raise ConfigError(f"key 'num_hidden_layers' is {value}; it must be 1 to {MOST_LAYERS}", where=self.where)
        return value

    def mapping(self, key: str) -> Mapping[str, Any]:
        """Return the JSON object under `key`, or {} if `key` is absent or its value is null."""
        value = self.take(key, None)
        if value is not None and not isinstance(value, Mapping):
            raise ConfigError(f"key '{key}' is {value!r}, not an object", where=self.where)
        return value or {}

    def build(self, cls: type[C], **fields: Any) -> C:
        """Build a config object of class `cls`. Raises ConfigError naming the `config.json` if a value in `fields` is
        invalid."""
        return parse_config(cls, fields, where=self.where)

    def expect_value(self, key: str, *allowed: Any) -> None:
        """Check that the value of `key` is in `allowed`. `key` may be absent from the `config.json`."""
        value = self.take(key, allowed[0])
        if value not in allowed:
            raise ConfigError(
                f"key '{key}' is {value!r}; only {' or '.join(map(repr, allowed))} is supported", where=self.where
            )

    def expect_family(self, model_type: str, architecture: str) -> None:
        """Check that `model_type` and `architectures` name the given model family, and that weights are unquantized or FP8 in
        128 x 128 blocks."""
        self.expect_value("model_type", model_type)
        names = self.take("architectures", None) or [architecture]
        if names != [architecture]:
            raise ConfigError(
                f"key 'architectures' is {names}; the only supported architecture of '{model_type}' is {architecture}",
                where=self.where,
                remedy="Models with other heads are not supported.",
            )
        check_quantization(self.mapping("quantization_config"), self.where)

    def rope(
        self,
        default_theta: float,
        allowed: Sequence[str] = ("yarn", "llama3", "linear"),
        without: Sequence[str] = (),
    ) -> Rope:
        """Read RoPE from `rope_theta` and `rope_scaling` (published files) or `rope_parameters` (transformers 5).

        `allowed` lists the kinds of RoPE scaling that the family supports. `without` lists the keys of RoPE scaling that the
        family does not support.
        """
        self.expect_value("partial_rotary_factor", 1.0, None)
        scaling: dict[str, Any] = {}
        for source in ("rope_scaling", "rope_parameters"):
            for key, value in self.mapping(source).items():
                self._check_equal(f"{source}.{key}", value, scaling.setdefault(key, value))
        theta = self.take("rope_theta", scaling.get("rope_theta", default_theta))
        self._check_equal("rope_theta", theta, scaling.pop("rope_theta", theta))
        self._check_equal("partial_rotary_factor", scaling.pop("partial_rotary_factor", 1.0), 1.0)
        kind = scaling.pop("rope_type", scaling.get("type", "default"))
        self._check_equal("rope_type", kind, scaling.pop("type", kind))
        scaling = {key: value for key, value in scaling.items() if value is not None}
        if kind == "default" and not scaling:
            return self.build(Rope, theta=theta)
        supported = {*_EXTENSIONS[kind], "truncate"} - {*without} if kind in allowed else set()
        if kind not in allowed or (unknown := sorted(set(scaling) - supported)):
            kinds = "', '".join(("default", *allowed))
            details = f"with {unknown or sorted(scaling)} " if kind in allowed else ""
            raise ConfigError(
                f"RoPE scaling '{kind}' {details}is not supported; supported: '{kinds}'", where=self.where
            )
        self._check_equal("rope_scaling.truncate", scaling.pop("truncate", True), True)
        if kind == "linear":
            return self.build(Rope, theta=theta, linear=scaling.get("factor"))
        return self.build(Rope, **{"theta": theta, kind: scaling})

    def _check_equal(self, key: str, value: Any, other: Any) -> None:
        if value != other:
            raise ConfigError(
                f"key '{key}' is {value!r}, but other keys of the file require {other!r}", where=self.where
            )

    def refuse_unknown_keys(self) -> None:
        """Raise ConfigError for a key of the `config.json` that no code has read and that is not in `harmless`."""
        for key in sorted(self._data.keys() - self._taken - {*self._harmless}):
            raise ConfigError(
                f"unknown key '{key}'",
                where=self.where,
                remedy=f"{suggest_name(key, self._taken)} Remove the key if it does not change what the model computes.",
            )


def rope_to_hf(rope: Rope) -> dict[str, Any]:
    """Convert `rope` to the `config.json` keys `rope_theta` and `rope_scaling`."""
    scaling: dict[str, Any] | None = None
    if rope.yarn is not None:
        # In Rorqual, 0 means "not set", but other programs that read the file would multiply by 0.
        scaling = {"type": "yarn"} | {name: value for name, value in rope.yarn.model_dump().items() if value}
    elif rope.llama3 is not None:
        scaling = {"rope_type": "llama3", **rope.llama3.model_dump()}
    elif rope.linear != 1.0:
        scaling = {"type": "linear", "factor": rope.linear}
    return {"rope_theta": rope.theta, "rope_scaling": scaling}


def check_quantization(data: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError unless `quantization_config` is empty or declares FP8 in 128 x 128 blocks (V3, V3.1).

    A tensor with stored scales is read as FP8, whatever `quantization_config` declares.
    """
    for key, value in data.items():
        if key in ("modules_to_not_convert", "ignored_layers"):
            continue
        if key not in _FP8 or value not in _FP8[key]:
            raise ConfigError(
                f"key 'quantization_config.{key}' is {value!r}: FP8 in 128 x 128 blocks is the only supported quantization",
                where=where,
                remedy="Use the model's unquantized weights.",
            )
    if data and (missing := [key for key in ("quant_method", "weight_block_size") if key not in data]):
        raise ConfigError(f"key 'quantization_config.{missing[0]}' is missing", where=where)
