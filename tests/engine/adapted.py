"""A run of a model and adapters of it on disk, as the tests of engine and server load them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save

from rorqual.core.records import RunDir, write_json
from rorqual.data.tokenizer import Tokenizer
from rorqual.model import Decoder
from rorqual.model.adapter import Adapter, LoRA, Tune
from rorqual.model.adapter.files import record_base_checkpoint
from rorqual.model.meta_device import build_on_meta_device


def write_step(run: Path, config: object, files: dict[str, bytes]) -> Path:
    """A run with one checkpoint of these files."""
    step = RunDir(run).step_dir(1)
    step.mkdir(parents=True)
    for name, data in files.items():
        (step / name).write_bytes(data)
    write_json(step / "whole.json", {name: len(data) for name, data in files.items()})
    RunDir(run).config_file.write_text(json.dumps({"model": config}), encoding="utf-8")
    Tokenizer.byte_level().save(RunDir(run).tokenizer_file)
    return step


def write_base(run: Path, model: Decoder) -> Path:
    weights = save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    return write_step(run, model.config.model_dump(mode="json"), {"model.safetensors": weights})


def write_adapter(
    run: Path, base: Path, model: Decoder, seed: int, tune: Tune | None = None, size: float = 0.3
) -> Path:
    """An adapter of the checkpoint `base`, whose matrices are all random."""
    tune, generator = tune or LoRA(r=8), torch.Generator().manual_seed(seed)
    experts = tuple((0,) for ffn in model.config.ffns if ffn.experts_per_token()) if tune.kind == "esft" else ()
    shapes = tune.trained_shapes(build_on_meta_device(model.config), experts)
    tensors = {
        name: size * torch.randn(shape, generator=generator) / shape[-1] ** 0.5 for name, shape in shapes.items()
    }
    info = Adapter(base=record_base_checkpoint(base, named=str(base.parent), seen_from=run), tune=tune, experts=experts)
    return write_step(run, model.config.model_dump(mode="json"), info.file_contents(tensors))
