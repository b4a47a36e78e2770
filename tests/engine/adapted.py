"""A run of a model and adapters of it on disk, as the tests of engine and server load them."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1] / "model"))
from written_run import write_run

from rorqual.core.records import RunDir
from rorqual.data.tokenizer import Tokenizer
from rorqual.model import Decoder
from rorqual.model.adapter import Adapter, LoRA, Tune
from rorqual.model.adapter.files import record_base_checkpoint
from rorqual.model.meta_device import build_on_meta_device


def write_base(run: Path, model: Decoder, files: dict[str, bytes] | None = None) -> Path:
    """The checkpoint of a run that holds the model's weights, or `files`."""
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_run(run, model.config, state, files)
    Tokenizer.byte_level().save(RunDir(run).tokenizer_file)
    return RunDir(run).step_dir(1)


def write_adapter(run: Path, base: Path, model: Decoder, seed: int, tune: Tune | None = None) -> Path:
    """The checkpoint of an adapter of `base`, whose matrices are all random."""
    tune, generator = tune or LoRA(r=8), torch.Generator().manual_seed(seed)
    experts = tuple((0,) for ffn in model.config.ffns if ffn.experts_per_token()) if tune.kind == "esft" else ()
    shapes = tune.trained_shapes(build_on_meta_device(model.config), experts)
    tensors = {name: 0.3 * torch.randn(size, generator=generator) / size[-1] ** 0.5 for name, size in shapes.items()}
    beside = record_base_checkpoint(base, named=str(base.parent), seen_from=run)
    return write_base(run, model, Adapter(base=beside, tune=tune, experts=experts).file_contents(tensors))
