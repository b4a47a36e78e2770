"""Two-way maps between our tensors and a published checkpoint's: what both directions of a family share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rorqual.core.errors import CheckpointError


def _only(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0]


def _alone(tensor: Tensor) -> Sequence[Tensor]:
    return (tensor,)


@dataclass(frozen=True)
class Entry:
    """One tensor of ours and the tensors `theirs` that hold it; `join` and `split` are inverses, bit for bit."""

    ours: str
    theirs: tuple[str, ...]
    join: Callable[[Sequence[Tensor]], Tensor] = _only
    split: Callable[[Tensor], Sequence[Tensor]] = _alone


def _split_stacked(tensor: Tensor) -> Sequence[Tensor]:
    return tuple(part.clone() for part in tensor.unbind(0))


def stacked(ours: str, theirs: Iterable[str]) -> Entry:
    """`ours` [n, ...] is the stack of `theirs`."""
    return Entry(ours, tuple(theirs), lambda parts: torch.stack(tuple(parts)), _split_stacked)


def stacked_pairs(ours: str, first: Iterable[str], second: Iterable[str]) -> Entry:
    """`ours` [n, 2 rows, ...]: of each of the n the rows of `first`, then those of `second`."""

    def join(parts: Sequence[Tensor]) -> Tensor:
        half = len(parts) // 2
        return torch.cat((torch.stack(tuple(parts[:half])), torch.stack(tuple(parts[half:]))), dim=1)

    def split(tensor: Tensor) -> Sequence[Tensor]:
        return tuple(part.clone() for half in tensor.chunk(2, dim=1) for part in half.unbind(0))

    return Entry(ours, (*first, *second), join, split)


@dataclass(frozen=True)
class NameMap:
    """`entries` cover every tensor of both sides. `copies`: names of theirs that repeat a tensor of ours, written on the
    way out; on the way in they may be absent, and must be equal where present."""

    entries: tuple[Entry, ...]
    copies: Mapping[str, str] = field(default_factory=dict)

    def to_hf(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ours to theirs; names that are missing or left over are a `CheckpointError` that lists them."""
        _refuse(state, [entry.ours for entry in self.entries], ())
        out: dict[str, Tensor] = {}
        for entry in self.entries:
            out |= zip(entry.theirs, entry.split(state[entry.ours]), strict=True)
        return out | {name: state[ours].clone() for name, ours in self.copies.items()}

    def from_hf(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Theirs to ours; missing and left-over names, unequal shapes and copies that differ are a `CheckpointError`."""
        _refuse(state, [name for entry in self.entries for name in entry.theirs], self.copies)
        out: dict[str, Tensor] = {}
        for entry in self.entries:
            parts = [state[name] for name in entry.theirs]
            odd = [name for name in entry.theirs if state[name].dtype != parts[0].dtype]
            if odd:
                raise CheckpointError(
                    f"{_shown(odd)} of another type than {entry.theirs[0]}, which one tensor of ours must hold",
                    remedy="Convert the checkpoint to one type.",
                )
            try:
                out[entry.ours] = entry.join(parts)
            except RuntimeError as error:
                raise CheckpointError(f"{entry.theirs[0]} and its siblings do not stack: {error}") from None
        for name, ours in self.copies.items():
            if name in state and not torch.equal(state[name], out[ours]):
                raise CheckpointError(
                    f"{name} differs from the main model's, of which it must be a copy",
                    remedy="This model shares embedding and head: a checkpoint with separate ones is another model.",
                )
        return out


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _refuse(state: Mapping[str, Tensor], wanted: Sequence[str], optional: Iterable[str]) -> None:
    scales = [name for name in state if name.endswith("weight_scale_inv")]
    if scales:
        raise CheckpointError(
            f"an FP8 checkpoint: {_shown(scales)}",
            remedy="Convert it to BF16 first (weight = fp8 * scale, by 128 x 128).",
        )
    known = {*wanted, *optional}
    missing, extra = [n for n in wanted if n not in state], [n for n in state if n not in known]
    if missing or extra:
        parts = [f"missing {_shown(missing)}"] * bool(missing) + [f"left over {_shown(extra)}"] * bool(extra)
        raise CheckpointError(
            "; ".join(parts),
            remedy="Use the config that belongs to these weights (layers, experts, prediction modules).",
        )
