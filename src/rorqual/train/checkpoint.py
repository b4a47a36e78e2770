"""Write and load checkpoints.

Writing is atomic: all files go to a temporary folder, a list of their sizes is written last, and the folder is renamed.
"""

from __future__ import annotations

import json
import os
import shutil

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from rorqual.core.errors import CheckpointError, NumericsError, RorqualError
from rorqual.core.records import MANIFEST_FILE, RunDir, write_atomic, write_json
from rorqual.model.adapter import Adapter, trained_parameters
from rorqual.model.adapter.files import OpenedAdapter
from rorqual.model.decoder import Decoder
from rorqual.model.ffn import map_older_names
from rorqual.model.load.run_directory import WEIGHTS_FILE, load_weights
from rorqual.train.optim import Optimizer

OPTIM_FILE, STATE_FILE = "optim.safetensors", "state.json"
KEEP = 2


def save_checkpoint(
    run: RunDir,
    step: int,
    model: Decoder,
    optimizer: Optimizer,
    adapter: Adapter | None = None,
) -> None:
    """Write the checkpoint `step-NNNNNN/`, then delete all checkpoints except the two newest. If writing fails, the older
    checkpoints are unchanged.

    The checkpoint records the sizes of `metrics.jsonl` and `rollouts.jsonl`. With an `adapter`, only the trained weights are
    saved, because the frozen weights are in the base checkpoint.

    Raises NumericsError before writing anything if a weight is NaN or infinite.
    """
    check_finite(model, step)
    final, temporary = run.step_dir(step), run.path / f".step-{step:06d}.{os.getpid()}"
    weights = (
        {WEIGHTS_FILE: save(_contiguous(model.state_dict()))}
        if adapter is None
        else adapter.file_contents(trained_parameters(model))
    )
    sizes = [file.stat().st_size if file.is_file() else 0 for file in (run.metrics_file, run.rollouts_file)]
    files = weights | {
        OPTIM_FILE: save(_contiguous(optimizer.state())),
        STATE_FILE: json.dumps({"step": step, "metrics_bytes": sizes[0], "rollouts_bytes": sizes[1]}).encode(),
    }
    try:
        for stale in run.path.glob(".step-*"):
            shutil.rmtree(stale, ignore_errors=True)
        for name, data in files.items():
            write_atomic(temporary / name, data)
        write_json(temporary / MANIFEST_FILE, {name: len(data) for name, data in files.items()})
        if final.exists():
            shutil.rmtree(final)
        os.replace(temporary, final)
    except (OSError, RorqualError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"cannot write the checkpoint of step {step}: {error}",
            where=str(final),
            remedy="Free disk space and repeat the command: it resumes from the last checkpoint.",
        ) from error
    older = [s for s in run.steps() if s < step]
    kept = [s for s in older if run.incomplete_reason(s) is None][-(KEEP - 1) :]
    for old in older:
        if old not in kept:
            shutil.rmtree(run.step_dir(old), ignore_errors=True)


def check_finite(model: Decoder, step: int) -> None:
    """Raise NumericsError if a weight is NaN or infinite, because a run resumed from such weights could not recover."""
    bad = [name for name, tensor in model.state_dict().items() if not bool(tensor.isfinite().all())]
    if bad:
        raise NumericsError(
            f"after step {step}, {len(bad)} tensors contain NaN or infinity, such as {bad[0]}",
            where="train",
            remedy="Lower optim.lr, and give another out=. The newest checkpoint, if there is one, has finite weights: "
            "from=RUN continues from it.",
        )


def load_checkpoint(
    run: RunDir, step: int, model: Decoder, optimizer: Optimizer, adapter: Adapter | None = None
) -> tuple[int, int]:
    """Load model and optimizer in place. Return the sizes in bytes of `metrics.jsonl` and `rollouts.jsonl` at this checkpoint."""
    folder = run.step_dir(step)
    if adapter is None:
        load_weights(model, folder)
    else:
        load_adapter_tensors(model, OpenedAdapter(folder, adapter))
    try:
        optimizer.load(_rename_old_state_keys(load_file(folder / OPTIM_FILE), model))
        state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        return int(state["metrics_bytes"]), int(state.get("rollouts_bytes", 0))
    except (OSError, SafetensorError, KeyError, ValueError, CheckpointError) as error:
        raise CheckpointError(
            f"cannot resume from this checkpoint: {error}",
            where=str(folder),
            remedy="Give another out=, or delete this checkpoint to resume from the previous one.",
        ) from error


def _rename_old_state_keys(state: dict[str, Tensor], model: Decoder) -> dict[str, Tensor]:
    """Convert an optimizer state of an older Rorqual version: replace the old parameter names in the state's keys.

    Each key of an optimizer state ends in a parameter name.
    """
    older = map_older_names(trained_parameters(model))
    parts = {key: key.rpartition("/") for key in state}
    return {f"{head}{slash}{older.get(name, name)}": state[key] for key, (head, slash, name) in parts.items()}


@torch.no_grad()
def load_adapter_tensors(model: Decoder, adapter: OpenedAdapter) -> None:
    """Load the trained tensors of `adapter` into `model`. The adapter must already be attached to `model`."""
    parts = trained_parameters(model)
    tensors = adapter.tensors({name: tuple(part.shape) for name, part in parts.items()})
    for name, part in parts.items():
        part.copy_(tensors[name])


def _contiguous(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
