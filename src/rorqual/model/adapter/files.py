"""A checkpoint that holds what was trained alone: `adapter.safetensors`, and `adapter.json`, which names the base it belongs to.

The base is a checkpoint of another run, known by the SHA-256 of its weights: another one is refused, for an adapter on other
weights is another model. A base may be an adapter itself, on a base of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import SerializeAsAny
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from rorqual.core.config import Config, one_of, parse
from rorqual.core.errors import CheckpointError
from rorqual.core.records import RunDir
from rorqual.model.adapter.base import Selection, Shapes, Tune
from rorqual.model.decoder import Decoder

WEIGHTS_FILE = "model.safetensors"
ADAPTER_FILE, ADAPTER_INFO = "adapter.safetensors", "adapter.json"
DEPTH = 16
"""Adapters on adapters: more are a circle."""


class Base(Config):
    """`run` as it was named, `beside` its place seen from the adapter's run directory, `step` the checkpoint, and its fingerprint."""

    run: str
    beside: str
    step: int
    sha256: str


class Adapter(Config):
    """What `adapter.json` holds: the base, the kind of tuning, and for ESFT the experts."""

    base: Base
    tune: Annotated[SerializeAsAny[Tune], one_of(Tune)]
    experts: Selection = ()

    def files(self, tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
        """Both files of a checkpoint."""
        info = json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"
        laid = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        return {ADAPTER_FILE: save(laid), ADAPTER_INFO: info.encode()}


@dataclass(frozen=True)
class OpenedAdapter:
    """An adapter's checkpoint that was opened."""

    folder: Path
    info: Adapter

    def tensors(self, shapes: Shapes) -> dict[str, Tensor]:
        """What was trained, by name; other names or shapes than `shapes` are an error that lists them."""
        file = self.folder / ADAPTER_FILE
        try:
            found = load_file(file)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot read: {error}", where=str(file), remedy="Use another checkpoint.") from None
        check_trained(found, shapes, where=str(file))
        return found

    def merge_into(self, model: Decoder) -> None:
        """Add the adapter to the weights of `model`, which hold its base."""
        tune, experts = self.info.tune, self.info.experts
        tune.merge(model, self.tensors(tune.shapes(model, experts)))


def check_trained(found: Mapping[str, Tensor], shapes: Shapes, *, where: str) -> None:
    """Refuse tensors of other names or shapes than `shapes`, or that are not finite; what is wrong is listed."""
    wrong = [f"missing {name}" for name in shapes if name not in found]
    wrong += [f"left over {name}" for name in found if name not in shapes]
    wrong += [
        f"{name} is {tuple(found[name].shape)}, the model needs {shape}"
        for name, shape in shapes.items()
        if name in found and tuple(found[name].shape) != shape
    ]
    wrong += [f"{name} holds NaN or infinity" for name, t in found.items() if not bool(t.isfinite().all())]
    if wrong:
        shown = "; ".join(wrong[:12]) + (f"; and {len(wrong) - 12} more" if len(wrong) > 12 else "")
        raise CheckpointError(
            f"an adapter of another model or of other settings: {shown}",
            where=where,
            remedy="Use the base that it was trained on.",
        )


def adapter_of(checkpoint: Path) -> Adapter | None:
    """What an adapter's checkpoint says of itself; None for one that holds a whole model."""
    file = checkpoint / ADAPTER_INFO
    if not file.is_file():
        return None
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"not JSON: {error}", where=str(file), remedy="Use another checkpoint.") from None
    return parse(Adapter, data, where=str(file))


def fingerprint(checkpoint: Path) -> str:
    """SHA-256 of a checkpoint's weights; of an adapter's, of both its files, and so of its base too."""
    adapted = (checkpoint / ADAPTER_INFO).is_file()
    digest = hashlib.sha256()
    for name in (ADAPTER_INFO, ADAPTER_FILE) if adapted else (WEIGHTS_FILE,):
        try:
            with (checkpoint / name).open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise CheckpointError(
                f"cannot read: {error.strerror}", where=str(checkpoint / name), remedy="Use another checkpoint."
            ) from None
    return digest.hexdigest()


def base_of(checkpoint: Path, *, named: str, seen_from: Path) -> Base:
    """How an adapter in the run directory `seen_from` shall know its base `checkpoint`, whose run the user called `named`."""
    run = checkpoint.parent.resolve()
    beside = Path(os.path.relpath(run, seen_from.resolve())).as_posix()
    step = int(checkpoint.name.rpartition("-")[2])
    return Base(run=named, beside=beside, step=step, sha256=fingerprint(checkpoint))


def find_base(checkpoint: Path, base: Base) -> Path:
    """The base's checkpoint, where it was named or where it now stands beside the adapter; one that changed is refused."""
    places = [Path(base.run), checkpoint.parent / base.beside]
    here = [place for place in places if RunDir(place).config_file.is_file()]
    if not here:
        raise CheckpointError(
            f"the base of this adapter is not there: {places[0]}",
            where=str(checkpoint / ADAPTER_INFO),
            remedy="Put its run directory back, or give the command where it was given before.",
        )
    for place in here:
        found = RunDir(place).step_dir(base.step)
        if RunDir(place).why_torn(base.step) is None and fingerprint(found) == base.sha256:
            return found
    raise CheckpointError(
        f"the base of this adapter has changed: {RunDir(here[0]).step_dir(base.step)} is gone or holds other weights",
        where=str(checkpoint / ADAPTER_INFO),
        remedy="Put back the checkpoint that it was trained on, or train the adapter again.",
    )


def unfold(checkpoint: Path) -> tuple[Path, list[OpenedAdapter]]:
    """The checkpoint that holds a whole model, and the adapters on it, the innermost first."""
    pieces: list[OpenedAdapter] = []
    while (info := adapter_of(checkpoint)) is not None:
        pieces.insert(0, OpenedAdapter(checkpoint, info))
        if len(pieces) > DEPTH:
            raise CheckpointError("adapters that are each other's base", where=str(checkpoint))
        checkpoint = find_base(checkpoint, info.base)
    return checkpoint, pieces
