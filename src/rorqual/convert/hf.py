"""Convert Hugging Face folders to run directories and back: config, tokenizer, sharded safetensors, generation config.

A tensor that keeps its type keeps its bytes. An interrupted export resumes; an interrupted import starts again. Both write
under a temporary name and rename the result when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml

import rorqual
from rorqual.convert.cast import FP8, TYPES
from rorqual.convert.files import INDEX, WEIGHTS, find_tensors, in_the_making, refuse_target
from rorqual.convert.merge import whole_weights
from rorqual.convert.stream import Progress, Spec, header_bytes, layout, write_tensors
from rorqual.convert.tensors import CountedChunks, DType, TensorJob, check_copies, export_jobs, import_jobs, our_tensors
from rorqual.convert.texts import ORIGINALS, TEMPLATE, StoredTexts, fp8_config, json_bytes, read_texts, written_texts
from rorqual.core.errors import CheckpointError, ConfigError, nearest
from rorqual.core.records import CONFIG_FILE, TOKENIZER_FILE, WHOLE_FILE, RunDir, write_json
from rorqual.model.load.find import family_for, family_of
from rorqual.model.load.names import NameMap
from rorqual.model.load.run import WEIGHTS_FILE, read_model_config

SHARD_BYTES = 5e9
"""Maximum shard size in bytes, the default of transformers."""
STATE_FILE = ".export.json"
"""The file of an unfinished export that records its source and settings."""
_DERIVED = ".rotary_emb.inv_freq"
"""Suffix of tensors in older checkpoints that follow from the config."""


@dataclass(frozen=True)
class Converted:
    """The result of a conversion: the family's `model_type`, the number of tensors, the bytes, and notes for the user."""

    model_type: str
    tensors: int
    size: int
    notes: tuple[str, ...] = ()


def quiet(done: int, total: int, name: str) -> None:
    """Report no progress."""


def import_hf(src: Path, out: Path, *, dtype: DType = "keep", progress: Progress = quiet) -> Converted:
    """Import a folder with config.json, tokenizer.json and safetensors as the run directory `out`, which must not exist.

    `dtype="keep"` copies every tensor's bytes, FP8 with its scales. "float32", "bfloat16" and "float16" convert and
    dequantise FP8; the router's bias stays fp32.

    Raises ConfigError, CheckpointError or DataError before reading any tensor if config, headers or texts are wrong.
    Raises NumericsError for weights that are not finite.
    """
    _check_dtype(dtype, ("keep", "float32", "bfloat16", "float16"))
    refuse_target(out)
    if not src.is_dir():
        raise CheckpointError(
            "no such folder",
            where=str(src),
            remedy="Give a folder with config.json and safetensors, a .gguf file, or ORG/NAME on the hub.",
        )
    texts = read_texts(src)
    found = find_tensors(src)
    tensors = {name: stored for name, stored in found.items() if not name.endswith(_DERIVED)}
    names = texts.family.name_map(texts.model)
    jobs = import_jobs(names, texts.model, tensors, dtype, str(src))
    counted = CountedChunks(jobs, progress)
    with in_the_making(out, needs=counted.total) as folder:
        copies = check_copies(names, tensors, str(src))
        run = RunDir(folder)
        step = run.step_dir(0)
        step.mkdir()
        size = write_tensors(step / WEIGHTS_FILE, [job.spec for job in jobs], counted)
        write_json(step / WHOLE_FILE, {WEIGHTS_FILE: size})
        _write_texts(folder, texts, src, dtype, copies)
    return Converted(texts.model_type, len(jobs), size, texts.notes)


def _check_dtype(dtype: str, allowed: Iterable[str]) -> None:
    if dtype not in allowed:
        raise ConfigError(f"unknown type '{dtype}'", where="dtype", remedy=nearest(dtype, allowed))


def _write_texts(folder: Path, texts: StoredTexts, src: Path, dtype: DType, copies: list[str]) -> None:
    imported: dict[str, Any] = {
        "source": str(src), "format": "hf", "family": texts.model_type, "dtype": dtype, "copies": copies,
    }  # fmt: skip
    if texts.quantization is not None and dtype == "keep":
        imported["quantization"] = texts.quantization
    data: dict[str, Any] = {
        "recipe": "import", "chat": texts.chat, "model": texts.model.model_dump(mode="json"), "imported": imported,
    }  # fmt: skip
    if texts.generation:
        data["generation"] = texts.generation
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    (folder / TOKENIZER_FILE).write_bytes(texts.tokenizer.source.encode())
    if texts.template is not None:
        (folder / TEMPLATE).write_text(texts.template, encoding="utf-8", newline="")
    (folder / ORIGINALS).mkdir()
    for name, original in texts.originals.items():
        (folder / ORIGINALS / name).write_bytes(original)


def export_hf(
    run: RunDir, dst: Path, *, dtype: DType = "keep", shard_bytes: float = SHARD_BYTES, progress: Progress = quiet
) -> Converted:
    """Export a run directory's newest complete checkpoint as a folder that transformers and other engines read.

    `dtype` is as in `import_hf`. "fp8" writes every projection in FP8 (E4M3) with one scale per 128 x 128 block, like the
    published DeepSeek-V3, and the rest in bfloat16. A shard has at most `shard_bytes` bytes, or one tensor.
    After an interruption, the same call keeps the complete shards.
    """
    _check_dtype(dtype, get_args(DType))
    refuse_target(dst)
    file = whole_weights(run)
    model = read_model_config(run)
    tensors = our_tensors(file, model)
    imported = _imported(run)
    family = family_of(str(imported["family"]), str(run.config_file)) if "family" in imported else family_for(model)
    names = family.name_map(model)
    jobs = export_jobs(names, model, tensors, dtype, _copies(names, imported), str(file))
    texts = written_texts(run, family, model, _most(jobs), _quantization(jobs, imported))
    shards = _shards(jobs, shard_bytes)
    counted = CountedChunks(jobs, progress)
    with in_the_making(dst, needs=counted.total, resumes=True) as folder:
        _begin(
            folder, {"source": _identity(file), "dtype": dtype, "shard_bytes": shard_bytes, "by": rorqual.__version__}
        )
        for name, part in shards.items():
            specs = [job.spec for job in part]
            if (folder / name).is_file() and (folder / name).stat().st_size == _size(specs):
                counted.add(sum(spec.size for spec in specs), name)
            else:
                write_tensors(folder / name, specs, counted)
        if len(shards) > 1:
            (folder / INDEX).write_bytes(json_bytes(_index(shards)))
        for name, data in texts.items():
            (folder / name).write_bytes(data)
        (folder / STATE_FILE).unlink()
    return Converted(str(json.loads(texts["config.json"])["model_type"]), len(jobs), counted.total)


def _imported(run: RunDir) -> Mapping[str, Any]:
    data = yaml.safe_load(run.config_file.read_text(encoding="utf-8"))
    found = data.get("imported") if isinstance(data, dict) else None
    return found if isinstance(found, dict) else {}


def _copies(names: NameMap, imported: Mapping[str, Any]) -> list[str]:
    """Return the copies that the imported checkpoint had. Without an import, return all but a tied head."""
    if isinstance(imported.get("copies"), list):
        return [name for name in names.copies if name in imported["copies"]]
    return [name for name in names.copies if name != "lm_head.weight"]


def _most(jobs: Iterable[TensorJob]) -> str:
    """Return the torch name of the type with the most bytes, FP8 excluded."""
    bytes_of: Counter[str] = Counter()
    for job in jobs:
        bytes_of[job.spec.dtype] += job.spec.size if job.spec.dtype != FP8 else 0
    return str(TYPES[bytes_of.most_common(1)[0][0]]).removeprefix("torch.")


def _quantization(jobs: Iterable[TensorJob], imported: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the imported `quantization_config`, or ours, or None without FP8 tensors."""
    specs = [job.spec for job in jobs]
    if all(spec.dtype != FP8 for spec in specs):
        return None
    if isinstance(imported.get("quantization"), dict):
        return dict(imported["quantization"])
    plain = [
        spec.name for spec in specs if len(spec.shape) == 2 and spec.dtype != FP8 and spec.name.endswith(".weight")
    ]
    return fp8_config([name.removesuffix(".weight") for name in plain if "embed_tokens" not in name])


def _shards(jobs: Iterable[TensorJob], most: float) -> dict[str, list[TensorJob]]:
    """Return the shard files and the jobs of each, in order."""
    groups: list[list[TensorJob]] = []
    room = 0.0
    for job in jobs:
        if not groups or job.spec.size > room:
            groups.append([])
            room = most
        groups[-1].append(job)
        room -= job.spec.size
    if len(groups) == 1:
        return {WEIGHTS: groups[0]}
    return {f"model-{n:05d}-of-{len(groups):05d}.safetensors": group for n, group in enumerate(groups, start=1)}


def _index(shards: Mapping[str, list[TensorJob]]) -> dict[str, Any]:
    places = {job.spec.name: name for name, jobs in shards.items() for job in jobs}
    total = sum(job.spec.size for jobs in shards.values() for job in jobs)
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}


def _size(specs: list[Spec]) -> int:
    return len(header_bytes(layout(specs))) + sum(spec.size for spec in specs)


def _identity(file: Path) -> dict[str, Any]:
    """Return a fingerprint that identifies the source file of an interrupted export."""
    status = file.stat()
    with open(file, "rb") as stream:
        head = hashlib.sha256(stream.read(1 << 20)).hexdigest()
    return {"file": str(file.resolve()), "size": status.st_size, "time": status.st_mtime_ns, "head": head}


def _begin(folder: Path, state: Mapping[str, Any]) -> None:
    """Keep the shards of the same export. Delete everything else in the folder."""
    file = folder / STATE_FILE
    try:
        same = json.loads(file.read_text(encoding="utf-8")) == state
    except (OSError, ValueError):
        same = False
    for entry in folder.iterdir():
        if same and entry.suffix == ".safetensors":
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            os.unlink(entry)
    write_json(file, state)
