"""Two-way maps between Rorqual's tensors and the tensors of published checkpoints.

A `NameMap` can convert one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from rorqual.core.errors import CheckpointError
from rorqual.ops.quant import block_counts

SCALE = "_scale_inv"
"""Name suffix of the scales of an FP8 tensor. An FP8 tensor has one scale per 128 x 128 block."""
INDEXER = ".indexer."
"""Part of the name of every weight of a lightning indexer."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class NameEntry:
    """An entry of a `NameMap`: a Rorqual tensor `internal`, and the published tensors `published` with the same values.

    `kind` describes how `internal` is composed of `published`:

    - "alone": `internal` equals the only published tensor in `published`.
    - "stack": `internal` [n, ...] stacks n published tensors.
    - "pairs": `published` lists 2 n tensors, such as n gate projections and then n up projections. `internal[i]` [2 rows,
      ...] holds the rows of `published[i]`, followed by the rows of `published[n + i]`.
    """

    internal: str
    published: tuple[str, ...]
    kind: Literal["alone", "stack", "pairs"] = "alone"

    def storage_order(self) -> tuple[int, ...]:
        """Return the indices of the published tensors, in the order in which `internal` stores their bytes."""
        if self.kind != "pairs":
            return tuple(range(len(self.published)))
        n = len(self.published) // 2
        return tuple(index + half for index in range(n) for half in (0, n))

    def published_view(self, tensor: Tensor, index: int) -> Tensor:
        """Return the view of Rorqual's `tensor` that equals the published tensor `published[index]`."""
        if self.kind == "alone":
            return tensor
        if self.kind == "stack":
            return tensor[index]
        half, row = divmod(index, len(self.published) // 2)
        return tensor[row].chunk(2, dim=0)[half]

    def internal_shape(self, published: Sequence[Shape]) -> Shape:
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
                f"{self.published[0]} {first} cannot be stacked with tensors of other shapes: {list_first_names(unequal)}",
                remedy="The checkpoint is damaged; download it again.",
            )
        if self.kind == "alone":
            return first
        if self.kind == "stack":
            return (len(self.published), *first)
        return (len(self.published) // 2, 2 * first[0], *first[1:])

    def published_shape(self, internal: Shape) -> Shape:
        """Return the shape of each published tensor, given the shape of `internal`."""
        if self.kind == "alone":
            return internal
        return internal[1:] if self.kind == "stack" else (internal[1] // 2, *internal[2:])

    def scales_entry(self) -> NameEntry:
        """Return the `NameEntry` of the FP8 scales that belong to `internal` and `published`.

        In the kind "pairs", the two published tensors of a pair have separate scales.
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
        return self.scales_entry().internal_shape([block_counts((rows, columns))] * len(self.published))


@dataclass(frozen=True)
class NameMap:
    """The `NameEntry` of every tensor of a model.

    `copies` maps the name of each duplicate published tensor to the name of the Rorqual tensor with the same values. Export
    writes all duplicates in `copies`. Import accepts a checkpoint without the duplicates, but raises CheckpointError if a
    duplicate's values differ from the values of the Rorqual tensor.
    """

    entries: tuple[NameEntry, ...]
    copies: Mapping[str, str] = field(default_factory=dict)

    def check(self, names: Collection[str]) -> None:
        """Check the names of published tensors. Raises CheckpointError listing missing and unexpected tensor names.

        FP8 scales are optional. If one tensor of a `NameEntry` has scales, all tensors of the `NameEntry` must have scales.
        """
        present = set(names)
        scaled = [entry.scales_entry() for entry in self.entries]
        optional = [name for entry in scaled if present.intersection(entry.published) for name in entry.published]
        required = [name for entry in self.entries for name in entry.published] + optional
        found = dict.fromkeys(present.difference(self.copies), ())
        if problems := find_differences(found, dict.fromkeys(required, ())):
            raise CheckpointError(
                list_first_names(problems),
                remedy="Use the config that matches these weights (layers, experts, MTP modules).",
            )

    def to_hf(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert Rorqual's tensors to published tensors. The published tensors share no memory with each other."""
        pieces = ((entry, index, name) for entry in self.entries for index, name in enumerate(entry.published))
        published = {name: entry.published_view(state[entry.internal], index).clone() for entry, index, name in pieces}
        return published | {name: state[internal].clone() for name, internal in self.copies.items()}


def find_differences(found: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> list[str]:
    """List the missing names, the unexpected names and the different shapes of the tensors `found`, compared with `wanted`."""
    wrong = [f"missing {name}" for name in wanted if name not in found]
    wrong += [f"unexpected {name}" for name in sorted(found.keys() - wanted.keys())]
    both = [(name, found[name], shape) for name, shape in wanted.items() if name in found]
    return wrong + [f"{name} has shape {has}, not {needs}" for name, has, needs in both if has != needs]


def list_first_names(names: Sequence[str]) -> str:
    """Return the first twelve names or problems as text, followed by the number of omitted names or problems."""
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
