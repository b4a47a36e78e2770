"""Two-way maps between our tensors and a published checkpoint's: structure, not functions, so that tensors can stream."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from rorqual.core.errors import CheckpointError
from rorqual.ops.quant import blocks

SCALE = "_scale_inv"
"""What follows a tensor's name, on both sides, in the name of its scales: FP8 tensors have one for each 128 x 128 values."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class NameEntry:
    """One tensor of ours and the tensors `theirs` that hold it, bit for bit.

    "alone": the same tensor. "stack": ours [n, ...] is the stack of the n of theirs. "pairs": theirs are n first ones and
    then n second ones; ours [n, 2 rows, ...] holds, for each of n, the rows of its first and then those of its second.
    """

    ours: str
    theirs: tuple[str, ...]
    kind: Literal["alone", "stack", "pairs"] = "alone"

    def order(self) -> tuple[int, ...]:
        """Indices into `theirs` in the memory order of ours: the bytes of theirs, one after another so, are ours."""
        if self.kind != "pairs":
            return tuple(range(len(self.theirs)))
        n = len(self.theirs) // 2
        return tuple(index + half for index in range(n) for half in (0, n))

    def piece(self, ours: Tensor, index: int) -> Tensor:
        """The view of our tensor that equals `theirs[index]`."""
        if self.kind == "alone":
            return ours
        if self.kind == "stack":
            return ours[index]
        half, row = divmod(index, len(self.theirs) // 2)
        return ours[row].chunk(2, dim=0)[half]

    def shape(self, theirs: Sequence[Shape]) -> Shape:
        """The shape of ours for these of theirs, in the order of `theirs`; a `CheckpointError` where they do not fit."""
        first = tuple(theirs[0])
        odd = [
            f"{name} {tuple(shape)}" for name, shape in zip(self.theirs, theirs, strict=True) if tuple(shape) != first
        ]
        if odd:
            raise CheckpointError(
                f"{self.theirs[0]} {first} and its siblings do not stack: {shown(odd)}",
                remedy="The checkpoint is damaged: fetch it again.",
            )
        if self.kind == "alone":
            return first
        if self.kind == "stack":
            return (len(self.theirs), *first)
        return (len(self.theirs) // 2, 2 * first[0], *first[1:])

    def scales(self) -> NameEntry:
        """The entry of the scales that stand beside these tensors; halves of pairs have blocks of their own."""
        return NameEntry(self.ours + SCALE, tuple(name + SCALE for name in self.theirs), self.kind)

    def scale_shape(self, ours: Shape) -> Shape:
        """The shape of our scales beside our tensor of shape `ours`."""
        if len(ours) < 2:
            raise CheckpointError(
                f"{self.ours} {ours} has scales, which only matrices have", remedy="Fetch the checkpoint again."
            )
        rows, columns = ours[-2:]
        rows = rows // 2 if self.kind == "pairs" else rows
        return self.scales().shape([blocks((rows, columns))] * len(self.theirs))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Theirs to ours."""
        odd = [name for name, part in zip(self.theirs, parts, strict=True) if part.dtype != parts[0].dtype]
        if odd:
            raise CheckpointError(
                f"{shown(odd)} of another type than {self.theirs[0]}, which one tensor of ours must hold",
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
        """Ours to theirs, each with memory of its own."""
        if self.kind == "alone":
            return [ours]
        return [self.piece(ours, index).clone() for index in range(len(self.theirs))]


def stacked(ours: str, theirs: Iterable[str]) -> NameEntry:
    """`ours` [n, ...] is the stack of `theirs`."""
    return NameEntry(ours, tuple(theirs), "stack")


def stacked_pairs(ours: str, first: Iterable[str], second: Iterable[str]) -> NameEntry:
    """`ours` [n, 2 rows, ...]: of each of the n the rows of `first`, then those of `second`."""
    return NameEntry(ours, (*first, *second), "pairs")


@dataclass(frozen=True)
class NameMap:
    """`entries` cover every tensor of both sides. `copies`: names of theirs that repeat a tensor of ours, written on the
    way out; on the way in they may be absent, and must be equal where present."""

    entries: tuple[NameEntry, ...]
    copies: Mapping[str, str] = field(default_factory=dict)

    def check(self, names: Collection[str]) -> None:
        """Names of theirs that are missing or left over are a `CheckpointError` that lists them.

        Beside every tensor of an entry its scales may stand; beside one of the entry, then beside all.
        """
        present = set(names)
        scaled = [entry.scales() for entry in self.entries]
        optional = [name for entry in scaled if present.intersection(entry.theirs) for name in entry.theirs]
        wanted = [name for entry in self.entries for name in entry.theirs] + optional
        _refuse(names, present, wanted, self.copies)

    def scaled(self, names: Collection[str]) -> NameMap:
        """This map and the entries of the scales that stand among `names`, of theirs or of ours."""
        present = set(names)
        extra = (entry.scales() for entry in self.entries)
        found = [entry for entry in extra if entry.ours in present or entry.theirs[0] in present]
        return NameMap((*self.entries, *found), self.copies)

    def to_hf(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ours to theirs; names that are missing or left over are a `CheckpointError` that lists them."""
        entries = self.scaled(state).entries
        _refuse(state, set(state), [entry.ours for entry in entries], ())
        out: dict[str, Tensor] = {}
        for entry in entries:
            out |= zip(entry.theirs, entry.split(state[entry.ours]), strict=True)
        return out | {name: state[ours].clone() for name, ours in self.copies.items()}

    def from_hf(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Theirs to ours; missing and left-over names, unequal shapes and copies that differ are a `CheckpointError`."""
        self.check(state)
        entries = self.scaled(state).entries
        out = {entry.ours: entry.join([state[name] for name in entry.theirs]) for entry in entries}
        for name, tensor in out.items():
            if (tensor.dtype == torch.float8_e4m3fn) != (name + SCALE in out):
                raise CheckpointError(
                    f"{name} is {tensor.dtype} {'with' if name + SCALE in out else 'without'} scales (weight{SCALE})",
                    remedy="FP8 tensors have scales, and no others do: fetch the checkpoint again.",
                )
        for name, ours in self.copies.items():
            if name in state and not torch.equal(state[name], out[ours]):
                raise CheckpointError(
                    f"{name} differs from the main model's, of which it must be a copy",
                    remedy="This model shares embedding and head: a checkpoint with separate ones is another model.",
                )
        return out


def shown(names: Sequence[str]) -> str:
    """The first twelve, and how many more."""
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _refuse(names: Iterable[str], present: set[str], wanted: Sequence[str], optional: Iterable[str]) -> None:
    known = {*wanted, *optional}
    missing, extra = [n for n in wanted if n not in present], [n for n in names if n not in known]
    if missing or extra:
        parts = [f"missing {shown(missing)}"] * bool(missing) + [f"left over {shown(extra)}"] * bool(extra)
        raise CheckpointError(
            "; ".join(parts),
            remedy="Use the config that belongs to these weights (layers, experts, prediction modules).",
        )
