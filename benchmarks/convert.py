"""Memory and time of conversions: a synthetic sharded checkpoint of DeepSeek-V3's shape, in and out, as folder and as GGUF.

    python benchmarks/convert.py --work FOLDER

Each conversion is the command `rorqual`, in a process of its own, whose anonymous memory (RssAnon: what cannot be dropped as pages of
a file can) is read every 20 ms. What comes out is compared with what went in, byte for byte. FOLDER needs some 27 GB and is
emptied afterwards.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from record import made_by

from rorqual.convert.files import INDEX, find_tensors
from rorqual.convert.hf import SHARD_BYTES
from rorqual.convert.stream import CHUNK, Spec, write_tensors
from rorqual.convert.tensors import shapes_of
from rorqual.convert.texts import json_bytes
from rorqual.core.records import write_json
from rorqual.data.tokenizer import Tokenizer
from rorqual.model import ModelConfig
from rorqual.model.ffn import MoEConfig
from rorqual.model.load.deepseek_v3 import config_to_hf, name_map
from rorqual.model.presets import preset

LIMIT = 1.5e9
"""Bytes of anonymous memory that a conversion may take."""
HIDDEN, EXPERTS, WIDTH = 2048, 64, 1024
LAYER = 3 * EXPERTS * WIDTH * HIDDEN * 2
"""Bytes of a layer's experts in bfloat16."""


def main() -> None:
    """Make it, convert it there and back in both formats, and write down what that took."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder that does not exist, on a disk with room")
    parser.add_argument("--gb", type=float, default=8.0, help="size of the checkpoint, in thousand million bytes")
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
    """The four conversions, each deleted as soon as nothing needs it."""
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
    """DeepSeek-V3, narrower and with fewer layers and experts: one dense layer, layers of experts, a prediction module."""
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
    """Write the checkpoint in bfloat16, in shards with an index; returns its bytes."""
    folder.mkdir()
    names, ours = name_map(config), shapes_of(config)
    specs = []
    for entry in names.entries:
        whole = ours[entry.ours]
        one = {"alone": whole, "stack": whole[1:], "pairs": (whole[1] // 2, *whole[2:]) if len(whole) > 1 else whole}
        kind = "F32" if entry.ours.endswith("e_score_correction_bias") else "BF16"
        specs += [Spec(name, kind, one[entry.kind]) for name in entry.theirs]
    shards: list[list[Spec]] = [[]]
    for spec in specs:
        if sum(other.size for other in shards[-1]) + spec.size > SHARD_BYTES / 4:
            shards.append([])
        shards[-1].append(spec)
    values = torch.randn(CHUNK // 2, generator=torch.Generator().manual_seed(0)).mul_(0.02)
    noise = {"BF16": values.bfloat16().view(torch.uint8).numpy().tobytes(), "F32": values.numpy().tobytes()}
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = folder / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(file, shard, lambda spec: repeated(noise[spec.dtype], spec))
        places |= {spec.name: file.name for spec in shard}
    (folder / INDEX).write_bytes(json_bytes({"metadata": {}, "weight_map": places}))
    (folder / "config.json").write_bytes(json_bytes(config_to_hf(config)))
    Tokenizer.byte_level().save(folder / "tokenizer.json")
    return sum(spec.size for spec in specs)


def repeated(noise: bytes, spec: Spec) -> Iterator[memoryview]:
    """As many bytes as the tensor has, from a place in the noise that its name decides, so that neighbours differ."""
    start = sum(spec.name.encode()) * 4096 % len(noise)
    left = spec.size
    while left:
        piece = memoryview(noise)[start : start + left]
        left -= len(piece)
        start = 0
        yield piece


def convert(name: str, words: list[Any]) -> dict[str, Any]:
    """Run `rorqual WORDS` and watch its memory."""
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
    """RssAnon of a process in bytes; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").split("\n")
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def equal(one: Path, other: Path) -> bool:
    """Whether two folders hold the same tensors, byte for byte."""
    a, b = find_tensors(one), find_tensors(other)
    return a.keys() == b.keys() and all(
        (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape)
        and all(x == y for x, y in zip_longest(a[name].chunks(), b[name].chunks()))
        for name in a
    )


if __name__ == "__main__":
    main()
