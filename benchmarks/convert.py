"""Measure memory and time of conversions: import and export a synthetic sharded checkpoint of DeepSeek-V3's shape, as folder and GGUF.

    python benchmarks/convert.py --work FOLDER

Each conversion runs the `rorqual` command in a process of its own. The benchmark reads its anonymous memory (RssAnon, which unlike file
pages cannot be dropped) every 20 ms. The exported folder is compared with the original byte by byte. FOLDER needs about 27 GB and is
deleted afterwards.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from record import made_by

from rorqual.convert.files import INDEX, find_tensors
from rorqual.convert.hf import SHARD_BYTES
from rorqual.convert.metadata_files import json_bytes
from rorqual.convert.safetensors_slices import CHUNK, Bytes, TensorSpec, write_tensors
from rorqual.convert.tensor_jobs import shapes_of
from rorqual.core.records import write_json
from rorqual.data.tokenizer import Tokenizer
from rorqual.model import ModelConfig
from rorqual.model.ffn import MoEConfig
from rorqual.model.load.deepseek_v3 import config_to_hf, name_map
from rorqual.model.presets import preset

LIMIT = 1.5e9
"""Maximum anonymous memory of a conversion in bytes."""
HIDDEN, EXPERTS, WIDTH = 2048, 64, 1024
LAYER = 3 * EXPERTS * WIDTH * HIDDEN * 2
"""Bytes of a layer's experts in bfloat16."""


def main() -> None:
    """Make the checkpoint, convert it in both directions and formats, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="a new folder, on a disk with enough space")
    parser.add_argument("--gb", type=float, default=8.0, help="size of the checkpoint in GB (10^9 bytes)")
    parser.add_argument("--result", type=Path, default=Path("docs/results/convert.json"))
    a = parser.parse_args()
    a.work.mkdir(parents=True)
    try:
        document = measure(a.work, a.gb)
    finally:
        shutil.rmtree(a.work)
    write_json(a.result, {**document, "made by": made_by({a.work: "FOLDER"})})
    worst = max(row["peak anonymous bytes"] for row in document["conversions"])
    print(f"at most {worst / 1e9:.2f} GB of anonymous memory, of {LIMIT / 1e9} allowed")
    if worst > LIMIT:
        raise SystemExit(1)


def measure(work: Path, gb: float) -> dict[str, Any]:
    """Run the four conversions. Delete each result as soon as it is not needed."""
    config = shape(gb)
    hub, run, out, gguf, back = (work / name for name in ("hub", "run", "out", "model.gguf", "back"))
    size = make(hub, config)
    rows = [convert("import hf", ["import", hub, run])]
    rows.append(convert("export hf", ["export", run, out]))
    same = equal(hub, out)
    shutil.rmtree(hub)
    shutil.rmtree(out)
    rows.append(convert("export gguf", ["export", run, gguf, "format=gguf", "dtype=bfloat16"]))
    shutil.rmtree(run)
    rows.append(convert("import gguf", ["import", gguf, back]))
    return {
        "what": "peak anonymous memory and time of converting a synthetic sharded checkpoint of DeepSeek-V3's shape",
        "checkpoint": {
            "bytes": size,
            "parameters": sum(torch.Size(shape).numel() for shape in shapes_of(config).values()),
            "layers": len(config.layers),
            "experts of a layer": EXPERTS,
            "prediction modules": config.num_nextn_predict_layers,
        },
        "import hf, then export hf: every tensor's bytes are the same": same,
        "limit in bytes": LIMIT,
        "conversions": rows,
    }


def shape(gb: float) -> ModelConfig:
    """Return a smaller DeepSeek-V3 of about `gb` GB: one dense layer, layers with experts, and an MTP module."""
    v3 = preset("deepseek-v3")
    dense, moe = v3.stages[0], v3.stages[-1]
    attention = moe.attention.model_copy(update={"num_attention_heads": 16, "q_lora_rank": 512})
    assert isinstance(moe.ffn, MoEConfig)
    router = moe.ffn.router.model_copy(update={"n_routed_experts": EXPERTS})
    experts = moe.ffn.model_copy(update={"router": router, "moe_intermediate_size": WIDTH})
    layers = max(1, round((gb * 1e9 - 4 * v3.vocab_size * HIDDEN) / LAYER) - 1)
    return v3.model_copy(
        update={
            "hidden_size": HIDDEN,
            "stages": (
                dense.model_copy(update={"layers": 1, "attention": attention}),
                moe.model_copy(update={"layers": layers, "attention": attention, "ffn": experts}),
            ),
        }
    )


def make(folder: Path, config: ModelConfig) -> int:
    """Write the checkpoint in bfloat16, in shards with an index. Return its bytes."""
    folder.mkdir()
    names, ours = name_map(config), shapes_of(config)
    specs = []
    for entry in names.entries:
        kind = "F32" if entry.internal.endswith("e_score_correction_bias") else "BF16"
        specs += [TensorSpec(name, kind, entry.published_shape(ours[entry.internal])) for name in entry.published]
    shards: list[list[TensorSpec]] = [[]]
    for spec in specs:
        if sum(other.n_bytes for other in shards[-1]) + spec.size > SHARD_BYTES / 4:
            shards.append([])
        shards[-1].append(spec)
    values = torch.randn(CHUNK // 2, generator=torch.Generator().manual_seed(0)).mul_(0.02)
    noise = {"BF16": values.bfloat16().view(torch.uint8).numpy(), "F32": values.view(torch.uint8).numpy()}
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = folder / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(file, shard, lambda spec: repeated(noise[spec.dtype], spec))
        places |= {spec.name: file.name for spec in shard}
    (folder / INDEX).write_bytes(json_bytes({"metadata": {}, "weight_map": places}))
    (folder / "config.json").write_bytes(json_bytes(config_to_hf(config)))
    Tokenizer.byte_level().save(folder / "tokenizer.json")
    return sum(spec.size for spec in specs)


def repeated(noise: Bytes, spec: TensorSpec) -> Iterator[Bytes]:
    """Yield the tensor's bytes from the noise. The offset depends on its name, so that similar tensors differ."""
    start = sum(spec.name.encode()) * 4096 % len(noise)
    left = spec.n_bytes
    while left:
        piece = noise[start : start + left]
        left -= len(piece)
        start = 0
        yield piece


def convert(name: str, words: list[Any]) -> dict[str, Any]:
    """Run `rorqual WORDS`, and return its peak memory and time."""
    began = time.monotonic()
    command = [sys.executable, "-m", "rorqual", *map(str, words), "quiet=true"]
    process = subprocess.Popen(command)
    peak = 0
    while process.poll() is None:
        peak = max(peak, anonymous(process.pid))
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{name} failed")
    row = {"conversion": name, "peak anonymous bytes": peak, "seconds": round(time.monotonic() - began, 1)}
    print(row, flush=True)
    return row


def anonymous(pid: int) -> int:
    """Return a process's RssAnon in bytes, or 0 after it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").split("\n")
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def equal(one: Path, other: Path) -> bool:
    """Return whether two folders hold the same tensors, byte by byte."""
    a, b = find_tensors(one), find_tensors(other)
    return a.keys() == b.keys() and all(
        (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape)
        and all(torch.equal(a[name].rows(*rows), b[name].rows(*rows)) for rows in a[name].slices())
        for name in a
    )


if __name__ == "__main__":
    main()
