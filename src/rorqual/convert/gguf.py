"""Import of GGUF files, the checkpoint format of llama.cpp, as run directories.

The module `gguf_export` exports run directories as GGUF files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from rorqual.convert.files import check_target_unused, new_run_folder
from rorqual.convert.gguf_export import export_gguf
from rorqual.convert.gguf_keys import config_from_keys, header_architecture
from rorqual.convert.gguf_names import RowRangeMapping, check_tensors, layout
from rorqual.convert.gguf_quant import PLAIN
from rorqual.convert.gguf_read import GGUFFile, GGUFTensor, read_gguf
from rorqual.convert.gguf_rope import FREQS
from rorqual.convert.gguf_tokenizer import tokenizer_from_keys
from rorqual.convert.safetensors_slices import CHUNK, TYPES, Bytes, Progress, TensorSpec, write_tensors
from rorqual.convert.tensor_jobs import CountedChunks, TensorJob
from rorqual.core.errors import ConfigError
from rorqual.data.chat import TEMPLATE_FILE, guess_chat_name
from rorqual.model.config import ModelConfig
from rorqual.model.load.find import family_of
from rorqual.model.load.run_directory import WEIGHTS_FILE

__all__ = ["export_gguf", "import_gguf"]

_DTYPES = {"float32": "F32", "bfloat16": "BF16"}
_IDS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}


def import_gguf(src: Path, out: Path, *, progress: Progress, dtype: str = "float32") -> None:
    """Import the GGUF file `src` as the run directory `out`.

    `out` must not exist or must be an empty folder. The files of `out` appear only when the import is complete. F32, F16 and
    BF16 tensors keep their dtype. Quantised tensors are dequantised to `dtype`. The dtype float32 represents the values of
    quantised tensors exactly. A tensor that is assembled from GGUF tensors of different dtypes is converted to `dtype`. Errors
    in the GGUF header are raised before any tensor is read.
    """
    if dtype not in _DTYPES:
        raise ConfigError(f"cannot dequantise to '{dtype}'", where="dtype", remedy="Use float32 or bfloat16.")
    check_target_unused(out)
    file = read_gguf(src)
    family, config, jobs = _plan_import(file, _DTYPES[dtype])
    tokenizer = tokenizer_from_keys(file.keys, file.where)
    template = file.keys.get("tokenizer.chat_template")
    template = template if isinstance(template, str) else None
    ids = {name: file.keys.get(f"tokenizer.ggml.{key}_token_id") for name, key in _IDS.items()}
    settings = {
        "recipe": "import",
        "chat": guess_chat_name(family, tokenizer, template),
        "model": config.model_dump(mode="json"),
        "imported": {
            "source": src.name,
            "format": "gguf",
            "family": family,
            "dtype": dtype,
            "types": sorted({tensor.kind.name for tensor in file.tensors.values()}),
        },
        "generation": {name: value for name, value in ids.items() if isinstance(value, int)},
    }
    counted = CountedChunks(jobs, progress)
    with new_run_folder(out, settings, tokenizer.source.encode(), needs=counted.total) as step:
        write_tensors(step / WEIGHTS_FILE, [job.spec for job in jobs], counted)
        if template is not None:
            (step.parent / TEMPLATE_FILE).write_bytes(template.encode())


def _plan_import(file: GGUFFile, dequantised: str) -> tuple[str, ModelConfig, list[TensorJob]]:
    """Return the `model_type`, the model config, and the jobs that write the run's tensors. Only the header of the GGUF file is
    read."""
    architecture = header_architecture(file.keys, file.where)
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    factors = file.tensors[FREQS].rows(0, shapes.pop(FREQS)[0]).flatten().tolist() if FREQS in shapes else []
    data = config_from_keys(file.keys, architecture, shapes, file.where, factors)
    family = family_of(data["model_type"], file.where)
    config = family.config_from_hf(data, file.where)
    joined = any(name.endswith("attn_kv_b.weight") for name in shapes)
    layout_ = layout(config, family.name_map(config), architecture, joined_kv=joined)
    check_tensors(shapes, layout_.gguf, file.where)
    ranges, jobs = layout_.by_published_tensor(), []
    for entry in layout_.entries:
        published = [entry.published[index] for index in entry.storage_order()]
        pieces = tuple(_GGUFRowRange(rows, file.tensors[rows.gguf]) for name in published for rows in ranges[name])
        kinds = {piece.stored.kind.name for piece in pieces}
        kind = kinds.pop() if len(kinds) == 1 else dequantised
        spec = TensorSpec(entry.internal, kind if kind in PLAIN else dequantised, layout_.internal[entry.internal])
        jobs.append(TensorJob(spec, pieces))
    return data["model_type"], config, jobs


@dataclass(frozen=True)
class _GGUFRowRange:
    """A range of rows of a GGUF tensor that becomes a part of a tensor of the run."""

    range: RowRangeMapping
    stored: GGUFTensor

    def chunks(self, dtype: str) -> Iterator[Bytes]:
        """Yield the values of the rows as bytes of the dtype `dtype`."""
        rows, start = self.range, self.range.gguf_start
        for begin, end in rows.row_steps(max(CHUNK // (4 * self.stored.columns), 1)):
            stop = rows.gguf_rows if rows.form == "transposed" else end
            values = rows.from_gguf(self.stored.rows(start + begin, start + stop))
            yield values.to(TYPES[dtype]).contiguous().view(torch.uint8).numpy()
