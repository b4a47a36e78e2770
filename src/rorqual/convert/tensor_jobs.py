"""Plans for the import and export of tensors. A plan lists the stored tensors from which each output tensor is built.

Planning reads only the headers of the tensor files.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch

from rorqual.convert.cast import TensorPiece, check_scale
from rorqual.convert.safetensors_slices import FP8, TYPES, Bytes, Progress, StoredTensor, TensorSpec, read_header
from rorqual.core.errors import CheckpointError
from rorqual.model.config import ModelConfig
from rorqual.model.ffn import map_older_names
from rorqual.model.load.names import INDEXER, SCALE, NameEntry, NameMap, find_differences, list_first_names
from rorqual.model.meta_device import build_on_meta_device
from rorqual.ops.quant import block_counts

DType = Literal["keep", "float32", "bfloat16", "float16", "fp8"]
STORED_AS: Mapping[str, str] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
ALWAYS_FP32 = ("e_score_correction_bias",)
"""Name suffixes of tensors that always stay fp32. A router bias in bf16 would select different experts (transformers#42580)."""
_PROJECTION = re.compile(r"(?<!eh)(?<!weights)_proj(_with_mqa)?\.weight$|\.indexer\.(wq_b|wk)\.weight$")
"""The tensors that are FP8 in the published DeepSeek-V3 and V3.2: all projections of attention, dense FFNs and experts.

Embedding, head, gate, norms, eh_proj and the indexer's weights_proj are not FP8.
"""
MISMATCH = "The config does not belong to these weights, or a file is damaged: download both again."

NO_MTP = "These weights have no MTP module (transformers does not save it): set num_nextn_predict_layers to 0 in config.json."
NO_INDEXER = (
    "These weights have no indexer: use the config.json of the dense model (model_type deepseek_v3, no index_ keys), "
    "and add indexers with `rorqual sparsify`."
)


class TensorPart(Protocol):
    """A part of the values of an output tensor."""

    def chunks(self, dtype: str) -> Iterator[Bytes]:
        """Yield the values of the part as bytes of the dtype `dtype`."""


@dataclass(frozen=True)
class TensorJob:
    """A tensor to write. The bytes of the tensor are the values of `pieces`, converted to the dtype of `spec` and
    concatenated."""

    spec: TensorSpec
    pieces: tuple[TensorPart, ...]

    def chunks(self) -> Iterator[Bytes]:
        """Yield the bytes of the output tensor in order."""
        for piece in self.pieces:
            yield from piece.chunks(self.spec.dtype)


class CountedChunks:
    """A source of tensor bytes for `write_tensors` that reports the progress of all tensor jobs."""

    def __init__(self, jobs: Sequence[TensorJob], progress: Progress) -> None:
        self._jobs = {job.spec.name: job for job in jobs}
        self._progress = progress
        self.done, self.total = 0, sum(job.spec.n_bytes for job in jobs)

    def __call__(self, spec: TensorSpec) -> Iterator[Bytes]:
        for chunk in self._jobs[spec.name].chunks():
            yield chunk
            self.add(chunk.size, spec.name)

    def add(self, size: int, name: str) -> None:
        """Report `size` further bytes of the tensor `name` as done."""
        self.done += size
        self._progress(self.done, self.total, name)


def target_dtype(name: str, dtype: DType, stored: str) -> str:
    """Return the output dtype of the Hugging Face tensor `name`, given the requested dtype `dtype` and the stored dtype
    `stored`."""
    if dtype == "keep":
        return stored
    if name.endswith(ALWAYS_FP32):
        return "F32"
    return STORED_AS["bfloat16" if dtype == "fp8" else dtype]


def shapes_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in the state dict of a model, without allocating memory for the tensors."""
    return {name: tuple(tensor.shape) for name, tensor in build_on_meta_device(config).state_dict().items()}


def read_run_tensors(file: Path, config: ModelConfig) -> dict[str, StoredTensor]:
    """Return the tensors of the weights file of a run by name. Tensor names that older versions of Rorqual wrote are translated
    to current names."""
    older = map_older_names(shapes_of(config))
    return {older.get(name, name): tensor for name, tensor in read_header(file).items()}


def import_jobs(
    names: NameMap, config: ModelConfig, tensors: Mapping[str, StoredTensor], dtype: DType, where: str
) -> list[TensorJob]:
    """Plan an import: return the jobs that write the tensors of a run from Hugging Face tensors.

    Raises CheckpointError if a name, shape, dtype or scale in the headers is wrong.
    """
    _check_names(names, tensors, where)
    wanted = shapes_of(config)
    jobs: list[TensorJob] = []
    problems: list[str] = []
    for entry in names.entries:
        parts = [tensors[name] for name in entry.published]
        scales = [tensors.get(name) for name in entry.scales_entry().published]
        for part, scale in zip(parts, scales):
            _check_type(part, scale)
        shape = _shape(entry, parts, where)
        if shape != wanted[entry.internal]:
            problems.append(
                f"{entry.published[0]} {parts[0].shape} makes {entry.internal} {shape}, not {wanted[entry.internal]}"
            )
            continue
        jobs += _import_entry(entry, shape, dtype, parts, scales)
    if problems:
        raise CheckpointError(
            f"the weights do not fit the config: {list_first_names(problems)}", where=where, remedy=MISMATCH
        )
    return jobs


def _check_names(names: NameMap, tensors: Collection[str], where: str) -> None:
    try:
        names.check(tensors)
    except CheckpointError as error:
        mtp = {entry.published[0] for entry in names.entries if entry.internal.startswith("mtp.")}
        indexer = {entry.published[0] for entry in names.entries if INDEXER in entry.internal}
        remedy = NO_INDEXER if indexer and not indexer.intersection(tensors) else error.remedy
        remedy = NO_MTP if mtp and not mtp.intersection(tensors) else remedy
        raise CheckpointError(error.what, where=where, remedy=remedy) from None


def _shape(entry: NameEntry, parts: Sequence[StoredTensor], where: str) -> tuple[int, ...]:
    try:
        return entry.internal_shape([part.shape for part in parts])
    except CheckpointError as error:
        raise CheckpointError(error.what, where=where, remedy=MISMATCH) from None


def _check_type(tensor: StoredTensor, scale: StoredTensor | None) -> None:
    if tensor.dtype not in TYPES:
        raise CheckpointError(
            f"{tensor.name} has type {tensor.dtype}, not one of {', '.join(TYPES)}",
            where=str(tensor.file),
            remedy="Use an unquantised checkpoint, or one in FP8 (E4M3).",
        )
    if (tensor.dtype == FP8) != (scale is not None):
        raise CheckpointError(
            f"{tensor.name} is {tensor.dtype} {'without' if scale is None else 'with'} scales ({tensor.name}{SCALE})",
            where=str(tensor.file),
            remedy="FP8 tensors need scales, and no other tensors have scales: download the checkpoint again.",
        )
    if scale is not None:
        check_scale(tensor, scale)


def _import_entry(
    entry: NameEntry,
    shape: tuple[int, ...],
    dtype: DType,
    parts: Sequence[StoredTensor],
    scales: Sequence[StoredTensor | None],
) -> Iterator[TensorJob]:
    kinds = sorted({target_dtype(part.name, dtype, part.dtype) for part in parts})
    scale_kinds = sorted({scale.dtype for scale in scales if scale is not None and dtype == "keep"})
    if len(kinds) > 1 or len(scale_kinds) > 1:
        raise CheckpointError(
            f"{entry.published[0]} and the tensors stacked with it must have one type, as must their scales, but the types are "
            f"{', '.join([*kinds, *scale_kinds])}",
            where=str(parts[0].file),
            remedy="Convert the weights to one type: dtype=bfloat16 or dtype=float32.",
        )
    order = entry.storage_order()
    ordered = [scales[index] for index in order]
    kept = [scale for scale in ordered if scale is not None and dtype == "keep"]
    if not kept:
        yield TensorJob(
            TensorSpec(entry.internal, kinds[0], shape), tuple(TensorPiece(parts[i], scales[i]) for i in order)
        )
        return
    yield TensorJob(TensorSpec(entry.internal, kinds[0], shape), tuple(TensorPiece(parts[i]) for i in order))
    scale_entry = entry.scales_entry()
    scale_shape = scale_entry.internal_shape([scale.shape for scale in scales if scale is not None])
    yield TensorJob(
        TensorSpec(scale_entry.internal, kept[0].dtype, scale_shape), tuple(TensorPiece(scale) for scale in kept)
    )


def find_copied_tensors(names: NameMap, tensors: Mapping[str, StoredTensor], where: str) -> list[str]:
    """Return the names of tensors in a checkpoint that are copies of other tensors, such as a tied head.

    All copied tensors are read and compared with their originals. Raises CheckpointError if a copied tensor differs from its
    original.
    """
    original = {entry.internal: entry.published[0] for entry in names.entries}
    present = [name for name in names.copies if name in tensors]
    for name in present:
        copy, first = tensors[name], tensors[original[names.copies[name]]]
        same = (copy.dtype, copy.shape) == (first.dtype, first.shape)
        if not same or any(_bytes(copy, *rows) != _bytes(first, *rows) for rows in copy.slices()):
            raise CheckpointError(
                f"{name} must be a copy of {first.name}, but differs from it",
                where=where,
                remedy="The config declares shared weights. Use the config that belongs to this checkpoint.",
            )
    return present


def _bytes(stored: StoredTensor, start: int, stop: int) -> bytes:
    return stored.rows(start, stop).view(torch.uint8).numpy().tobytes()


def run_parts_by_hf_name(
    names: NameMap, config: ModelConfig, tensors: Mapping[str, StoredTensor], where: str
) -> dict[str, TensorPiece]:
    """Return, for each Hugging Face tensor, the part of a run's tensor that has the same values.

    Raises CheckpointError for missing tensors, unexpected tensors and wrong shapes.
    """
    wanted = shapes_of(config)
    scaled = {
        entry.internal: entry.scales_entry().internal
        for entry in names.entries
        if entry.scales_entry().internal in tensors
    }
    expected = wanted | {name: tensors[name].shape for name in scaled.values()}
    problems = find_differences({name: tensor.shape for name, tensor in tensors.items()}, expected)
    if problems:
        raise CheckpointError(
            f"the checkpoint does not fit the model in run.yaml: {list_first_names(problems)}",
            where=where,
            remedy="Use the run.yaml that belongs to these weights.",
        )
    pieces: dict[str, TensorPiece] = {}
    for entry in names.entries:
        scale = tensors.get(scaled.get(entry.internal, ""))
        for place, index in enumerate(entry.storage_order()):
            part = _published_part(tensors[entry.internal], entry, place)
            part_scale = None if scale is None else _published_part(scale, entry, place)
            _check_type(part, part_scale)
            pieces[entry.published[index]] = TensorPiece(part, part_scale)
    return pieces


def export_jobs(
    names: NameMap, pieces: Mapping[str, TensorPiece], dtype: DType, copies: Collection[str]
) -> list[TensorJob]:
    """Plan an export: return the jobs that write the Hugging Face tensors, including `copies`, from the `run_parts_by_hf_name` of a run."""
    original = {entry.internal: entry.published[0] for entry in names.entries}
    copied = {name: pieces[original[names.copies[name]]] for name in copies}
    return [job for name, piece in (*pieces.items(), *copied.items()) for job in _export_tensor(name, piece, dtype)]


def _published_part(stored: StoredTensor, entry: NameEntry, place: int) -> StoredTensor:
    """Return one part of `stored`, a tensor of a run. The part is the Hugging Face tensor with the index
    `entry.storage_order()[place]`."""
    return stored.equal_part(place, len(entry.published), entry.published_shape(stored.shape))


def _export_tensor(name: str, piece: TensorPiece, dtype: DType) -> Iterator[TensorJob]:
    part, scale, shape = piece.tensor, piece.scale, piece.tensor.shape
    if dtype in ("keep", "fp8") and scale is not None:
        yield TensorJob(TensorSpec(name, part.dtype, shape), (TensorPiece(part),))
        yield TensorJob(TensorSpec(name + SCALE, scale.dtype, scale.shape), (TensorPiece(scale),))
    elif dtype == "fp8" and len(shape) == 2 and _PROJECTION.search(name):
        yield TensorJob(TensorSpec(name, FP8, shape), (TensorPiece(part),))
        yield TensorJob(TensorSpec(name + SCALE, "F32", block_counts(shape)), (TensorPiece(part, want="scales"),))
    else:
        yield TensorJob(TensorSpec(name, target_dtype(name, dtype, part.dtype), shape), (piece,))
