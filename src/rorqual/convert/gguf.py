"""Import of GGUF files, the checkpoint format of llama.cpp, as run directories.

The module `gguf_export` exports run directories as GGUF files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from rorqual.convert.files import atomic_folder, refuse_target
from rorqual.convert.gguf_export import export_gguf
from rorqual.convert.gguf_keys import architecture_of, config_from_keys
from rorqual.convert.gguf_names import GGUFLayout, check_tensors, layout
from rorqual.convert.gguf_quant import PLAIN
from rorqual.convert.gguf_read import GGUFFile, read_gguf
from rorqual.convert.gguf_rope import FREQS
from rorqual.convert.gguf_tokenizer import tokenizer_from_keys
from rorqual.convert.stream import CHUNK, TYPES, Bytes, Progress, Spec, write_tensors
from rorqual.core.errors import ConfigError, RorqualError
from rorqual.core.records import MANIFEST_FILE, RunDir, write_atomic, write_json
from rorqual.data.chat import TEMPLATE_FILE, guess_chat
from rorqual.data.tokenizer import Tokenizer
from rorqual.model.load.find import family_of
from rorqual.model.load.names import NameEntry
from rorqual.model.load.run import WEIGHTS_FILE

__all__ = ["export_gguf", "import_gguf"]

_DTYPES = {"float32": "F32", "bfloat16": "BF16"}


def import_gguf(src: Path, out: Path, *, progress: Progress, dtype: str = "float32") -> None:
    """Import the GGUF file `src` as the run directory `out`.

    `out` must be new or an empty folder. Its files appear only when the import is complete. F32, F16 and BF16 tensors keep their
    dtype. Quantised tensors are dequantised to `dtype`; float32 represents their values exactly. A tensor that is assembled
    from GGUF tensors of different dtypes is converted to `dtype`. Errors in the header are raised before any tensor is read.
    """
    if dtype not in _DTYPES:
        raise ConfigError(f"cannot dequantise to '{dtype}'", where="dtype", remedy="Use float32 or bfloat16.")
    refuse_target(out)
    file = read_gguf(src)
    plan = _plan(file, _DTYPES[dtype])
    tokenizer = tokenizer_from_keys(file.keys, file.where)
    template = file.keys.get("tokenizer.chat_template")
    template = template if isinstance(template, str) else None
    settings = _settings(file, plan, guess_chat(plan.model_type, tokenizer, template), dtype)
    reader = _TensorReader(file, plan, progress)
    try:
        with atomic_folder(out, needs=reader.total) as folder:
            run = RunDir(folder)
            step = run.step_dir(0)
            step.mkdir()
            size = write_tensors(step / WEIGHTS_FILE, plan.specs, reader.chunks)
            write_json(step / MANIFEST_FILE, {WEIGHTS_FILE: size})
            tokenizer.save(run.tokenizer_file)
            if template is not None:
                write_atomic(folder / TEMPLATE_FILE, template.encode())
            write_atomic(run.config_file, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).encode())
    except OSError as error:
        raise RorqualError(
            f"cannot write: {error.strerror}", where=str(out), remedy="Free disk space or choose another folder."
        ) from error


@dataclass(frozen=True)
class _Plan:
    """The plan of an import, derived from the header: the model config, the tensor layout, and the tensors to write."""

    model_type: str
    model: dict[str, Any]
    layout: GGUFLayout
    specs: tuple[Spec, ...]


def _plan(file: GGUFFile, dequantised: str) -> _Plan:
    architecture = architecture_of(file.keys, file.where)
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    factors = file.tensors[FREQS].rows(0, 1).flatten().tolist() if len(shapes.pop(FREQS, ())) == 1 else []
    data = config_from_keys(file.keys, architecture, shapes, file.where, factors)
    family = family_of(data["model_type"], file.where)
    config = family.config_from_hf(data, file.where)
    joined = any(name.endswith("attn_kv_b.weight") for name in shapes)
    layout_ = layout(config, family.name_map(config), architecture, joined_kv=joined)
    check_tensors(shapes, layout_.gguf, file.where)
    pieces, specs = layout_.of_published(), []
    for entry in layout_.entries:
        kinds = {file.tensors[piece.gguf].kind.name for name in entry.published for piece in pieces[name]}
        kind = kinds.pop() if len(kinds) == 1 else dequantised
        specs.append(Spec(entry.internal, kind if kind in PLAIN else dequantised, layout_.internal[entry.internal]))
    return _Plan(data["model_type"], config.model_dump(mode="json"), layout_, tuple(specs))


def _settings(file: GGUFFile, plan: _Plan, chat: str, dtype: str) -> dict[str, Any]:
    """Return the content of the `run.yaml` of the imported run."""
    ids = {name: file.keys.get(f"tokenizer.ggml.{key}_token_id") for name, key in _IDS.items()}
    return {
        "recipe": "import",
        "chat": chat,
        "model": plan.model,
        "imported": {
            "source": Path(file.where).name,
            "format": "gguf",
            "family": plan.model_type,
            "dtype": dtype,
            "types": sorted({tensor.kind.name for tensor in file.tensors.values()}),
        },
        "generation": {name: value for name, value in ids.items() if isinstance(value, int)},
    }


_IDS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}


class _TensorReader:
    """A reader that converts the tensors of a GGUF file to the tensors of a run, in slices."""

    def __init__(self, file: GGUFFile, plan: _Plan, progress: Progress) -> None:
        self._file, self._progress = file, progress
        self._pieces = plan.layout.of_published()
        self._entries: dict[str, NameEntry] = {entry.internal: entry for entry in plan.layout.entries}
        self._done, self.total = 0, sum(spec.size for spec in plan.specs)

    def chunks(self, spec: Spec) -> Iterator[Bytes]:
        """Yield the bytes of the run tensor `spec` in order."""
        entry = self._entries[spec.name]
        for index in entry.order():
            for values in self._values(entry.published[index]):
                data = values.to(TYPES[spec.dtype]).contiguous().view(torch.uint8).numpy()
                self._progress(self._done, self.total, spec.name)
                self._done += data.nbytes
                yield data
        self._progress(self._done, self.total, spec.name)

    def _values(self, published: str) -> Iterator[Tensor]:
        """Yield the rows of a Hugging Face tensor in order."""
        for piece in self._pieces[published]:
            stored, start = self._file.tensors[piece.gguf], piece.gguf_start
            if len(stored.shape) == 1:
                yield piece.from_gguf(stored.rows(0, 1).reshape(-1, 1))
            elif piece.form == "transposed":
                yield piece.from_gguf(stored.rows(start, start + piece.gguf_rows))
            else:
                for begin, end in piece.steps(max(CHUNK // (4 * stored.shape[-1]), 1)):
                    yield piece.from_gguf(stored.rows(start + begin, start + end))
