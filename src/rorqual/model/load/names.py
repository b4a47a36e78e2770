"""Two-way maps between Rorqual's tensors and the tensors of published checkpoints.

Tensors can be converted one at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from rorqual.core.errors import CheckpointError
from rorqual.ops.quant import blocks

SCALE = "_scale_inv"
"""Name suffix of the scales of an FP8 tensor, which has one scale per 128 x 128 block."""
INDEXER = ".indexer."
"""Part of the name of every weight of a lightning indexer."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class NameEntry:
    """A Rorqual tensor `internal` and the published tensors `published` with the same values.

    `kind` describes how `internal` is composed of `published`:

    - "alone": `internal` equals the only published tensor in `published`.
    - "stack": `internal` [n, ...] stacks n published tensors.
    - "pairs": `published` lists 2 n tensors, such as n gate projections and then n up projections. `internal[i]` [2 rows,
      ...] holds the rows of `published[i]`, followed by the rows of `published[n + i]`.
    """

    internal: str
    published: tuple[str, ...]
    kind: Literal["alone", "stack", "pairs"] = "alone"

    def order(self) -> tuple[int, ...]:
        """Return the indices of the tensors in `published`, in the order in which `internal` stores their bytes."""
        if self.kind != "pairs":
            return tuple(range(len(self.published)))
        n = len(self.published) // 2
        return tuple(index + half for index in range(n) for half in (0, n))

    def piece(self, tensor: Tensor, index: int) -> Tensor:
        """Return the view of Rorqual's `tensor` that equals the published tensor `published[index]`."""
        if self.kind == "alone":
            return tensor
        if self.kind == "stack":
            return tensor[index]
        half, row = divmod(index, len(self.published) // 2)
        return tensor[row].chunk(2, dim=0)[half]

    def shape(self, published: Sequence[Shape]) -> Shape:
        """Return the shape of `internal`, given the shapes of `published`. Raises CheckpointError if the shapes of
        `published` differ."""
        first = tuple(published[0])
        unequal = [
            f"{name} {tuple(shape)}"
            for name, shape in zip(self.published, published, strict=True)
            if tuple(shape) != first
        ]
        if unequal:
            raise CheckpointError(
                f"{self.published[0]} {first} cannot be stacked with tensors of other shapes: {shown(unequal)}",
                remedy="The checkpoint is damaged; download it again.",
            )
        if self.kind == "alone":
            return first
        if self.kind == "stack":
            return (len(self.published), *first)
        return (len(self.published) // 2, 2 * first[0], *first[1:])

    def part_shape(self, internal: Shape) -> Shape:
        """Return the shape of each published tensor, given the shape of `internal`."""
        if self.kind == "alone":
            return internal
        return internal[1:] if self.kind == "stack" else (internal[1] // 2, *internal[2:])

    def scales(self) -> NameEntry:
        """Return the `NameEntry` of the FP8 scales of `internal` and `published`.

        In kind "pairs", the two tensors of a pair have separate scales.
        """
        return NameEntry(self.internal + SCALE, tuple(name + SCALE for name in self.published), self.kind)

    def scale_shape(self, shape: Shape) -> Shape:
        """Return the shape of the FP8 scales of `internal`. `shape` is the shape of `internal`."""
        if len(shape) < 2:
            raise CheckpointError(
                f"{self.internal} {shape} has scales, but only matrices can be scaled",
                remedy="Download the checkpoint again.",
            )
        rows, columns = shape[-2:]
        rows = rows // 2 if self.kind == "pairs" else rows
        return self.scales().shape([blocks((rows, columns))] * len(self.published))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Join published tensors, in the order of `published`, into Rorqual's tensor."""
        unequal = [name for name, part in zip(self.published, parts, strict=True) if part.dtype != parts[0].dtype]
        if unequal:
            raise CheckpointError(
                f"{shown(unequal)} and {self.published[0]} have different types, but must be stacked into one tensor",
                remedy="Convert the checkpoint to one type.",
            )
        shape = self.shape([tuple(part.shape) for part in parts])
        if self.kind == "alone":
            return parts[0]
        out = torch.empty(shape, dtype=parts[0].dtype, device=parts[0].device)
        for index, part in enumerate(parts):
            self.piece(out, index).copy_(part)
        return out

    def split(self, tensor: Tensor) -> list[Tensor]:
        """Split Rorqual's tensor into published tensors, in the order of `published`. Each published tensor has its own memory."""
        if self.kind == "alone":
            return [tensor]
        return [self.piece(tensor, index).clone() for index in range(len(self.published))]


def stacked(internal: str, published: Iterable[str]) -> NameEntry:
    """Return an entry of kind "stack": `internal` [n, ...] stacks the tensors `published`."""
    return NameEntry(internal, tuple(published), "stack")


def stacked_pairs(internal: str, first: Iterable[str], second: Iterable[str]) -> NameEntry:
    """Return an entry of kind "pairs": `internal[i]` concatenates `first[i]` and `second[i]` along their first dimension."""
    return NameEntry(internal, (*first, *second), "pairs")


@dataclass(frozen=True)
class NameMap:
    """The `NameEntry` of every tensor of a model.

    `copies` maps the name of each duplicate published tensor to the name of the Rorqual tensor with the same values.
    Export writes all duplicates in `copies`. Import accepts missing duplicates, but raises CheckpointError if a
    duplicate's values differ.
    """

    entries: tuple[NameEntry, ...]
    copies: Mapping[str, str] = field(default_factory=dict)

    def check(self, names: Collection[str]) -> None:
        """Check the names of published tensors. Raises CheckpointError listing missing and unexpected names.

        FP8 scales are optional, but if one tensor of an entry has scales, all tensors of the entry must have them.
        """
        present = set(names)
        scaled = [entry.scales() for entry in self.entries]
        optional = [name for entry in scaled if present.intersection(entry.published) for name in entry.published]
        required = [name for entry in self.entries for name in entry.published] + optional
        _check_names(names, present, required, self.copies)

    def scaled(self, names: Collection[str]) -> NameMap:
        """Return this map plus entries for the FP8 scales in `names`. `names` may be Rorqual's names or published names."""
        present = set(names)
        extra = (entry.scales() for entry in self.entries)
        scales = [entry for entry in extra if entry.internal in present or entry.published[0] in present]
        return NameMap((*self.entries, *scales), self.copies)

    def to_hf(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert Rorqual's tensors to published tensors. Raises CheckpointError listing missing and unexpected names."""
        entries = self.scaled(state).entries
        _check_names(state, set(state), [entry.internal for entry in entries], ())
        out: dict[str, Tensor] = {}
        for entry in entries:
            out |= zip(entry.published, entry.split(state[entry.internal]), strict=True)
        return out | {name: state[internal].clone() for name, internal in self.copies.items()}

    def from_hf(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert published tensors to Rorqual's tensors.

        Raises CheckpointError for missing or unexpected names, unequal shapes, and duplicates (`copies`) with different
        values.
        """
        self.check(state)
        entries = self.scaled(state).entries
        out = {entry.internal: entry.join([state[name] for name in entry.published]) for entry in entries}
        for name, tensor in out.items():
            if (tensor.dtype == torch.float8_e4m3fn) != (name + SCALE in out):
                raise CheckpointError(
                    f"{name} is {tensor.dtype} {'with' if name + SCALE in out else 'without'} scales (weight{SCALE})",
                    remedy="FP8 tensors, and no others, must have scales. Download the checkpoint again.",
                )
        for name, internal in self.copies.items():
            if name in state and not torch.equal(state[name], out[internal]):
                raise CheckpointError(
                    f"{name} must be a copy of the main model's {internal}, but differs",
                    remedy="Rorqual stores copied tensors once, so it cannot load a checkpoint whose copies differ.",
                )
        return out


def shown(names: Sequence[str]) -> str:
    """Return the first twelve names as text, followed by the number of omitted names."""
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _check_names(names: Iterable[str], present: set[str], required: Sequence[str], optional: Iterable[str]) -> None:
    known = {*required, *optional}
    missing, extra = [n for n in required if n not in present], [n for n in names if n not in known]
    if missing or extra:
        parts = [f"missing {shown(missing)}"] * bool(missing) + [f"unexpected {shown(extra)}"] * bool(extra)
        raise CheckpointError(
            "; ".join(parts),
            remedy="Use the config that matches these weights (layers, experts, MTP modules).",
        )
