"""Load the model of a run directory.

The `run.yaml` of a run directory holds the model's config under `model`. Each checkpoint folder holds the model's weights in
`model.safetensors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rorqual.core.config import parse_config
from rorqual.core.errors import CheckpointError
from rorqual.core.records import RunDir
from rorqual.model.adapter.files import WEIGHTS_FILE, find_base_and_adapters, read_adapter_info
from rorqual.model.adapter.tuning import Shapes
from rorqual.model.config import ModelConfig
from rorqual.model.decoder import Decoder
from rorqual.model.ffn import map_older_names
from rorqual.model.load.find import family_for
from rorqual.model.load.names import INDEXER, SCALE, NameEntry, find_differences, list_first_names
from rorqual.model.meta_device import allocate, build_on_meta_device
from rorqual.ops.backends import TORCH, Backend
from rorqual.ops.devices import check_device
from rorqual.ops.quant import dequantize_blocks

FP8 = "F8_E4M3"
"""The safetensors name of the dtype torch.float8_e4m3fn."""


def read_section(run: RunDir, key: str) -> Any:
    """Return the value of a top-level key of `run.yaml`. Raises CheckpointError if `key` is missing."""
    data = run.config()
    if key not in data:
        raise CheckpointError(
            f"key '{key}' is missing", where=str(run.config_file), remedy="Restore the file, or repeat the run."
        )
    return data[key]


def read_model_config(run: RunDir) -> ModelConfig:
    """Return the config of the model in a run directory."""
    return parse_config(ModelConfig, read_section(run, "model"), where=f"{run.config_file} (model)")


@torch.no_grad()
def load_weights(model: Decoder, checkpoint: Path) -> None:
    """Fill `model` from a checkpoint folder, one tensor at a time. Each loaded tensor is cast to the model's dtype.

    FP8 tensors in the checkpoint are dequantized. Tensor names of older Rorqual versions are accepted (`map_older_names`).
    Raises CheckpointError listing missing tensor names, unexpected tensor names and wrong shapes. If `checkpoint` is an
    adapter, the base checkpoint is loaded and the adapter is merged into the base weights.
    """
    whole, adapters = find_base_and_adapters(checkpoint)
    file = whole / WEIGHTS_FILE
    wanted = model.state_dict()
    try:
        with safe_open(file, framework="pt") as stored:
            older = map_older_names(wanted)
            names = stored.keys()
            stored_names = {older.get(name, name): name for name in names}  # current name -> name in the file
            entries = _check_headers(stored, stored_names, wanted, model.config, str(file))
            for name, tensor in wanted.items():
                if name in entries:
                    _dequantize(entries[name], stored.get_tensor(name), stored.get_tensor(name + SCALE), tensor)
                else:
                    tensor.copy_(stored.get_tensor(stored_names[name]))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read: {error}", where=str(file), remedy="Use another checkpoint.") from None
    for adapter in adapters:
        adapter.merge_into(model)


def _check_headers(
    stored: Any, stored_names: Mapping[str, str], wanted: dict[str, Tensor], config: ModelConfig, where: str
) -> dict[str, NameEntry]:
    """Check that the tensor names, shapes and dtypes in the header of a weights file match the model.

    Return the `NameEntry` of each FP8 tensor, by name.

    `stored_names` maps current tensor names to the tensor names in the weights file.
    """
    slices = {ours: stored.get_slice(name) for ours, name in stored_names.items()}
    shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    scales = {name for name in shapes if name.endswith(SCALE) and name.removesuffix(SCALE) in wanted}
    entries: dict[str, NameEntry] = {}
    expected = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    if scales:
        entries = {entry.internal: entry for entry in family_for(config).name_map(config).entries}
        entries = {name: entries[name] for name in (scale.removesuffix(SCALE) for scale in scales)}
        expected |= {name + SCALE: entry.scale_shape(expected[name]) for name, entry in entries.items()}
    _check_shapes(shapes, expected, where)
    for name in wanted:
        if (slices[name].get_dtype() == FP8) != (name in entries):
            raise CheckpointError(
                f"{name} is {slices[name].get_dtype()} {'with' if name in entries else 'without'} scales ({name}{SCALE})",
                where=where,
                remedy="FP8 tensors, and no others, must have scales. Import the model again.",
            )
    return entries


def _dequantize(entry: NameEntry, weight: Tensor, scale: Tensor, out: Tensor) -> None:
    scales = entry.scales_entry()
    for index in range(len(entry.published)):
        values = dequantize_blocks(entry.published_view(weight, index), scales.published_view(scale, index))
        entry.published_view(out, index).copy_(values)


def check_names(state: dict[str, Tensor], wanted: dict[str, Tensor], *, where: str) -> None:
    """Check that `state` has the tensor names and shapes of `wanted`. Raises CheckpointError listing up to twelve differences
    in tensor names and shapes."""
    shapes, expected = ({name: tuple(tensor.shape) for name, tensor in side.items()} for side in (state, wanted))
    _check_shapes(shapes, expected, where)


def _check_shapes(shapes: Shapes, wanted: Shapes, where: str) -> None:
    if problems := find_differences(shapes, wanted):
        no_indexer = all(problem.startswith("missing ") and INDEXER in problem for problem in problems)
        remedy = "Use the dense model (kind mla), and add indexers with `rorqual sparsify`." if no_indexer else ""
        raise CheckpointError(
            f"the checkpoint does not match the model: {list_first_names(problems)}",
            where=where,
            remedy=remedy or "Use the config that the weights were trained with.",
        )


def load_run(run: RunDir, *, device: str = "cpu", dtype: torch.dtype = torch.float32, ops: Backend = TORCH) -> Decoder:
    """Load the model of a run's newest complete checkpoint.

    The model is returned in `dtype`, whatever the dtype of the stored weights, and in evaluation mode. Raises ConfigError if
    `device` is not available.
    """
    check_device(device)
    checkpoint = run.checkpoint()
    model = build_on_meta_device(read_model_config(run), ops)
    # An adapter is merged in fp32, before rounding.
    load_dtype = dtype if read_adapter_info(checkpoint) is None else torch.float32
    model = allocate(model.to(dtype=load_dtype), device)
    load_weights(model, checkpoint)
    return model.to(dtype=dtype).eval()
