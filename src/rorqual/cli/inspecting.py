"""The output of `rorqual inspect`: a table of a model's parameters, FLOPs, KV cache and memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml
from pydantic import Field

from rorqual.cli.settings import DeviceSettings, DType
from rorqual.core.config import Natural, parse_config
from rorqual.core.errors import ConfigError, suggest_name
from rorqual.core.records import RunDir, read_json
from rorqual.model.account import account
from rorqual.model.block import PreNormConfig
from rorqual.model.config import ModelConfig, Stage
from rorqual.model.load.find import family_of
from rorqual.model.load.run_directory import read_model_config
from rorqual.model.presets import preset, preset_names

BYTES: Mapping[DType, int] = {"float32": 4, "bfloat16": 2}
TRAINING_BYTES = 16
"""Bytes per parameter during training: the weight, the weight's gradient and AdamW's two moments, each in fp32."""
CONVENTION = (
    "FLOPs count a multiply-add as two. They include matrix products and attention, not norms, softmax or gates."
)


class InspectSettings(DeviceSettings):
    """Settings of `rorqual inspect`."""

    dtype: DType = Field("bfloat16", description="type of weights and KV cache")
    context: Natural = Field(4096, description="sequence length for attention FLOPs and KV cache")


def find_model(name: str) -> ModelConfig:
    """Return the model config of a published model, a run folder, a Hugging Face `config.json`, or a YAML file.

    A YAML file contains a model config or a run config. Raises ConfigError if `name` identifies no model config.
    """
    path = Path(name)
    if name in preset_names():
        return preset(name)
    if path.is_dir():
        config_file = path / "config.json"
        return _from_json(config_file) if config_file.is_file() else read_model_config(RunDir(path))
    if path.suffix == ".json" and path.is_file():
        return _from_json(path)
    if path.is_file():
        return _from_yaml(path)
    raise ConfigError(
        f"'{name}' is not a published model, a folder or a file",
        where="model",
        remedy=suggest_name(name, preset_names()),
    )


def _from_yaml(path: Path) -> ModelConfig:
    try:
        data = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"not valid YAML: {error}", where=str(path), remedy="Give the YAML file of a model or of a run."
        ) from None
    whole_run = isinstance(data, dict) and "model" in data
    return parse_config(ModelConfig, data["model"] if whole_run else data, where=str(path))


def _from_json(path: Path) -> ModelConfig:
    data = read_json(path, "the config", "Give a Hugging Face config.json.")
    kind = str(data.get("model_type")) if isinstance(data, dict) else ""
    return family_of(kind, str(path)).config_from_hf(data, str(path))


def _describe_stage(stage: Stage) -> str:
    """Describe a stage (a group of layers with the same config) by the stage's kinds of attention and FFN.

    The description starts with the kind of the stage's blocks, unless that kind is `pre_norm`."""
    block = [] if stage.block == PreNormConfig() else [stage.block.kind]
    return ", ".join((*block, stage.attention.kind, stage.ffn.kind))


def model_size_rows(config: ModelConfig, settings: InspectSettings, free_memory: int) -> list[tuple[str, str]]:
    """Return the rows of `rorqual inspect`'s table as (name of a quantity, quantity with unit). `free_memory`: the machine's
    free memory in bytes, or 0 if the free memory is unknown."""
    size = BYTES[settings.dtype]
    context = min(settings.context, config.max_position_embeddings)
    no_attention, with_attention = (account(config, context=keys, cache_value_bytes=size) for keys in (0, context))
    weights, training = (
        (with_attention.total + with_attention.mtp) * size,
        (with_attention.total + with_attention.mtp) * TRAINING_BYTES,
    )
    parameter_rows = [
        ("stages", " + ".join(f"{s.layers} x ({_describe_stage(s)})" for s in config.stages)),
        ("parameters, total", count_text(with_attention.total)),
        ("parameters, active per token", count_text(with_attention.active)),
        ("  with the embedding as a look-up", f"{count_text(with_attention.active_lookup)}, {count_text(no_attention.flops // 2)} "
                                                "of them in matrices"),
    ]  # fmt: skip
    main_weights = ""
    if with_attention.mtp:
        main_weights = f"{memory_text(with_attention.total * size)}, with multi-token prediction "
        parameter_rows.append(("multi-token prediction", f"{count_text(with_attention.mtp)} more, not in the total"))
    return [
        *parameter_rows,
        (
            "FLOPs per token, forward",
            f"{no_attention.flops:.3e}, or {with_attention.flops:.3e} with {context:,} keys attended",
        ),
        ("FLOPs per token, training", f"{no_attention.training_flops:.3e}: forward and backward, 3 times the forward"),
        ("KV cache", f"{with_attention.cache_bytes:,} bytes per token in {settings.dtype}"),
        (f"KV cache of {context:,} tokens", memory_text(with_attention.cache_bytes * context)),
        (
            f"weights in {settings.dtype}",
            f"{main_weights}{memory_text(weights)}{_free_memory_note(weights, free_memory)}",
        ),
        ("weights, gradients, AdamW", f"{memory_text(training)} in fp32{_free_memory_note(training, free_memory)}"),
    ]


def count_text(parameters: int) -> str:
    """Format a number of parameters, for example `671026419200` as `671.03B`."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if parameters >= size:
            return f"{parameters / size:.2f}{unit}"
    return str(parameters)


def memory_text(size: float) -> str:
    """Format a number of bytes with the fitting binary unit, from bytes to TiB."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:,.4g} {unit}"
        size /= 1024
    return f"{size:,.4g} TiB"


def _free_memory_note(size: int, free: int) -> str:
    if not free:
        return ""
    return f" (this machine has {memory_text(free)} free{'' if size <= free else ': not enough'})"


def align_columns(rows: Iterable[Sequence[str]], right: frozenset[int] = frozenset()) -> str:
    """Format the rows of a table as aligned columns. Columns whose index is in `right` are right-aligned."""
    table = [tuple(row) for row in rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = []
    for row in table:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
