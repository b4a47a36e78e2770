"""Finds and checks the safetensors files of a checkpoint folder, and reads its JSON and text files. All files of the folder are
untrusted. The module also writes folders that appear under their final name only when all files are complete."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from rorqual.convert.safetensors_slices import StoredTensor, read_header
from rorqual.core.errors import CheckpointError, RorqualError
from rorqual.core.lock import acquire_lock
from rorqual.core.records import CONFIG_FILE, MANIFEST_FILE, TOKENIZER_FILE, RunDir, write_json
from rorqual.core.registry import loaded_plugins
from rorqual.data.chat import TEMPLATE_FILE
from rorqual.model.load.names import list_first_names
from rorqual.model.load.run_directory import read_section

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FIRST = "step-000000"
"""Name of the checkpoint folder of an imported model."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def path_inside(folder: Path, name: str, where: str) -> Path:
    """Return the path of the file `name` in `folder`. Raises CheckpointError if the path or a link leads out of `folder`.

    A link into the `blobs` folder of a huggingface_hub cache is allowed.
    """
    root, file = folder.resolve(), (folder / name).resolve()
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parent.parent / "blobs")
    if not any(file.is_relative_to(parent) for parent in allowed):
        raise CheckpointError(
            f"'{name}' leads out of the folder, to {file}",
            where=where,
            remedy="All files of a checkpoint must be in its folder. If you trust this file, copy it into the folder.",
        )
    return folder / name


def read_text(folder: Path, name: str) -> str | None:
    """Return the text of the file `name` in `folder`, or None if the file does not exist. Raises CheckpointError if the file
    cannot be read."""
    if not (folder / name).exists() and not (folder / name).is_symlink():
        return None
    file = path_inside(folder, name, str(folder / name))
    try:
        return file.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read: {error}", where=str(file), remedy="Download the file again.") from None


def read_object(folder: Path, name: str) -> dict[str, Any] | None:
    """Return the JSON object in the file `name` of `folder`, or None if the file does not exist.

    Raises CheckpointError if the file contains invalid JSON or a JSON value that is not an object.
    """
    text = read_text(folder, name)
    if text is None:
        return None
    try:
        value = json.loads(text)
        if not isinstance(value, dict):
            raise ValueError(f"a JSON {type(value).__name__}, not an object")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"invalid JSON: {error}", where=str(folder / name), remedy="Download the file again."
        ) from None
    return value


def find_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return all tensors of a checkpoint folder by name, from `model.safetensors` or from all shards in the shard index.

    Only the headers of the safetensors files are read. Raises CheckpointError if a safetensors file is missing, or if the shard
    index and the shards disagree.
    """
    index = read_object(folder, INDEX)
    single = folder / WEIGHTS
    if index is not None and single.exists():
        raise CheckpointError(
            f"the folder has both {WEIGHTS} and {INDEX}",
            where=str(folder),
            remedy="Delete the file that does not belong to this checkpoint.",
        )
    if index is not None:
        return _read_sharded(folder, index)
    if not single.exists() and not single.is_symlink():
        raise _no_weights_error(folder)
    return read_header(path_inside(folder, WEIGHTS, str(folder)))


def _no_weights_error(folder: Path) -> CheckpointError:
    names = sorted(entry.name for entry in folder.iterdir())
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        return CheckpointError(
            f"{list_first_names(pickles)} is a pickle, which can run any code when it is opened; it was not opened",
            where=str(folder),
            remedy=f"Use a checkpoint with {WEIGHTS}. If you trust this checkpoint, convert its weights to safetensors.",
        )
    shards = [name for name in names if name.endswith(".safetensors")]
    return CheckpointError(
        f"no {WEIGHTS} and no {INDEX}" + (f", only {list_first_names(shards)}" if shards else ""),
        where=str(folder),
        remedy=f"Download {INDEX if shards else 'the weights'} too.",
    )


def _read_sharded(folder: Path, index: Mapping[str, Any]) -> dict[str, StoredTensor]:
    where = str(folder / INDEX)
    places = index.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()) or not places:
        raise CheckpointError(
            "key 'weight_map' does not map tensor names to files", where=where, remedy="Download the file again."
        )
    files = {name: path_inside(folder, name, where) for name in sorted(set(places.values()))}
    if missing := [name for name, file in files.items() if not file.exists()]:
        raise CheckpointError(
            f"missing shards: {list_first_names(missing)} (the index lists {len(files)})",
            where=where,
            remedy="Download the missing shards.",
        )
    shards = {name: read_header(file) for name, file in files.items()}
    problems = [
        f"{tensor} is in {name}, but the index {f'says {places[tensor]}' if tensor in places else 'does not name it'}"
        for name, tensors in shards.items()
        for tensor in tensors
        if places.get(tensor) != name
    ]
    problems += [f"{tensor} is not in {name}" for tensor, name in places.items() if tensor not in shards[name]]
    if problems:
        raise CheckpointError(
            f"index and shards disagree: {list_first_names(problems)}",
            where=where,
            remedy="Download the index and the shards again, together.",
        )
    return {tensor: stored for tensors in shards.values() for tensor, stored in tensors.items()}


def check_target_unused(final: Path) -> None:
    """Raise CheckpointError if the path `final` exists and is not an empty folder."""
    if final.is_symlink() or (final.exists() and not final.is_dir()) or (final.is_dir() and any(final.iterdir())):
        raise CheckpointError(
            "the target already exists", where=str(final), remedy="Choose a new folder, or delete this folder."
        )


@contextmanager
def atomic_folder(final: Path, *, needs: int, resumes: bool = False) -> Iterator[Path]:
    """Yield a temporary folder. The temporary folder is renamed to `final` at the end of the `with` block, or deleted if the
    block raises.

    A temporary folder that a killed process left behind is deleted before the `with` block. With `resumes`, the left-behind
    folder is reused instead of deleted, and the temporary folder is also kept after an interruption or an OSError. Raises
    RorqualError before the `with` block if less than `needs` bytes are free on the disk, or if another process writes to
    `final`. The message of an OSError names `final`.
    """
    check_target_unused(final)
    final = final.absolute()
    temporary = final.with_name(f".{final.name}.part")
    with acquire_lock(final, "Wait for it, or choose another folder."):
        check_target_unused(final)
        if not resumes:
            shutil.rmtree(temporary, ignore_errors=True)
        _check_free_space(temporary, needs)
        temporary.mkdir(exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, final)
        except BaseException as error:
            if not resumes or not isinstance(error, OSError | KeyboardInterrupt):
                shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, OSError) and error.filename is None:
                error.filename = str(final)
            raise


def _check_free_space(folder: Path, needs: int) -> None:
    written = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    free = shutil.disk_usage(folder.parent).free
    if needs - written > free:
        raise RorqualError(
            f"{needs - written:,} bytes are needed, but only {free:,} are free",
            where=str(folder.parent),
            remedy="Free disk space, or choose a folder on another disk.",
        )


def chat_settings(run: RunDir) -> dict[str, Any]:
    """Return the keys `chat` and `generation` of a run's `run.yaml`, for a run that is derived from this run."""
    generation = {key: value for key, value in run.config().items() if key == "generation"}
    return {"chat": read_section(run, "chat"), **generation}


def copy_chat_template(run: RunDir, folder: Path) -> None:
    """Copy the chat template of a run, if it has one, into the folder of a run that is derived from this run."""
    if (file := run.path / TEMPLATE_FILE).is_file():
        shutil.copyfile(file, folder / TEMPLATE_FILE)


@contextmanager
def new_run_folder(
    out: Path, settings: Mapping[str, Any], tokenizer: bytes, *, needs: int, step: str = FIRST
) -> Iterator[Path]:
    """Yield the folder of the checkpoint `step` in a new run directory. The new run directory becomes `out` at the end of the
    `with` block.

    `settings` and the plug-in files that are loaded become the `run.yaml` of the new run directory. The manifest of the
    checkpoint lists the files that the `with` block writes into the yielded folder.
    """
    with atomic_folder(out, needs=needs) as folder:
        (folder / step).mkdir()
        yield folder / step
        sizes = {file.name: file.stat().st_size for file in sorted((folder / step).iterdir())}
        write_json(folder / step / MANIFEST_FILE, sizes)
        (folder / TOKENIZER_FILE).write_bytes(tokenizer)
        plugins = {"plugins": dict(loaded_plugins())} if loaded_plugins() else {}
        text = yaml.safe_dump({**settings, **plugins}, sort_keys=False, allow_unicode=True)
        (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
