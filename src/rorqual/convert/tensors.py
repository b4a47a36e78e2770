"""Plan which stored tensors make up each written tensor, for import and export. Only headers are read."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rorqual.convert.cast import FP8, TYPES, TensorPiece, check_scale
from rorqual.convert.stream import Progress, Spec, Stored, read_header
from rorqual.core.errors import CheckpointError, ConfigError
from rorqual.model.config import ModelConfig
from rorqual.model.ffn import older_names
from rorqual.model.load.names import SCALE, NameEntry, NameMap, shown
from rorqual.model.skeleton import skeleton
from rorqual.ops.quant import BLOCK, blocks

DType = Literal["keep", "float32", "bfloat16", "float16", "fp8"]
STORED_AS: Mapping[str, str] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
ALWAYS_FP32 = ("e_score_correction_bias",)
"""Suffixes of tensors that always stay fp32. In bf16 the router's bias selects other experts (transformers#42580)."""
_PROJECTION = re.compile(r"(?<!eh)_proj(_with_mqa)?\.weight$")
"""The tensors that DeepSeek-V3 publishes in FP8: every projection of attention, networks and experts.

Embedding, head, gate, norms and eh_proj are not among them.
"""
MEND = "The config does not belong to these weights, or the file is damaged: download both again."

NO_MTP = "These weights have no MTP module (transformers does not save it): set num_nextn_predict_layers to 0 in config.json."


@dataclass(frozen=True)
class TensorJob:
    """A tensor to write: the concatenated bytes of its pieces in its type."""

    spec: Spec
    pieces: tuple[TensorPiece, ...]

    def chunks(self) -> Iterator[bytearray | memoryview]:
        """Yield the tensor's bytes in order."""
        for piece in self.pieces:
            yield from piece.chunks(self.spec.dtype)


class CountedChunks:
    """Yields the chunks of each job for `write_tensors` and reports progress."""

    def __init__(self, jobs: Sequence[TensorJob], progress: Progress) -> None:
        self._jobs = {job.spec.name: job for job in jobs}
        self._progress = progress
        self.done, self.total = 0, sum(job.spec.size for job in jobs)

    def __call__(self, spec: Spec) -> Iterator[bytearray | memoryview]:
        for chunk in self._jobs[spec.name].chunks():
            yield chunk
            self.add(len(chunk), spec.name)

    def add(self, size: int, name: str) -> None:
        """Add `size` bytes to the progress."""
        self.done += size
        self._progress(self.done, self.total, name)


def target(name: str, dtype: DType, stored: str) -> str:
    """Return the type in which to write the published tensor `name`, which is stored as `stored`."""
    if dtype == "keep":
        return stored
    if name.endswith(ALWAYS_FP32):
        return "F32"
    return STORED_AS["bfloat16" if dtype == "fp8" else dtype]


def shapes_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a model, by our names, without allocating memory."""
    return {name: tuple(tensor.shape) for name, tensor in skeleton(config).state_dict().items()}


def our_tensors(file: Path, config: ModelConfig) -> dict[str, Stored]:
    """Return the tensors of a run's weights by our names. Names of older runs are translated."""
    older = older_names(shapes_of(config))
    return {older.get(name, name): tensor for name, tensor in read_header(file).items()}


def import_jobs(
    names: NameMap, config: ModelConfig, tensors: Mapping[str, Stored], dtype: DType, where: str
) -> list[TensorJob]:
    """Return the jobs that write our tensors from the published ones.

    Raises CheckpointError for wrong names, shapes, types or scales in the headers.
    """
    _checked(names, tensors, where)
    wanted = shapes_of(config)
    jobs: list[TensorJob] = []
    problems: list[str] = []
    for entry in names.entries:
        parts = [tensors[name] for name in entry.theirs]
        scales = [tensors.get(name) for name in entry.scales().theirs]
        for part, scale in zip(parts, scales):
            _check_type(part, scale)
        shape = _shape(entry, parts, where)
        if shape != wanted[entry.ours]:
            problems.append(f"{entry.theirs[0]} {parts[0].shape} makes {entry.ours} {shape}, not {wanted[entry.ours]}")
            continue
        jobs += _import_entry(entry, shape, dtype, parts, scales)
    if problems:
        raise CheckpointError(f"the weights do not fit the config: {shown(problems)}", where=where, remedy=MEND)
    return jobs


def _checked(names: NameMap, tensors: Collection[str], where: str) -> None:
    try:
        names.check(tensors)
    except CheckpointError as error:
        alone = {entry.theirs[0] for entry in names.entries if entry.ours.startswith("mtp.")}
        remedy = NO_MTP if alone and not alone.intersection(tensors) else error.remedy
        raise CheckpointError(error.what, where=where, remedy=remedy) from None


def _shape(entry: NameEntry, parts: Sequence[Stored], where: str) -> tuple[int, ...]:
    try:
        return entry.shape([part.shape for part in parts])
    except CheckpointError as error:
        raise CheckpointError(error.what, where=where, remedy=MEND) from None


def _check_type(tensor: Stored, scale: Stored | None) -> None:
    if tensor.dtype not in TYPES:
        raise CheckpointError(
            f"{tensor.name} has type {tensor.dtype}, not one of {', '.join(TYPES)}",
            where=str(tensor.file),
            remedy="Use a checkpoint in one of these types; other quantisations are not supported.",
        )
    if (tensor.dtype == FP8) != (scale is not None):
        raise CheckpointError(
            f"{tensor.name} is {tensor.dtype} {'without' if scale is None else 'with'} scales ({tensor.name}{SCALE})",
            where=str(tensor.file),
            remedy="Only FP8 tensors have scales: download the checkpoint again.",
        )
    if scale is not None:
        check_scale(tensor, scale)


def _import_entry(
    entry: NameEntry, shape: tuple[int, ...], dtype: DType, parts: Sequence[Stored], scales: Sequence[Stored | None]
) -> Iterator[TensorJob]:
    kinds = sorted({target(part.name, dtype, part.dtype) for part in parts})
    if len(kinds) > 1:
        raise CheckpointError(
            f"{entry.theirs[0]} and its siblings have the types {', '.join(kinds)}, but a run stores them in one tensor",
            where=str(parts[0].file),
            remedy="Convert them to one type: dtype=bfloat16 or dtype=float32.",
        )
    order = entry.order()
    whole = [scales[index] for index in order]
    kept = [scale for scale in whole if scale is not None and dtype == "keep"]
    if not kept:
        yield TensorJob(Spec(entry.ours, kinds[0], shape), tuple(TensorPiece(parts[i], scales[i]) for i in order))
        return
    yield TensorJob(Spec(entry.ours, kinds[0], shape), tuple(TensorPiece(parts[i]) for i in order))
    beside = entry.scales()
    scale_shape = beside.shape([scale.shape for scale in scales if scale is not None])
    if len({scale.dtype for scale in kept}) > 1:
        raise CheckpointError(f"{beside.theirs[0]} and its siblings have different types", where=str(kept[0].file))
    yield TensorJob(Spec(beside.ours, kept[0].dtype, scale_shape), tuple(TensorPiece(scale) for scale in kept))


def check_copies(names: NameMap, tensors: Mapping[str, Stored], where: str) -> list[str]:
    """Return the copies in a checkpoint. Read them, and raise CheckpointError if one differs from its original."""
    original = {entry.ours: entry.theirs[0] for entry in names.entries}
    present = [name for name in names.copies if name in tensors]
    for name in present:
        copy, first = tensors[name], tensors[original[names.copies[name]]]
        same = (copy.dtype, copy.shape) == (first.dtype, first.shape)
        if not same or any(a != b for a, b in zip(copy.chunks(), first.chunks(), strict=True)):
            raise CheckpointError(
                f"{name} must be a copy of {first.name}, but differs",
                where=where,
                remedy="This model shares these weights. A checkpoint with separate ones is another model.",
            )
    return present


def export_jobs(
    names: NameMap,
    config: ModelConfig,
    tensors: Mapping[str, Stored],
    dtype: DType,
    copies: Collection[str],
    where: str,
) -> list[TensorJob]:
    """Return the jobs that write the published tensors, including `copies`, from ours.

    Raises CheckpointError for missing or unexpected tensors and wrong shapes.
    """
    wanted = shapes_of(config)
    scaled = {entry.ours: entry.scales().ours for entry in names.entries if entry.scales().ours in tensors}
    missing = [name for name in wanted if name not in tensors]
    extra = [name for name in tensors if name not in wanted and name not in scaled.values()]
    odd = [
        f"{n} {tensors[n].shape}, not {shape}"
        for n, shape in wanted.items()
        if n in tensors and tensors[n].shape != shape
    ]
    problems = [f"missing {n}" for n in missing] + [f"unexpected {n}" for n in extra] + odd
    if problems:
        raise CheckpointError(
            f"the checkpoint does not fit the model in run.yaml: {shown(problems)}",
            where=where,
            remedy="Use the run.yaml that belongs to these weights.",
        )
    jobs: list[TensorJob] = []
    for entry in names.entries:
        scale = tensors.get(scaled.get(entry.ours, ""))
        for place, index in enumerate(entry.order()):
            part = _part(tensors[entry.ours], entry, place)
            beside = None if scale is None else _part(scale, entry, place)
            _check_type(part, beside)
            jobs += _export_tensor(entry.theirs[index], part, beside, dtype)
    by_ours = {entry.ours: entry for entry in names.entries}
    for name in copies:
        jobs += _export_tensor(name, _part(tensors[names.copies[name]], by_ours[names.copies[name]], 0), None, dtype)
    return jobs


def _part(ours: Stored, entry: NameEntry, place: int) -> Stored:
    """Return the bytes of the published tensor at index `place` in our tensor."""
    shape = ours.shape
    if entry.kind == "stack":
        shape = shape[1:]
    elif entry.kind == "pairs":
        shape = (shape[1] // 2, *shape[2:])
    return ours.part(place, len(entry.theirs), shape)


def _export_tensor(name: str, part: Stored, scale: Stored | None, dtype: DType) -> Iterator[TensorJob]:
    shape = part.shape
    if dtype in ("keep", "fp8") and scale is not None:
        yield TensorJob(Spec(name, part.dtype, shape), (TensorPiece(part),))
        yield TensorJob(Spec(name + SCALE, scale.dtype, scale.shape), (TensorPiece(scale),))
    elif dtype == "fp8" and len(shape) == 2 and _PROJECTION.search(name):
        yield TensorJob(Spec(name, FP8, shape), (TensorPiece(part),))
        yield TensorJob(Spec(name + SCALE, "F32", blocks(shape)), (TensorPiece(part, want="scales"),))
    else:
        yield TensorJob(Spec(name, target(name, dtype, part.dtype), shape), (TensorPiece(part, scale),))


def check_quantization(data: object, where: str) -> None:
    """Raise ConfigError for a `quantization_config` other than FP8 in blocks of 128 x 128. None is allowed."""
    if data is None:
        return
    found = data if isinstance(data, dict) else {}
    method, block, fmt = (found.get(key) for key in ("quant_method", "weight_block_size", "fmt"))
    if method != "fp8" or block != [BLOCK, BLOCK] or fmt not in (None, "e4m3"):
        raise ConfigError(
            f"key 'quantization_config' has quant_method {method!r}, weight_block_size {block!r}, fmt {fmt!r}",
            where=where,
            remedy=f"Use a checkpoint in FP8 (E4M3) with one scale per {BLOCK} x {BLOCK} block, or an unquantised one.",
        )
