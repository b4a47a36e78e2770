"""Export of a run directory as a GGUF file. The header is written first, then the tensors in slices."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rorqual.convert.files import beside
from rorqual.convert.gguf_keys import architecture_for, keys_for
from rorqual.convert.gguf_names import GGUFLayout, RowRange, Shape, check_tensors, layout
from rorqual.convert.gguf_quant import FORMATS, Bytes, Format, encode, written_format
from rorqual.convert.gguf_rope import FREQS, rope_factors
from rorqual.convert.gguf_tokenizer import tokenizer_keys
from rorqual.convert.gguf_write import Planned, header_bytes, padding
from rorqual.convert.merge import whole_weights
from rorqual.convert.modelfile import modelfile_of, modelfile_text
from rorqual.convert.stream import CHUNK, Stored
from rorqual.convert.tensors import our_tensors
from rorqual.core.errors import CheckpointError, RorqualError
from rorqual.core.records import RunDir, write_atomic
from rorqual.data.chat import ChatFormat, load_chat
from rorqual.data.tokenizer import Tokenizer
from rorqual.model.attention import GQAConfig
from rorqual.model.load.find import family_for
from rorqual.model.load.names import SCALE, NameEntry, shown
from rorqual.model.load.run import FP8, read_model_config
from rorqual.ops.quant import BLOCK, dequantize_blocks

Progress = Callable[[int, int, str], None]
"""A progress callback. The arguments are the bytes done, the total bytes, and the name of the current tensor."""

_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, FP8: torch.float8_e4m3fn}
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}  # llama.cpp's `general.file_type`
_LARGEST = {"F16": 65504.0, "Q8_0": 65504.0 * 127, "Q4_0": 65504.0 * 8}
"""The largest magnitude that each type can represent. Each of these types stores its values or its block scales in fp16, so the
range of fp16 sets the limit."""


@dataclass(frozen=True)
class _Source:
    """The source of an export.

    `stored` holds the tensors of the run. `places` maps the name of each Hugging Face tensor to (`NameEntry`, position).
    The run's tensor that the entry names consists of equal parts. The part at this position is the Hugging Face tensor.
    `computed` holds the tensors that exist only in GGUF.
    """

    stored: Mapping[str, Stored]
    places: Mapping[str, tuple[NameEntry, int]]
    layout: GGUFLayout
    where: str
    computed: Mapping[str, Tensor]

    def rows(self, published: str, start: int, stop: int) -> Tensor:
        """Return rows `start` to `stop - 1` of a Hugging Face tensor as [rows, columns].

        A vector is returned as one column. FP8 is dequantised to fp32.
        """
        entry, _ = self.places[published]
        if entry.internal + SCALE in self.stored:
            begin, end = start // BLOCK * BLOCK, -(-stop // BLOCK) * BLOCK
            scales = self._slice(published, begin // BLOCK, end // BLOCK, SCALE)
            quantised = self._slice(published, begin, min(end, self.layout.published[published][0]))
            values = dequantize_blocks(quantised, scales)[start - begin : stop - begin]
        else:
            values = self._slice(published, start, stop)
        if not bool(values.isfinite().all()):
            raise CheckpointError(
                f"tensor '{entry.internal}' holds NaN or infinity",
                where=self.where,
                remedy="Export an earlier checkpoint.",
            )
        return values

    def _slice(self, published: str, start: int, stop: int, suffix: str = "") -> Tensor:
        """Return rows of a Hugging Face tensor as stored, or rows of its FP8 scales if `suffix` is `SCALE`."""
        entry, position = self.places[published]
        shape = self.layout.published[published]
        if suffix:
            shape = tuple(-(-size // BLOCK) for size in shape)
        part = self.stored[entry.internal + suffix].part(position, len(entry.published), shape)
        size = part.size // shape[0]
        rows = replace(part, shape=(stop - start, *shape[1:]), begin=part.begin + start * size)
        data = bytearray().join(rows.chunks())
        return torch.frombuffer(data, dtype=_TYPES[part.dtype]).reshape(stop - start, -1)


def export_gguf(run: RunDir, dst: Path, *, dtype: str, progress: Progress) -> tuple[str, ...]:
    """Export the newest complete checkpoint of a run as the GGUF file `dst`. `dtype` is F32, F16, BF16, Q8_0 or Q4_0.

    Vectors, the router, and tensors whose row length is not a multiple of 32 stay F32. With Q4_0, the embedding and the head
    are Q8_0. Prediction modules (MTP) are omitted, because llama.cpp does not use them. The file appears only when it is
    complete. A Modelfile for Ollama is written beside it. Returns notes on omitted MTP modules, on matrices that stay F32 because
    of their row length, on Q8_0 tensors in a Q4_0 file, and on what the Modelfile leaves out.
    """
    format_ = written_format(dtype)
    for file in (dst, modelfile_of(dst)):
        if file.exists():
            raise CheckpointError(
                "the file already exists", where=str(file), remedy="Choose another name, or delete the file."
            )
    config, tokenizer = read_model_config(run), Tokenizer.load(run.tokenizer_file)
    family = family_for(config)
    data = family.config_to_hf(config)
    architecture = architecture_for(data)
    layout_ = layout(config, family.name_map(config), architecture)
    weights = whole_weights(run)
    stored = _exported(our_tensors(weights, config), layout_, str(weights))
    places = {
        entry.published[index]: (entry, position)
        for entry in layout_.entries
        for position, index in enumerate(entry.order())
    }
    header = {f"{architecture}.{name}": value for name, value in keys_for(data, architecture).items()}
    chat = load_chat(run, tokenizer)
    header |= tokenizer_keys(tokenizer, config.vocab_size) | _special_keys(chat)
    modelfile, left_out = modelfile_text(run, chat, dst.name, config.max_position_embeddings)
    header |= {
        "general.architecture": architecture,
        "general.name": run.path.resolve().name,
        "general.file_type": _FILE_TYPES[format_.name],
    }
    header["general.quantization_version"] = 2
    formats = {name: _format(name, shape, format_) for name, shape in layout_.gguf.items()}
    attention = config.stages[0].attention
    factors = rope_factors(attention.rope, attention.head_dim) if isinstance(attention, GQAConfig) else None
    computed = {} if factors is None else {FREQS: factors}
    _write(dst, header, formats, _Source(stored, places, layout_, str(weights), computed), progress)
    write_atomic(modelfile_of(dst), modelfile.encode())
    return _notes(config.num_nextn_predict_layers, formats, layout_.gguf, format_) + left_out


def _notes(modules: int, formats: Mapping[str, Format], shapes: Mapping[str, Shape], wanted: Format) -> tuple[str, ...]:
    partial = [name for name, shape in shapes.items() if len(shape) > 1 and shape[-1] % wanted.block]
    notes = [f"{modules} prediction module(s) (MTP) omitted: llama.cpp does not use them"] * bool(modules)
    notes += [
        f"{len(partial)} tensors in F32: their rows are not whole blocks of {wanted.block}: {shown(partial)}"
    ] * bool(partial)
    larger = [name for name, format_ in formats.items() if wanted.name == "Q4_0" and format_.name == "Q8_0"]
    notes += [f"{shown(larger)} in Q8_0: 4 bits would lose too much quality for the saved space"] * bool(larger)
    return tuple(notes)


def _exported(stored: Mapping[str, Stored], layout_: GGUFLayout, where: str) -> dict[str, Stored]:
    """Return the run tensors to export, without prediction modules. Raises CheckpointError for a wrong name, shape or dtype."""
    tensors = {name: tensor for name, tensor in stored.items() if not name.startswith("mtp.")}
    scaled = [name for name, tensor in tensors.items() if tensor.dtype == FP8]
    entries = {entry.internal: entry.scales() for entry in layout_.entries}
    wanted = dict(layout_.internal)
    for name in scaled:
        if name in entries:
            shapes = [tuple(-(-n // BLOCK) for n in layout_.published[part]) for part in _published(layout_, name)]
            wanted[name + SCALE] = entries[name].shape(shapes)
    check_tensors({name: tensor.shape for name, tensor in tensors.items()}, wanted, where)
    unsupported = [name for name, tensor in tensors.items() if tensor.dtype not in _TYPES]
    if unsupported:
        name = unsupported[0]
        raise CheckpointError(
            f"tensor '{name}' has the type {tensors[name].dtype}, which export does not support",
            where=where,
            remedy=f"Supported types: {', '.join(_TYPES)}.",
        )
    return tensors


def _published(layout_: GGUFLayout, name: str) -> tuple[str, ...]:
    return next(entry.published for entry in layout_.entries if entry.internal == name)


def _format(name: str, shape: tuple[int, ...], wanted: Format) -> Format:
    """Return the GGUF type of an exported tensor, given the requested type `wanted`."""
    if len(shape) == 1 or name.endswith("ffn_gate_inp.weight") or shape[-1] % wanted.block:
        return FORMATS["F32"]
    if wanted.name == "Q4_0" and name in ("token_embd.weight", "output.weight"):
        return FORMATS["Q8_0"]
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


def _write(
    dst: Path, header: Mapping[str, Any], formats: Mapping[str, Format], source: _Source, progress: Progress
) -> None:
    temporary = beside(dst)
    tensors = [Planned(name, format_, source.layout.gguf[name]) for name, format_ in formats.items()]
    tensors += [Planned(name, FORMATS["F32"], tuple(tensor.shape)) for name, tensor in source.computed.items()]
    pieces, done, total = source.layout.of_gguf(), 0, sum(tensor.size for tensor in tensors)
    try:
        dst.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(header_bytes(header, tensors))
            for tensor in tensors:
                progress(done, total, tensor.name)
                if tensor.name in source.computed:
                    file.write(encode(source.computed[tensor.name], tensor.format).data)
                for piece in pieces.get(tensor.name, ()):
                    for data in _encoded(source, piece, tensor.format):
                        file.write(data.data)
                file.write(padding(tensor.size))
                done += tensor.size
            progress(done, total, "")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, dst)
    except OSError as error:
        raise RorqualError(
            f"cannot write: {error.strerror}", where=str(dst), remedy="Free disk space or choose another folder."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _encoded(source: _Source, piece: RowRange, format_: Format) -> Iterator[Bytes]:
    """Yield the encoded bytes of a range of rows in slices."""
    columns = int(np.prod(source.layout.published[piece.published][1:], dtype=np.int64))
    for begin, end in piece.steps(max(CHUNK // (4 * columns), 1)):
        values = piece.to_gguf(source.rows(piece.published, piece.start + begin, piece.start + end))
        limit = _LARGEST.get(format_.name)
        if limit is not None and float(values.abs().max()) > limit:
            raise CheckpointError(
                f"tensor '{piece.published}' has a value of {float(values.abs().max()):.3g}, "
                f"more than {format_.name} can represent",
                where=source.where,
                remedy="Export the run with dtype=bfloat16 or dtype=float32.",
            )
        yield encode(values, format_)
