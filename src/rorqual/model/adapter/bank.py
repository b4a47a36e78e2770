"""Many LoRA adapters on one base model in memory, and products of one batch with all of them.

S-LoRA (Sheng et al. 2023) and Punica (Chen et al. 2023) gather each row's matrices inside a kernel. On a CPU, torch's
`embedding_bag` is such a kernel: it sums the rows of a table, each times a weight. The table holds the matrices of all adapters,
and the weights are the activations. One row's sum depends on no other row and runs in one order, so a completion has the same
bits whatever other adapters are in the batch. No copy of a matrix is made, and rows are not padded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rorqual.core.errors import CheckpointError, ConfigError
from rorqual.core.memory import return_freed_memory
from rorqual.model.adapter.files import ADAPTER_INFO, OpenedAdapter, fingerprint, read_adapter_info
from rorqual.model.adapter.lora import LoRA, named_linear_maps
from rorqual.model.decoder import Decoder
from rorqual.model.meta_device import build_on_meta_device
from rorqual.ops.layer import Layer

ALONE = "Merge it with `rorqual merge`, or serve its run on its own."


def reasons_to_merge(model: Decoder) -> dict[str, str]:
    """Return the linear maps to which a bank cannot add an adapter's product, each with the reason."""
    found = {}
    for name, _ in named_linear_maps(model):
        parent, _, last = name.rpartition(".")
        layer = model.get_submodule(parent)
        if isinstance(layer, Layer) and last in layer.reads_blocks:
            found[name] = "applies it to blocks of tokens"
        elif isinstance(layer, Layer) and last in layer.derived.values():
            found[name] = "multiplies its weight into others"
    return found


@dataclass
class AdapterStack:
    """The matrices of all adapters with one rank and one set of targets.

    `places` maps an adapter's SHA-256 to its index. `matrices` maps a linear map's name to A^T [adapters, in, r] and s B^T
    [adapters, r, out].
    """

    places: dict[str, int] = field(default_factory=dict)
    matrices: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class AdaptedRows:
    """The tokens of an engine step whose adapters are in one stack.

    `rows` [n] are indices of the step's `tokens`, and `places` [n] are the indices of their adapters in `matrices`.
    """

    tokens: int
    matrices: dict[str, tuple[Tensor, Tensor]]
    rows: Tensor
    places: Tensor
    bags: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def multiply(self, x: Tensor, matrices: Tensor) -> Tensor:
        """Multiply each row of x [n, in] by the matrix of its adapter in `matrices` [adapters, in, out]. Returns [n, out]."""
        width = x.shape[1]
        if width not in self.bags:
            columns, starts = (torch.arange(n, device=x.device) for n in (width, len(x)))
            self.bags[width] = (self.places.unsqueeze(1) * width + columns).flatten(), starts * width
        return F.embedding_bag(
            self.bags[width][0], matrices.flatten(0, 1), self.bags[width][1], mode="sum", per_sample_weights=x.flatten()
        )


AdaptedPart = tuple[str, int, int]
"""An adapted map's name, first column of the output, and last column + 1."""


class AdaptedLinear(nn.Module):
    """A linear map, or several fused ones, with the adapters of the step's tokens.

    `step` is the list that the runner fills before each step. `stacks` are the `matrices` of all stacks.
    """

    def __init__(
        self,
        wrapped: nn.Module,
        parts: Sequence[AdaptedPart],
        step: list[AdaptedRows],
        stacks: Sequence[Mapping[str, tuple[Tensor, Tensor]]],
    ) -> None:
        super().__init__()
        self.wrapped, self.parts, self.step, self.stacks = wrapped, parts, step, stacks

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.wrapped(x)
        out = y.reshape(-1, y.shape[-1])
        for adapted in self.step:
            if len(out) != adapted.tokens:
                what = f"{self.parts[0][0]} read {len(out)} rows in a step of {adapted.tokens} tokens"
                raise ValueError(f"{what}: its `Layer` must name it in `reads_blocks`")
            rows = x.reshape(-1, x.shape[-1]).index_select(0, adapted.rows)
            for name, start, stop in self.parts:
                if name in adapted.matrices:
                    down, up = adapted.matrices[name]
                    change = adapted.multiply(adapted.multiply(rows, down), up)
                    out[:, start:stop].index_add_(0, adapted.rows, change)
        return out.view(y.shape)


class AdapterBank:
    """The adapters of a base model by name.

    `checkpoint` is the folder of the base's weights, or None if other code may change them. `sha256` maps an adapter's name to
    its fingerprint. Names with equal fingerprints share their matrices.
    """

    def __init__(self, model: Decoder, checkpoint: Path | None) -> None:
        self._model, self.checkpoint = model, checkpoint
        self.sha256: dict[str, str] = {}
        self._base = ""  # the fingerprint of `checkpoint`, once an adapter needs it
        self._stacks: dict[tuple[object, ...], AdapterStack] = {}

    @cached_property
    def _shapes(self) -> Decoder:
        """The model without weights. The engine's own has fused and removed linear maps."""
        return build_on_meta_device(self._model.config)

    def load(self, name: str, checkpoint: Path) -> None:
        """Load a LoRA checkpoint under `name`. Raises ConfigError or CheckpointError if its product cannot be added."""
        if self.checkpoint is None:
            raise ConfigError(
                "the engine's weights are not those of a checkpoint",
                where="engine.load_adapter",
                remedy="Create the engine with Engine(run), and do not change its weights.",
            )
        self._base = self._base or fingerprint(self.checkpoint)
        adapter, sha256 = self._open(checkpoint), fingerprint(checkpoint)
        if self.sha256.get(name, sha256) != sha256:
            raise ConfigError(
                f"another adapter has the name '{name}'", where="engine.load_adapter", remedy="Unload it first."
            )
        if sha256 not in self.sha256.values():
            self._add(sha256, adapter)
        self.sha256[name] = sha256

    def _open(self, checkpoint: Path) -> OpenedAdapter:
        info, where = read_adapter_info(checkpoint), str(checkpoint / ADAPTER_INFO)
        if info is None:
            raise CheckpointError(
                "this checkpoint holds no adapter",
                where=where,
                remedy="Give a checkpoint of a run with tune.kind=lora, such as RUN/step-000200.",
            )
        if not isinstance(info.tune, LoRA):
            raise CheckpointError(
                f"this adapter has tune.kind={info.tune.kind}, but only LoRA adapters can share a base model in memory",
                where=where,
                remedy=ALONE,
            )
        if info.base.sha256 != self._base:
            raise CheckpointError(
                f"this adapter was trained on other weights than the engine's: {info.base.run}, step {info.base.step}",
                where=where,
                remedy=f"Load its base into the engine. {ALONE}",
            )
        reasons = reasons_to_merge(self._shapes)
        for name in info.tune.find_targets(self._shapes):
            if name in reasons:
                raise CheckpointError(
                    f"the adapter's target {name} must be merged, because the model {reasons[name]}",
                    where=where,
                    remedy=f"Train with tune.targets that leave {name.rpartition('.')[2]} out. {ALONE}",
                )
        return OpenedAdapter(checkpoint, info)

    def _add(self, sha256: str, adapter: OpenedAdapter) -> None:
        tune, weight = adapter.info.tune, self._model.embed_tokens.weight
        assert isinstance(tune, LoRA)
        targets, tensors = sorted(tune.find_targets(self._shapes)), adapter.tensors(tune.trained_shapes(self._shapes))
        stack = self._stacks.get(signature := (tune.r, *targets), AdapterStack())
        kept = len(stack.places)  # after an error in the loop, some maps have one adapter more
        for name in targets:  # one map after another, so that at most one is in memory twice
            down = tensors.pop(f"{name}.lora_A").t().to(weight)
            up = (tune.scale * tensors.pop(f"{name}.lora_B").float().t()).to(weight)
            older = stack.matrices.get(name, (down.new_empty(0, *down.shape), up.new_empty(0, *up.shape)))
            stack.matrices[name] = torch.cat((older[0][:kept], down[None])), torch.cat((older[1][:kept], up[None]))
        stack.places[sha256], self._stacks[signature] = kept, stack
        return_freed_memory()

    def unload(self, name: str) -> None:
        """Unload the adapter `name`. Raises ConfigError if it is not loaded."""
        if name not in self.sha256:
            raise ConfigError(f"adapter '{name}' is not loaded", where="engine.unload_adapter", remedy="Load it first.")
        if (sha256 := self.sha256.pop(name)) not in self.sha256.values():
            signature, stack = next(item for item in self._stacks.items() if sha256 in item[1].places)
            kept = [place for key, place in stack.places.items() if key != sha256]
            stack.places = {key: place for place, key in enumerate(key for key in stack.places if key != sha256)}
            stack.matrices = {name: (down[kept], up[kept]) for name, (down, up) in stack.matrices.items()}
            if not kept:
                del self._stacks[signature]
            return_freed_memory()

    def rows_of(self, adapters: Sequence[str], counts: Sequence[int]) -> list[AdaptedRows]:
        """Return the adapted rows of a step in which each of `counts` consecutive tokens has the adapter with the SHA-256 in
        `adapters`, or none for ""."""
        device, found = self._model.embed_tokens.weight.device, []
        for stack in self._stacks.values():
            places = np.repeat([stack.places.get(sha256, -1) for sha256 in adapters], counts)
            if len(rows := np.flatnonzero(places >= 0)):
                some, chosen = (torch.from_numpy(array).to(device) for array in (rows, places[rows]))
                found.append(AdaptedRows(len(places), stack.matrices, some, chosen))
        return found

    def bind(self, model: Decoder, step: list[AdaptedRows]) -> Decoder:
        """Return a copy of `model`, which shares its tensors and whose adapted linear maps read `step`. Without adapters,
        return `model` itself."""
        widths = {name: linear.out_features for name, linear in named_linear_maps(self._shapes)} if self._stacks else {}
        found: dict[str, list[AdaptedPart]] = {}
        stacks = [stack.matrices for stack in self._stacks.values()]
        for name in sorted({name for stack in self._stacks.values() for name in stack.matrices}):
            parent, _, last = name.rpartition(".")
            layer, path, start = model.get_submodule(parent), name, 0
            if isinstance(layer, Layer) and getattr(layer, last) is None:  # fused with the maps that read the same rows
                fused = [other for group in layer.shared_input for other in group]
                start = sum(widths[f"{parent}.{other}"] for other in fused[: fused.index(last)])
                path = f"{parent}.fused"
            found.setdefault(path, []).append((name, start, start + widths[name]))
        wrapped = _wrap(model, "", found, partial(AdaptedLinear, step=step, stacks=stacks)) if found else model
        assert isinstance(wrapped, Decoder)
        return wrapped


def _wrap(
    module: nn.Module, name: str, found: dict[str, list[AdaptedPart]], adapt: Callable[..., nn.Module]
) -> nn.Module:
    if name in found:
        return adapt(module, found[name])
    clone = copy.copy(module)
    clone._modules = {
        key: child if child is None else _wrap(child, f"{name}.{key}".lstrip("."), found, adapt)
        for key, child in module._modules.items()
    }
    return clone
