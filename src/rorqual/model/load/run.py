"""Weights of a run directory: `model.safetensors` in each checkpoint, the model's config under `model` in `run.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rorqual.core.config import parse
from rorqual.core.errors import CheckpointError
from rorqual.core.records import RunDir
from rorqual.model.adapter.files import WEIGHTS_FILE, unfold
from rorqual.model.config import ModelConfig
from rorqual.model.decoder import Decoder
from rorqual.ops.registry import FAST, Ops


def read_section(run: RunDir, key: str) -> Any:
    """One key of `run.yaml`; an error names the file and the key."""
    where = str(run.config_file)
    try:
        data = yaml.safe_load(run.config_file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"not a run directory: it has no {run.config_file.name}",
            where=str(run.path),
            remedy="Name a folder that `rorqual train` wrote.",
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f"not YAML: {error}", where=where, remedy="Restore the file.") from None
    if not isinstance(data, dict) or key not in data:
        raise CheckpointError(f"key '{key}' is missing", where=where, remedy="Restore the file or repeat the run.")
    return data[key]


def read_model_config(run: RunDir) -> ModelConfig:
    """The model that a run directory holds."""
    return parse(ModelConfig, read_section(run, "model"), where=f"{run.config_file} (model)")


def load_weights(model: Decoder, checkpoint: Path) -> None:
    """Fill `model` from a checkpoint folder; other names or shapes are an error that lists them.

    A checkpoint that holds an adapter alone: its base's weights, and the adapter merged into them.
    """
    whole, adapters = unfold(checkpoint)
    file = whole / WEIGHTS_FILE
    try:
        state = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read: {error}", where=str(file), remedy="Use another checkpoint.") from None
    check_names(state, model.state_dict(), where=str(file))
    model.load_state_dict(state)
    for adapter in adapters:
        adapter.merge_into(model)


def check_names(state: dict[str, Tensor], wanted: dict[str, Tensor], *, where: str) -> None:
    """Refuse missing, left-over and misshapen tensors, all of them listed."""
    problems = [f"missing {name}" for name in wanted if name not in state]
    problems += [f"left over {name}" for name in state if name not in wanted]
    problems += [
        f"{name} is {tuple(state[name].shape)}, the model has {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if problems:
        shown = "; ".join(problems[:12]) + (f"; and {len(problems) - 12} more" if len(problems) > 12 else "")
        raise CheckpointError(
            f"a checkpoint of another shape: {shown}",
            where=where,
            remedy="Use the config that the weights were trained with.",
        )


def load_run(run: RunDir, *, device: str = "cpu", dtype: torch.dtype = torch.float32, ops: Ops = FAST) -> Decoder:
    """The model of a run's newest whole checkpoint, ready to use."""
    checkpoint = run.checkpoint()
    model = Decoder(read_model_config(run), ops)
    load_weights(model, checkpoint)
    return model.to(device=device, dtype=dtype)
