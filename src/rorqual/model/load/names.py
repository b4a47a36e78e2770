"""Two-way maps between Rorqual's tensors and those of a published checkpoint. They are data, not functions, so tensors can stream."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from rorqual.core.errors import CheckpointError
from rorqual.ops.quant import blocks

SCALE = "_scale_inv"
"""Suffix of a scale tensor's name, in Rorqual's and in published checkpoints. FP8 tensors have one scale per 128 x 128 block."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class NameEntry:
    """One Rorqual tensor `ours`, and the published tensors `theirs` that hold the same values bit for bit.

    - "alone": the same tensor.
    - "stack": `ours` [n, ...] stacks n published tensors.
    - "pairs": `theirs` lists n first tensors, then n second ones. For each of the n, `ours` [n, 2 rows, ...] holds the rows
      of the first tensor, then those of the second.
    """

    ours: str
    theirs: tuple[str, ...]
    kind: Literal["alone", "stack", "pairs"] = "alone"

    def order(self) -> tuple[int, ...]:
        """Return the indices into `theirs` whose bytes, concatenated in this order, are the bytes of our tensor."""
        if self.kind != "pairs":
            return tuple(range(len(self.theirs)))
        n = len(self.theirs) // 2
        return tuple(index + half for index in range(n) for half in (0, n))

    def piece(self, ours: Tensor, index: int) -> Tensor:
        """Return the view of our tensor that equals `theirs[index]`."""
        if self.kind == "alone":
            return ours
        if self.kind == "stack":
            return ours[index]
        half, row = divmod(index, len(self.theirs) // 2)
        return ours[row].chunk(2, dim=0)[half]

    def shape(self, theirs: Sequence[Shape]) -> Shape:
        """Return our tensor's shape for the published shapes `theirs`. Raises CheckpointError if they do not match."""
        first = tuple(theirs[0])
        odd = [
            f"{name} {tuple(shape)}" for name, shape in zip(self.theirs, theirs, strict=True) if tuple(shape) != first
        ]
        if odd:
            raise CheckpointError(
                f"{self.theirs[0]} {first} cannot be stacked with tensors of other shapes: {shown(odd)}",
                remedy="The checkpoint is damaged; download it again.",
            )
        if self.kind == "alone":
            return first
        if self.kind == "stack":
            return (len(self.theirs), *first)
        return (len(self.theirs) // 2, 2 * first[0], *first[1:])

    def scales(self) -> NameEntry:
        """Return the entry of these tensors' scales. Both tensors of a pair have blocks of their own."""
        return NameEntry(self.ours + SCALE, tuple(name + SCALE for name in self.theirs), self.kind)

    def scale_shape(self, ours: Shape) -> Shape:
        """Return the shape of the scales of our tensor, which has shape `ours`."""
        if len(ours) < 2:
            raise CheckpointError(
                f"{self.ours} {ours} has scales, but only matrices can be scaled",
                remedy="Download the checkpoint again.",
            )
        rows, columns = ours[-2:]
        rows = rows // 2 if self.kind == "pairs" else rows
        return self.scales().shape([blocks((rows, columns))] * len(self.theirs))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Convert published tensors to ours."""
        odd = [name for name, part in zip(self.theirs, parts, strict=True) if part.dtype != parts[0].dtype]
        if odd:
            raise CheckpointError(
                f"{shown(odd)} and {self.theirs[0]} have different types, but must be stacked into one tensor",
                remedy="Convert the checkpoint to one type.",
            )
        shape = self.shape([tuple(part.shape) for part in parts])
        if self.kind == "alone":
            return parts[0]
        out = torch.empty(shape, dtype=parts[0].dtype, device=parts[0].device)
        for index, part in enumerate(parts):
            self.piece(out, index).copy_(part)
        return out

    def split(self, ours: Tensor) -> list[Tensor]:
        """Convert our tensor to published ones, each with its own memory."""
        if self.kind == "alone":
            return [ours]
        return [self.piece(ours, index).clone() for index in range(len(self.theirs))]


def stacked(ours: str, theirs: Iterable[str]) -> NameEntry:
    """Return the entry of `ours` [n, ...], the stack of `theirs`."""
    return NameEntry(ours, tuple(theirs), "stack")


def stacked_pairs(ours: str, first: Iterable[str], second: Iterable[str]) -> NameEntry:
    """Return the entry of `ours` [n, 2 rows, ...]: for each of the n, the rows of `first`, then those of `second`."""
    return NameEntry(ours, (*first, *second), "pairs")


@dataclass(frozen=True)
class NameMap:
    """A map that covers every tensor on both sides.

    `copies` names published tensors that repeat one of ours. They are written on export. On import they may be absent,
    and must be equal if present.
    """

    entries: tuple[NameEntry, ...]
    copies: Mapping[str, str] = field(default_factory=dict)

    def check(self, names: Collection[str]) -> None:
        """Raise CheckpointError listing missing and unexpected names of published tensors.

        An entry's tensors may have scales. If one tensor of an entry has scales, all must.
        """
        present = set(names)
        scaled = [entry.scales() for entry in self.entries]
        optional = [name for entry in scaled if present.intersection(entry.theirs) for name in entry.theirs]
        wanted = [name for entry in self.entries for name in entry.theirs] + optional
        _refuse(names, present, wanted, self.copies)

    def scaled(self, names: Collection[str]) -> NameMap:
        """Return this map extended by the entries of the scales found in `names`, which are either side's names."""
        present = set(names)
        extra = (entry.scales() for entry in self.entries)
        found = [entry for entry in extra if entry.ours in present or entry.theirs[0] in present]
        return NameMap((*self.entries, *found), self.copies)

    def to_hf(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert our tensors to published ones. Raises CheckpointError listing missing and unexpected names."""
        entries = self.scaled(state).entries
        _refuse(state, set(state), [entry.ours for entry in entries], ())
        out: dict[str, Tensor] = {}
        for entry in entries:
            out |= zip(entry.theirs, entry.split(state[entry.ours]), strict=True)
        return out | {name: state[ours].clone() for name, ours in self.copies.items()}

    def from_hf(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert published tensors to ours. Raises CheckpointError for missing or unexpected names, unequal shapes and
        copies that differ.
        """
        self.check(state)
        entries = self.scaled(state).entries
        out = {entry.ours: entry.join([state[name] for name in entry.theirs]) for entry in entries}
        for name, tensor in out.items():
            if (tensor.dtype == torch.float8_e4m3fn) != (name + SCALE in out):
                raise CheckpointError(
                    f"{name} is {tensor.dtype} {'with' if name + SCALE in out else 'without'} scales (weight{SCALE})",
                    remedy="FP8 tensors must have scales, and others must not. Download the checkpoint again.",
                )
        for name, ours in self.copies.items():
            if name in state and not torch.equal(state[name], out[ours]):
                raise CheckpointError(
                    f"{name} must be a copy of the main model's {ours}, but differs",
                    remedy="This model shares embedding and head. A checkpoint with separate ones is not supported.",
                )
        return out


def shown(names: Sequence[str]) -> str:
    """Return the first twelve names and the number of others."""
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _refuse(names: Iterable[str], present: set[str], wanted: Sequence[str], optional: Iterable[str]) -> None:
    known = {*wanted, *optional}
    missing, extra = [n for n in wanted if n not in present], [n for n in names if n not in known]
    if missing or extra:
        parts = [f"missing {shown(missing)}"] * bool(missing) + [f"unexpected {shown(extra)}"] * bool(extra)
        raise CheckpointError(
            "; ".join(parts),
            remedy="Use the config that matches these weights (layers, experts, MTP modules).",
        )
