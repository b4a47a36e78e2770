"""Merging of an adapter into its base model. A merged run can be exported, served and quantised like any other run."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from rorqual.convert.files import chat_settings, check_target_unused, copy_chat_template, new_run_folder
from rorqual.core.errors import CheckpointError, ConfigError
from rorqual.core.records import RunDir
from rorqual.model.adapter import read_adapter_info
from rorqual.model.adapter.files import WEIGHTS_FILE
from rorqual.model.decoder import Decoder
from rorqual.model.load.run_directory import load_run


def full_weights_file(run: RunDir) -> Path:
    """Return the weights file of the newest checkpoint of a run. Raises CheckpointError if `run` holds only an adapter."""
    checkpoint = run.checkpoint()
    if read_adapter_info(checkpoint) is not None:
        raise CheckpointError(
            "this run holds an adapter, not a whole model",
            where=str(checkpoint),
            remedy=f"Merge the adapter into its base, and use the merged run: rorqual merge {run.path} MERGED",
        )
    return checkpoint / WEIGHTS_FILE


def merge_run(run: RunDir, dst: Path, *, dtype: Literal["float32", "bfloat16"] = "float32") -> Path:
    """Merge the newest checkpoint of an adapter run into its base model, and write the merged model as the run directory `dst`.

    For LoRA, W + s (B A) is computed in fp32 and rounded once to `dtype`, where s is the LoRA scale. For ESFT, the trained
    experts replace the experts of the base model. Returns the folder of the merged model's checkpoint.

    Raises ConfigError if `run` already holds a whole model, and CheckpointError if the base checkpoint is missing or has
    changed.
    """
    check_target_unused(dst)
    checkpoint = run.checkpoint()
    adapter = read_adapter_info(checkpoint)
    if adapter is None:
        raise ConfigError(
            "this run holds a whole model, so there is nothing to merge",
            where=str(run.path),
            remedy="Use the run directly, or export it for other engines with `rorqual export`.",
        )
    model = load_run(run, dtype=getattr(torch, dtype))
    merged = {"run": str(run.path), "dtype": dtype, **adapter.model_dump(mode="json", exclude={"experts"})}
    return write_model(dst, model, run, {"recipe": "merge", "merged": merged})


def write_model(dst: Path, model: Decoder, source: RunDir, data: Mapping[str, Any]) -> Path:
    """Write `model` as the run directory `dst`, with the tokenizer, the chat format and the task defaults of `source`.

    The keys in `data` are added to the `run.yaml` of `dst`. Return the checkpoint folder of `dst`.
    """
    config = {**data, **chat_settings(source), "model": model.config.model_dump(mode="json")}
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    size = sum(tensor.nbytes for tensor in state.values())
    name = source.checkpoint().name
    with new_run_folder(dst, config, source.tokenizer_file.read_bytes(), needs=size, step=name) as step:
        save_file(state, step / WEIGHTS_FILE)
        copy_chat_template(source, step.parent)
        if source.task_defaults_file.is_file():
            shutil.copyfile(source.task_defaults_file, RunDir(step.parent).task_defaults_file)
    return dst / name
