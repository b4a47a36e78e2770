"""The mapping between the Hugging Face tensors of a model family and the tensors of llama.cpp.

Besides the tensor names, three properties of the tensors differ in GGUF:

- The experts of a layer are stacked into one tensor.
- For the architecture `llama`, the rows of each query and key head are reordered, because ggml's RoPE rotates adjacent pairs
  and the RoPE of transformers rotates the two halves of a head.
- For `deepseek2`, `kv_b_proj` is split into two tensors: W^UK of each head, transposed for the absorbed form, and W^UV.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from torch import Tensor

from rorqual.convert.tensor_jobs import shapes_of
from rorqual.core.errors import CheckpointError
from rorqual.model.attention import GQAConfig, MLAConfig
from rorqual.model.config import ModelConfig
from rorqual.model.load.names import NameEntry, NameMap, find_differences, list_first_names

Shape = tuple[int, ...]
Form = Literal["same", "permuted", "transposed"]

_OUTSIDE: Mapping[str, str] = MappingProxyType(
    {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
)
_LAYER: Mapping[str, str] = MappingProxyType(
    {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "self_attn.q_a_proj": "attn_q_a",
        "self_attn.q_a_layernorm": "attn_q_a_norm",
        "self_attn.q_b_proj": "attn_q_b",
        "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
        "self_attn.kv_a_layernorm": "attn_kv_a_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "mlp.gate": "ffn_gate_inp",
        "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
        "mlp.shared_experts.up_proj": "ffn_up_shexp",
        "mlp.shared_experts.down_proj": "ffn_down_shexp",
    }
)
_LAYER_NAME = re.compile(r"model\.layers\.(\d+)\.(.+)")
_EXPERT_NAME = re.compile(r"mlp\.experts\.(\d+)\.(gate|up|down)_proj\.weight")


@dataclass(frozen=True)
class RowRangeMapping:
    """A mapping between a range of rows of a Hugging Face tensor and a range of rows of a GGUF tensor.

    Rows `start` to `start + rows - 1` of the Hugging Face tensor `published` correspond to `gguf_rows` rows of the GGUF tensor
    `gguf`, starting at row `gguf_start`. The form "permuted" interleaves the two halves of each head. A head has `head` rows.
    The form "transposed" swaps rows and columns, so `gguf_rows` may differ from `rows`. A vector [n] is treated as a matrix [n,
    1].
    """

    published: str
    start: int
    rows: int
    gguf: str
    gguf_start: int
    gguf_rows: int
    form: Form = "same"
    head: int = 1

    def to_gguf(self, values: Tensor) -> Tensor:
        """Convert rows [n, columns] of the Hugging Face tensor to rows of the GGUF tensor."""
        if self.form == "transposed":
            return values.T
        if self.form == "permuted":
            return values.unflatten(0, (-1, 2, self.head // 2)).transpose(1, 2).flatten(0, 2)
        return values

    def from_gguf(self, values: Tensor) -> Tensor:
        """Convert rows of the GGUF tensor to rows of the Hugging Face tensor. The method `from_gguf` is the inverse of
        `to_gguf`."""
        if self.form == "transposed":
            return values.T
        if self.form == "permuted":
            return values.unflatten(0, (-1, self.head // 2, 2)).transpose(1, 2).flatten(0, 2)
        return values

    def row_steps(self, size: int) -> Iterator[tuple[int, int]]:
        """Yield ranges (start, stop) of about `size` Hugging Face rows that can be converted separately."""
        step = self.rows if self.form == "transposed" else max(size // self.head, 1) * self.head
        for begin in range(0, self.rows, step):
            yield begin, min(begin + step, self.rows)


@dataclass(frozen=True)
class GGUFLayout:
    """The tensors of a model under three naming schemes: of a run, of Hugging Face and of GGUF.

    `internal` holds the shapes of a run's tensors, and `gguf` holds the shapes of the GGUF tensors. `entries` maps a run's
    tensors to Hugging Face tensors, and `pieces` maps Hugging Face tensors to GGUF tensors.
    """

    entries: tuple[NameEntry, ...]
    internal: Mapping[str, Shape]
    pieces: tuple[RowRangeMapping, ...]
    gguf: Mapping[str, Shape]

    def by_published_tensor(self) -> dict[str, list[RowRangeMapping]]:
        """Return the row range mappings of each Hugging Face tensor, in the order of the tensor's rows."""
        return _group_by_tensor((piece.published, piece.start, piece) for piece in self.pieces)

    def by_gguf_tensor(self) -> dict[str, list[RowRangeMapping]]:
        """Return the row range mappings of each GGUF tensor, in the order of the tensor's rows."""
        return _group_by_tensor((piece.gguf, piece.gguf_start, piece) for piece in self.pieces)


def _group_by_tensor(items: Iterator[tuple[str, int, RowRangeMapping]]) -> dict[str, list[RowRangeMapping]]:
    groups: dict[str, list[RowRangeMapping]] = {}
    for name, _, piece in sorted(items, key=lambda item: item[:2]):
        groups.setdefault(name, []).append(piece)
    return groups


def layout(config: ModelConfig, names: NameMap, architecture: str, *, joined_kv: bool = False) -> GGUFLayout:
    """Return the tensor layout of a model. Prediction modules (MTP) are omitted, because llama.cpp does not use them.

    `joined_kv` selects the layout of older `deepseek2` files, in which `kv_b_proj` is a single tensor.
    """
    ours = shapes_of(config.model_copy(update={"num_nextn_predict_layers": 0}))
    entries = tuple(entry for entry in names.entries if entry.internal in ours)
    theirs = {name: entry.published_shape(ours[entry.internal]) for entry in entries for name in entry.published}
    pieces: list[RowRangeMapping] = []
    for name, shape in theirs.items():
        pieces += _row_ranges(config, name, shape, architecture, joined_kv)
    return GGUFLayout(entries, ours, tuple(pieces), _gguf_shapes(pieces, theirs))


def _row_ranges(
    config: ModelConfig, name: str, shape: Shape, architecture: str, joined_kv: bool
) -> Iterator[RowRangeMapping]:
    rows = shape[0]
    if name in _OUTSIDE:
        yield RowRangeMapping(name, 0, rows, _OUTSIDE[name], 0, rows)
        return
    match = _LAYER_NAME.fullmatch(name)
    if match is None:
        raise CheckpointError(f"GGUF has no name for tensor '{name}'", where="export")
    block, suffix = f"blk.{match[1]}", match[2]
    attention = config.layers[int(match[1])].attention
    expert = _EXPERT_NAME.fullmatch(suffix)
    if expert is not None:
        yield RowRangeMapping(name, 0, rows, f"{block}.ffn_{expert[2]}_exps.weight", int(expert[1]) * rows, rows)
    elif suffix == "mlp.gate.e_score_correction_bias":
        yield RowRangeMapping(name, 0, rows, f"{block}.exp_probs_b.bias", 0, rows)
    elif suffix == "self_attn.kv_b_proj.weight" and isinstance(attention, MLAConfig):
        if joined_kv:
            yield RowRangeMapping(name, 0, rows, f"{block}.attn_kv_b.weight", 0, rows)
        else:
            yield from _split_kv(name, block, attention)
    else:
        base, _, kind = suffix.rpartition(".")
        if base not in _LAYER:
            raise CheckpointError(f"GGUF has no name for tensor '{name}'", where="export")
        permuted = architecture == "llama" and base in ("self_attn.q_proj", "self_attn.k_proj")
        form: Form = "permuted" if permuted else "same"
        head = attention.head_dim if permuted and isinstance(attention, GQAConfig) else 1
        yield RowRangeMapping(name, 0, rows, f"{block}.{_LAYER[base]}.{kind}", 0, rows, form, head)


def _split_kv(name: str, block: str, attention: MLAConfig) -> Iterator[RowRangeMapping]:
    nope, value, rank = attention.qk_nope_head_dim, attention.v_head_dim, attention.kv_lora_rank
    for head in range(attention.num_attention_heads):
        at = head * (nope + value)
        yield RowRangeMapping(name, at, nope, f"{block}.attn_k_b.weight", head * rank, rank, "transposed")
        yield RowRangeMapping(name, at + nope, value, f"{block}.attn_v_b.weight", head * value, value)


def _gguf_shapes(pieces: list[RowRangeMapping], theirs: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return the shapes of the GGUF tensors, outermost dimension first. Stacked tensors are [experts or heads, rows,
    columns]."""
    shapes: dict[str, Shape] = {}
    for piece in pieces:
        columns = (piece.rows,) if piece.form == "transposed" else theirs[piece.published][1:]
        if re.search(r"_exps\.|attn_[kv]_b\.", piece.gguf):
            count = shapes.get(piece.gguf, (0,))[0]
            shapes[piece.gguf] = (count + 1, piece.gguf_rows, *columns)
        else:
            shapes[piece.gguf] = (piece.gguf_rows, *columns)
    return shapes


def check_tensors(found: Mapping[str, Shape], wanted: Mapping[str, Shape], where: str) -> None:
    """Compare the tensors `found` with the tensors `wanted`. Raises CheckpointError that lists missing tensors, unexpected
    tensors and wrong shapes."""
    if problems := find_differences(found, wanted):
        raise CheckpointError(
            list_first_names(problems),
            where=where,
            remedy="Config and tensors describe different models: download the file again, or use another file.",
        )
