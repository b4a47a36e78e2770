"""Export of a run directory as a GGUF file. The GGUF header is written first, then the tensors in slices."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType

from rorqual.convert.cast import TensorPiece
from rorqual.convert.gguf_keys import config_architecture, keys_from_config
from rorqual.convert.gguf_names import RowRangeMapping, Shape, layout
from rorqual.convert.gguf_quant import block_size, encode, written_type
from rorqual.convert.gguf_rope import FREQS, frequency_divisors
from rorqual.convert.gguf_tokenizer import tokenizer_keys
from rorqual.convert.gguf_write import PlannedTensor, write_gguf
from rorqual.convert.merge import full_weights_file
from rorqual.convert.modelfile import modelfile_of, modelfile_text
from rorqual.convert.safetensors_slices import CHUNK, Bytes, Progress
from rorqual.convert.tensor_jobs import read_run_tensors, run_parts_by_hf_name
from rorqual.core.errors import CheckpointError
from rorqual.core.records import RunDir, write_atomic
from rorqual.data.chat import ChatFormat, load_chat
from rorqual.data.tokenizer import Tokenizer
from rorqual.model.attention import GQAConfig
from rorqual.model.load.find import family_for
from rorqual.model.load.names import list_first_names
from rorqual.model.load.run_directory import read_model_config

_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "BF16": 32}  # llama.cpp's `general.file_type`
FOUR_BITS = ("Q4_0", "Q4_1")
_LARGEST = {"F16": 65504.0, "Q8_0": 65504.0 * 127, "Q4_0": 65504.0 * 8, "Q4_1": 65504.0}
"""The largest magnitude that each GGUF tensor type can represent. F16, Q8_0, Q4_0 and Q4_1 store their values or their block scales
in fp16, so the range of fp16 limits the magnitude."""


def export_gguf(run: RunDir, dst: Path, *, dtype: str, progress: Progress) -> tuple[str, ...]:
    """Export the newest complete checkpoint of a run as the GGUF file `dst`. `dtype` is F32, F16, BF16, Q8_0, Q4_0 or Q4_1.

    Vectors, the router, and tensors whose row length is not a multiple of 32 stay F32. With `dtype` Q4_0 or Q4_1, the embedding
    and the head are Q8_0. Prediction modules (MTP) are omitted, because llama.cpp does not use them. The file `dst` appears only when
    all tensors are written. A Modelfile for Ollama is written to the folder of `dst`. Returns notes on omitted MTP modules, on
    matrices that stay F32 because of their row length, on Q8_0 tensors in a file of 4 bits, and on settings that the Modelfile
    leaves out.
    """
    kind = written_type(dtype)
    for file in (dst, modelfile_of(dst)):
        if file.exists():
            raise CheckpointError(
                "the file already exists", where=str(file), remedy="Choose another name, or delete the file."
            )
    config, tokenizer = read_model_config(run), Tokenizer.load(run.tokenizer_file)
    family = family_for(config)
    data, names = family.config_to_hf(config), family.name_map(config)
    architecture = config_architecture(data)
    weights, where = read_run_tensors(full_weights_file(run), config), str(full_weights_file(run))
    stored = run_parts_by_hf_name(names, config, weights, where)
    layout_ = layout(config, names, architecture)
    chat = load_chat(run, tokenizer)
    header = {f"{architecture}.{name}": value for name, value in keys_from_config(data, architecture).items()}
    header |= tokenizer_keys(tokenizer, config.vocab_size) | _special_keys(chat)
    header |= {
        "general.name": run.path.resolve().name,
        "general.file_type": _FILE_TYPES[kind.name],
        "general.quantization_version": 2,
    }
    modelfile, left_out = modelfile_text(run, chat, dst.name, config.max_position_embeddings)
    kinds = {name: _tensor_type(name, shape, kind) for name, shape in layout_.gguf.items()}
    pieces = layout_.by_gguf_tensor()
    tensors = [
        PlannedTensor(name, kinds[name], shape, partial(_encode_slices, stored, pieces[name], kinds[name]))
        for name, shape in layout_.gguf.items()
    ]
    attention = config.stages[0].attention
    if isinstance(attention, GQAConfig) and attention.rope.llama3 is not None:
        freqs = frequency_divisors(attention.rope, attention.head_dim)
        f32 = GGMLQuantizationType.F32
        tensors.append(PlannedTensor(FREQS, f32, tuple(freqs.shape), lambda: [encode(freqs, f32)]))
    write_gguf(dst, architecture, header, tensors, progress)
    write_atomic(modelfile_of(dst), modelfile.encode())
    return _export_notes(config.num_nextn_predict_layers, kinds, layout_.gguf, kind) + left_out


def _encode_slices(
    stored: Mapping[str, TensorPiece], pieces: Sequence[RowRangeMapping], kind: GGMLQuantizationType
) -> Iterator[Bytes]:
    """Yield the encoded bytes of a GGUF tensor in slices."""
    for piece in pieces:
        source = stored[piece.published]
        for begin, end in piece.row_steps(max(CHUNK // (4 * source.tensor.columns), 1)):
            values = piece.to_gguf(source.rows(piece.start + begin, piece.start + end))
            largest = float(values.abs().max())
            if largest > _LARGEST.get(kind.name, math.inf):
                raise CheckpointError(
                    f"tensor '{piece.published}' has a value of {largest:.3g}, more than {kind.name} can represent",
                    where=str(source.tensor.file),
                    remedy="Export the run with dtype=bfloat16 or dtype=float32.",
                )
            yield encode(values, kind)


def _export_notes(
    modules: int, kinds: Mapping[str, GGMLQuantizationType], shapes: Mapping[str, Shape], wanted: GGMLQuantizationType
) -> tuple[str, ...]:
    block = block_size(wanted)
    odd = [name for name, shape in shapes.items() if len(shape) > 1 and shape[-1] % block]
    notes = [f"{modules} prediction module(s) (MTP) omitted: llama.cpp does not use them"] * bool(modules)
    notes += [f"{len(odd)} tensors in F32: their rows are not whole blocks of {block}: {list_first_names(odd)}"] * bool(
        odd
    )
    larger = [name for name, kind in kinds.items() if wanted.name in FOUR_BITS and kind.name == "Q8_0"]
    notes += [f"{list_first_names(larger)} in Q8_0: 4 bits would lose too much quality for the saved space"] * bool(
        larger
    )
    return tuple(notes)


def _tensor_type(name: str, shape: Shape, wanted: GGMLQuantizationType) -> GGMLQuantizationType:
    """Return the GGUF type of an exported tensor, given the requested GGUF type `wanted`."""
    if len(shape) == 1 or name.endswith("ffn_gate_inp.weight") or shape[-1] % block_size(wanted):
        return GGMLQuantizationType.F32
    if wanted.name in FOUR_BITS and name in ("token_embd.weight", "output.weight"):
        return GGMLQuantizationType.Q8_0
    return wanted


def _special_keys(chat: ChatFormat) -> dict[str, Any]:
    """Return the header keys for the special token ids that llama.cpp needs, and for the chat template."""
    keys: dict[str, Any] = {
        "tokenizer.ggml.eos_token_id": chat.stop_ids[0],
        "tokenizer.ggml.padding_token_id": chat.pad,
        "tokenizer.ggml.add_bos_token": chat.bos is not None,
    }
    if chat.bos is not None:
        keys["tokenizer.ggml.bos_token_id"] = chat.bos
    if chat.template is not None:
        keys["tokenizer.chat_template"] = chat.template
    return keys
