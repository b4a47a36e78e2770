"""Read and write adapter checkpoints.

In an adapter checkpoint, `adapter.safetensors` holds the trained tensors, and `adapter.json` names the base checkpoint.

The base checkpoint belongs to another run and is identified by the SHA-256 of its weights. Loading an adapter fails if the
weights of the base checkpoint have changed. The base checkpoint may itself be an adapter.
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

from rorqual.core.config import Config, one_of, parse_config
from rorqual.core.errors import CheckpointError
from rorqual.core.records import RunDir
from rorqual.model.adapter.tuning import SelectedExperts, Shapes, Tune
from rorqual.model.decoder import Decoder
from rorqual.model.load.names import find_differences, list_first_names

WEIGHTS_FILE = "model.safetensors"
ADAPTER_FILE, ADAPTER_INFO = "adapter.safetensors", "adapter.json"


class BaseCheckpoint(Config):
    """The base checkpoint of an adapter.

    `run` is the run directory of the base checkpoint, as the user wrote the path. `beside` is the path of the base checkpoint's
    run directory relative to the adapter's run directory. `step` is the training step of the base checkpoint, and `sha256` is
    the result of `fingerprint`.
    """

    run: str
    beside: str
    step: int
    sha256: str


class Adapter(Config):
    """The contents of `adapter.json`: the base checkpoint, the kind of fine-tuning, and the experts that ESFT trains."""

    base: BaseCheckpoint
    tune: Annotated[SerializeAsAny[Tune], one_of(Tune)]
    experts: SelectedExperts = ()

    def file_contents(self, tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
        """Return the contents of the two files of an adapter checkpoint, by file name."""
        info = json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        return {ADAPTER_FILE: save(contiguous), ADAPTER_INFO: info.encode()}


@dataclass(frozen=True)
class OpenedAdapter:
    """An adapter checkpoint opened from disk."""

    folder: Path
    info: Adapter

    def tensors(self, shapes: Shapes) -> dict[str, Tensor]:
        """Load the trained tensors by name. Raises CheckpointError listing the tensors whose names or shapes differ from
        `shapes`."""
        file = self.folder / ADAPTER_FILE
        try:
            tensors = load_file(file)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot read: {error}", where=str(file), remedy="Use another checkpoint.") from None
        check_trained_tensors(tensors, shapes, where=str(file))
        return tensors

    def merge_into(self, model: Decoder) -> None:
        """Merge the adapter into `model`, which must already have the weights of the base checkpoint."""
        tune, experts = self.info.tune, self.info.experts
        tune.merge(model, self.tensors(tune.trained_shapes(model, experts)))


def check_trained_tensors(found: Mapping[str, Tensor], shapes: Shapes, *, where: str) -> None:
    """Check that adapter tensors have the expected names and shapes, and contain no NaN or infinity.

    Raises CheckpointError listing up to twelve problems with the tensors.
    """
    wrong = find_differences({name: tuple(tensor.shape) for name, tensor in found.items()}, shapes)
    wrong += [f"{name} contains NaN or infinity" for name, t in found.items() if not bool(t.isfinite().all())]
    if wrong:
        raise CheckpointError(
            f"the adapter does not match this model or these settings: {list_first_names(wrong)}",
            where=where,
            remedy="Use the base that the adapter was trained on.",
        )


def read_adapter_info(checkpoint: Path) -> Adapter | None:
    """Read the `adapter.json` of a checkpoint. Return None if the checkpoint is a complete model."""
    file = checkpoint / ADAPTER_INFO
    if not file.is_file():
        return None
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"not JSON: {error}", where=str(file), remedy="Use another checkpoint.") from None
    return parse_config(Adapter, data, where=str(file))


def fingerprint(checkpoint: Path) -> str:
    """Return the SHA-256 of a checkpoint's weight file. For an adapter checkpoint, the SHA-256 also covers `adapter.json`,
    because `adapter.json` names the base checkpoint."""
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


def record_base_checkpoint(checkpoint: Path, *, named: str, seen_from: Path) -> BaseCheckpoint:
    """Return the `BaseCheckpoint` record of an adapter that was trained on `checkpoint`.

    `named` is the run directory of `checkpoint`, as the user wrote the path. `seen_from` is the adapter's run directory.
    """
    run = checkpoint.parent.resolve()
    beside = Path(os.path.relpath(run, seen_from.resolve())).as_posix()
    step = int(checkpoint.name.rpartition("-")[2])
    return BaseCheckpoint(run=named, beside=beside, step=step, sha256=fingerprint(checkpoint))


def find_base(checkpoint: Path, base: BaseCheckpoint) -> Path:
    """Find an adapter's base checkpoint at `base.run` or `base.beside`. Raises CheckpointError if the base checkpoint is
    missing or has changed."""
    places = [Path(base.run), checkpoint.parent / base.beside]
    existing = [place for place in places if RunDir(place).config_file.is_file()]
    if not existing:
        raise CheckpointError(
            f"the base of this adapter was not found: {places[0]}",
            where=str(checkpoint / ADAPTER_INFO),
            remedy="Restore the base's run directory, or run the command from the directory in which you trained the adapter.",
        )
    for place in existing:
        found = RunDir(place).step_dir(base.step)
        if RunDir(place).incomplete_reason(base.step) is None and fingerprint(found) == base.sha256:
            return found
    raise CheckpointError(
        f"the base of this adapter has changed: {RunDir(existing[0]).step_dir(base.step)} is missing or has different weights",
        where=str(checkpoint / ADAPTER_INFO),
        remedy="Restore the checkpoint that the adapter was trained on, or train the adapter again.",
    )


def find_base_and_adapters(checkpoint: Path) -> tuple[Path, list[OpenedAdapter]]:
    """Return the checkpoint of the complete base model, and the adapters stacked on this checkpoint, in the order of merging."""
    adapters: list[OpenedAdapter] = []
    while (info := read_adapter_info(checkpoint)) is not None:
        adapters.insert(0, OpenedAdapter(checkpoint, info))
        checkpoint = find_base(checkpoint, info.base)
    return checkpoint, adapters
