"""Import and export of Hugging Face folders: config, tokenizer, sharded safetensors and generation config.

A tensor whose dtype does not change is copied byte by byte. A repeated export resumes an interrupted export. A repeated import
starts from the beginning again. Import and export write to a temporary folder and rename the temporary folder when all files
are complete.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import rorqual
from rorqual.convert.files import INDEX, WEIGHTS, atomic_folder, check_target_unused, find_tensors, new_run_folder
from rorqual.convert.merge import full_weights_file
from rorqual.convert.metadata_files import (
    ORIGINALS,
    TEMPLATE,
    CheckpointMetadata,
    exported_metadata_files,
    fp8_config,
    json_bytes,
    read_checkpoint_metadata,
)
from rorqual.convert.safetensors_slices import (
    FP8,
    TYPES,
    Progress,
    TensorSpec,
    header_bytes,
    sort_by_item_size,
    write_tensors,
)
from rorqual.convert.tensor_jobs import (
    CountedChunks,
    DType,
    TensorJob,
    export_jobs,
    find_copied_tensors,
    import_jobs,
    read_run_tensors,
    run_parts_by_hf_name,
)
from rorqual.core.errors import CheckpointError, ConfigError, suggest_name
from rorqual.core.records import RunDir, write_json
from rorqual.model.load.find import family_for, family_of
from rorqual.model.load.names import NameMap
from rorqual.model.load.run_directory import WEIGHTS_FILE, read_model_config

SHARD_BYTES = 5e9
"""Maximum shard size in bytes. transformers 4 has the same default shard size."""
STATE_FILE = ".export.json"
"""Name of the file in which an unfinished export records its source and settings."""
_DERIVED = ".rotary_emb.inv_freq"
"""Name suffix of tensors that import skips. Older checkpoints contain tensors with this suffix, but the config determines the
values of these tensors."""


def no_progress(done: int, total: int, name: str) -> None:
    """Do nothing: the default progress callback, which reports no progress."""


def import_hf(src: Path, out: Path, *, dtype: DType = "keep", progress: Progress = no_progress) -> tuple[str, ...]:
    """Import a folder with config.json, tokenizer.json and safetensors as the run directory `out`.

    `out` must not exist or must be an empty folder. `dtype="keep"` copies the bytes of every tensor, including FP8 scales. With
    "float32", "bfloat16" and "float16", all tensors are converted and FP8 tensors are dequantised. The router bias is always
    imported as fp32. Returns notes on the import for the user.

    Before any tensor is read, raises ConfigError, CheckpointError or DataError for an invalid config, header or text file.
    Raises NumericsError if a weight is NaN or infinite.
    """
    _check_dtype(dtype, ("keep", "float32", "bfloat16", "float16"))
    check_target_unused(out)
    if not src.is_dir():
        raise CheckpointError(
            "no such folder",
            where=str(src),
            remedy="Give a folder with config.json and safetensors, a .gguf file, or ORG/NAME on the hub.",
        )
    texts = read_checkpoint_metadata(src)
    tensors = {name: stored for name, stored in find_tensors(src).items() if not name.endswith(_DERIVED)}
    names = texts.family.name_map(texts.model)
    jobs = import_jobs(names, texts.model, tensors, dtype, str(src))
    counted = CountedChunks(jobs, progress)
    copies = find_copied_tensors(names, tensors, str(src))
    settings = _settings(texts, src, dtype, copies)
    with new_run_folder(out, settings, texts.tokenizer.source.encode(), needs=counted.total) as step:
        write_tensors(step / WEIGHTS_FILE, [job.spec for job in jobs], counted)
        if texts.template is not None:
            (step.parent / TEMPLATE).write_bytes(texts.template.encode())
        (step.parent / ORIGINALS).mkdir()
        for name, original in texts.originals.items():
            (step.parent / ORIGINALS / name).write_bytes(original)
    return texts.notes


def _check_dtype(dtype: str, allowed: Iterable[str]) -> None:
    if dtype not in allowed:
        raise ConfigError(f"unknown type '{dtype}'", where="dtype", remedy=suggest_name(dtype, allowed))


def _settings(texts: CheckpointMetadata, src: Path, dtype: DType, copies: list[str]) -> dict[str, Any]:
    """Return the content of the `run.yaml` of the imported run."""
    imported: dict[str, Any] = {
        "source": str(src), "format": "hf", "family": texts.model_type, "dtype": dtype, "copies": copies,
    }  # fmt: skip
    if texts.quantization is not None and dtype == "keep":
        imported["quantization"] = texts.quantization
    data: dict[str, Any] = {
        "recipe": "import", "chat": texts.chat, "model": texts.model.model_dump(mode="json"), "imported": imported,
    }  # fmt: skip
    return data | ({"generation": texts.generation} if texts.generation else {})


def export_hf(
    run: RunDir, dst: Path, *, dtype: DType = "keep", shard_bytes: float = SHARD_BYTES, progress: Progress = no_progress
) -> None:
    """Export the newest complete checkpoint of a run as a folder that transformers or an engine such as vLLM can load.

    `dtype` accepts the values of `import_hf` and also "fp8". With "fp8", all projections are FP8 (E4M3) with one scale per 128
    x 128 block, and all other tensors are bfloat16, as in the published DeepSeek-V3. A shard holds at most `shard_bytes` bytes,
    unless a single tensor is larger than `shard_bytes`. A repeated call resumes an interrupted export and keeps the complete
    shards.
    """
    _check_dtype(dtype, get_args(DType))
    check_target_unused(dst)
    file = full_weights_file(run)
    model = read_model_config(run)
    tensors = read_run_tensors(file, model)
    imported = run.config().get("imported") or {}
    family = family_of(str(imported["family"]), str(run.config_file)) if "family" in imported else family_for(model)
    names = family.name_map(model)
    pieces = run_parts_by_hf_name(names, model, tensors, str(file))
    jobs = export_jobs(names, pieces, dtype, _copied_names(names, imported))
    texts = exported_metadata_files(run, family, model, _main_dtype(jobs), _exported_quantization(jobs, imported))
    shards = _shards(jobs, shard_bytes)
    counted = CountedChunks(jobs, progress)
    with atomic_folder(dst, needs=counted.total, resumes=True) as folder:
        _begin_export(
            folder,
            {"source": _source_identity(file), "dtype": dtype, "shard_bytes": shard_bytes, "by": rorqual.__version__},
        )
        for name, shard_jobs in shards.items():
            specs = [job.spec for job in shard_jobs]
            if (folder / name).is_file() and (folder / name).stat().st_size == _total_bytes(specs):
                counted.add(sum(spec.n_bytes for spec in specs), name)
            else:
                write_tensors(folder / name, specs, counted)
        if len(shards) > 1:
            (folder / INDEX).write_bytes(json_bytes(_shard_index(shards)))
        for name, data in texts.items():
            (folder / name).write_bytes(data)
        (folder / STATE_FILE).unlink()


def _copied_names(names: NameMap, imported: Mapping[str, Any]) -> list[str]:
    """Return the Hugging Face names of tensors that the export writes as copies of other tensors.

    For an imported run, the copied tensors are the copies in the imported checkpoint. For any other run, the copied tensors are
    all copies in `names` except a tied head.
    """
    if isinstance(imported.get("copies"), list):
        return [name for name in names.copies if name in imported["copies"]]
    return [name for name in names.copies if name != "lm_head.weight"]


def _main_dtype(jobs: Iterable[TensorJob]) -> str:
    """Return the torch name of the dtype whose tensors have the largest total size, FP8 excluded."""
    bytes_of: Counter[str] = Counter()
    for job in jobs:
        bytes_of[job.spec.dtype] += job.spec.n_bytes if job.spec.dtype != FP8 else 0
    return str(TYPES[bytes_of.most_common(1)[0][0]]).removeprefix("torch.")


def _exported_quantization(jobs: Iterable[TensorJob], imported: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the `quantization_config` of an export, or None if no tensor is FP8.

    If the run was imported with a `quantization_config`, the imported `quantization_config` is returned. For any other run, a
    new `quantization_config` is built.
    """
    specs = [job.spec for job in jobs]
    if all(spec.dtype != FP8 for spec in specs):
        return None
    if isinstance(imported.get("quantization"), dict):
        return dict(imported["quantization"])
    plain = [
        spec.name for spec in specs if len(spec.shape) == 2 and spec.dtype != FP8 and spec.name.endswith(".weight")
    ]
    return fp8_config([name.removesuffix(".weight") for name in plain if "embed_tokens" not in name])


def _shards(jobs: Iterable[TensorJob], shard_bytes: float) -> dict[str, list[TensorJob]]:
    """Assign the tensor jobs to shards, in order. Return the tensor jobs of each shard by the shard's file name."""
    groups: list[list[TensorJob]] = []
    room = 0.0
    for job in jobs:
        if not groups or job.spec.n_bytes > room:
            groups.append([])
            room = shard_bytes
        groups[-1].append(job)
        room -= job.spec.n_bytes
    if len(groups) == 1:
        return {WEIGHTS: groups[0]}
    return {f"model-{n:05d}-of-{len(groups):05d}.safetensors": group for n, group in enumerate(groups, start=1)}


def _shard_index(shards: Mapping[str, list[TensorJob]]) -> dict[str, Any]:
    places = {job.spec.name: name for name, jobs in shards.items() for job in jobs}
    total = sum(job.spec.n_bytes for jobs in shards.values() for job in jobs)
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}


def _total_bytes(specs: list[TensorSpec]) -> int:
    return len(header_bytes(sort_by_item_size(specs))) + sum(spec.n_bytes for spec in specs)


def _source_identity(file: Path) -> dict[str, Any]:
    """Return the values that identify an export's source file: path, size and modification time."""
    status = file.stat()
    return {"file": str(file.resolve()), "size": status.st_size, "time": status.st_mtime_ns}


def _begin_export(folder: Path, state: Mapping[str, Any]) -> None:
    """Prepare the folder of an export. All files of an earlier export are deleted unless `state` equals the state recorded in
    `STATE_FILE`."""
    file = folder / STATE_FILE
    if not file.is_file() or json.loads(file.read_text(encoding="utf-8")) != state:
        for entry in folder.iterdir():
            entry.unlink()
        write_json(file, state)
