"""Measure many LoRA adapters on one base model in one engine: memory, tokens per second, and whether each answer has its bits alone.

    python benchmarks/adapters.py RUN --work runs/adapters

RUN is a run directory of a whole model. The benchmark writes --count random adapters (all linear maps, both matrices random) to --work.
Memory is the proportional set size of a fresh process after the load and after a batch, with no adapter, with one and with all. Speed is
the decoding of --rows requests of one prompt length: each with an adapter of its own, all with one adapter, and all with none, in turn.
Speed is also given in core-seconds, which other work on the machine disturbs less. Every answer of the mixed batch is compared with the
answer of an engine that holds its adapter alone and runs it alone. Some adapters are compared with an engine of their merged weights.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from record import ROOT, made_by

from rorqual.core.records import RunDir, write_json
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Completion, Engine, Request, SamplingParams
from rorqual.model.adapter import Adapter, LoRA
from rorqual.model.adapter.files import record_base_checkpoint
from rorqual.model.load.run_directory import read_model_config
from rorqual.model.meta_device import build_on_meta_device

RESULT = ROOT / "docs" / "results" / "adapters.json"
Row = dict[str, Any]


def write_adapter(run: Path, base: RunDir, seed: int, rank: int) -> Path:
    """Write a run whose adapter of `base` has random matrices, and return its checkpoint."""
    folder = RunDir(run).step_dir(1)
    if folder.is_dir():
        return folder
    tune, generator = LoRA(r=rank), torch.Generator().manual_seed(seed)
    shapes = tune.trained_shapes(build_on_meta_device(read_model_config(base)))
    tensors = {name: 0.1 * torch.randn(shape, generator=generator) / shape[-1] ** 0.5 for name, shape in shapes.items()}
    folder.mkdir(parents=True)
    beside = record_base_checkpoint(base.checkpoint(), named=str(base.path), seen_from=run)
    files = Adapter(base=beside, tune=tune).file_contents(tensors)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    write_json(folder / "whole.json", {name: len(data) for name, data in files.items()})
    for file in (base.config_file, base.tokenizer_file):
        (run / file.name).write_bytes(file.read_bytes())
    return folder


def requests(a: argparse.Namespace, adapters: list[str], **how: Any) -> list[Request]:
    """Return one request per adapter, with prompts of this project's documentation."""
    text = (ROOT / "docs" / "explanation" / "engine.md").read_text(encoding="utf-8")
    ids = Tokenizer.load(RunDir(a.run).tokenizer_file).encode(text)
    params = SamplingParams(**{"max_tokens": a.tokens, "temperature": 1.0, "ignore_eos": True, "seed": 1, **how})
    prompts = [tuple(ids[16 * n : 16 * n + a.prompt]) for n in range(len(adapters))]
    return [Request(prompt_ids=prompt, params=params, adapter=name) for prompt, name in zip(prompts, adapters)]


def engine_of(a: argparse.Namespace, folders: dict[str, Path], run: Path | None = None) -> Engine:
    engine = Engine(
        run or a.run, dtype=a.dtype, reuse=False, slots=a.rows, engine_cores=1, record_experts=False, backend=a.backend
    )
    for name, folder in folders.items():
        engine.load_adapter(name, folder)
    return engine


RATES = ("tokens per second", "tokens per core-second", "prompt tokens per core-second")


def decode(engine: Engine, asked: list[Request]) -> tuple[list[Completion], list[float]]:
    """Return the answers and the `RATES`: of the steps in which every request decodes, and of the prompts before."""
    for request in asked:
        engine.submit(request)
    found: dict[int, Completion] = {}
    core = time.process_time()
    while len(engine.step()) < len(asked):
        pass  # the prompts are computed
    prompts = time.process_time() - core
    wall, core, tokens = time.perf_counter(), time.process_time(), 0
    while len(found) < len(asked):
        deltas = engine.step()
        tokens += len(deltas)
        found |= {delta.request_id: delta.completion for delta in deltas if delta.completion is not None}
    spent = time.perf_counter() - wall, time.process_time() - core
    rates = [tokens / spent[0], tokens / spent[1], sum(len(r.prompt_ids or ()) for r in asked) / prompts]
    return [found[i] for i in sorted(found)], rates


def memory(a: argparse.Namespace, folders: dict[str, Path]) -> Row:
    """Return the bytes of this process: loaded, and after a batch of --rows requests over the adapters."""
    engine = engine_of(a, folders)
    names = [*folders] or [""]
    loaded = resident()
    decode(engine, requests(a, [names[n % len(names)] for n in range(a.rows)]))
    return {"loaded": loaded, "after a batch": resident()}


def resident() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").split("\n")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def speed(a: argparse.Namespace, folders: dict[str, Path]) -> Row:
    """Return the `RATES` of each kind of batch, in turn, and whether every answer has its bits alone."""
    engine, plain, names = engine_of(a, folders), engine_of(a, {}), [*folders]
    mixed = requests(a, [names[n % len(names)] for n in range(a.rows)])
    kinds = {
        "mixed": (engine, mixed),
        "one adapter": (engine, requests(a, names[:1] * a.rows)),
        "base, adapters loaded": (engine, requests(a, [""] * a.rows)),
        "base, no adapters": (plain, requests(a, [""] * a.rows)),
    }
    answers: dict[str, list[Completion]] = {}
    found: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
    for turn in range(a.turns + 1):
        for kind, (one, asked) in kinds.items():
            answers[kind], rates = decode(one, asked)
            if turn:  # the first turn warms up
                found[kind].append(rates)
    same = 0
    for number, request in enumerate(mixed):
        plain.load_adapter(request.adapter, folders[request.adapter])
        [expected], _ = decode(plain, [request])
        plain.unload_adapter(request.adapter)
        got = answers["mixed"][number]
        same += (got.token_ids, got.logprobs) == (expected.token_ids, expected.logprobs)
    equal = all(
        (x.token_ids, x.logprobs) == (y.token_ids, y.logprobs)
        for x, y in zip(answers["base, adapters loaded"], answers["base, no adapters"])
    )
    return {
        **{
            name: compare({kind: [row[i] for row in rows] for kind, rows in found.items()})
            for i, name in enumerate(RATES)
        },
        "answers with the bits of their adapter alone": same,
        "answers": len(mixed),
        "base answers have the bits of an engine without adapters": equal,
    }


def compare(rates: dict[str, list[float]]) -> Row:
    """Return the rates of each kind of batch, and the ratios of those that were measured in one turn."""
    row: Row = {kind: [round(rate, 2) for rate in values] for kind, values in rates.items()}
    for kind in [*rates][1:]:
        ratios = [x / y for x, y in zip(rates["mixed"], rates[kind], strict=True)]
        row[f"mixed / {kind}"] = [round(ratio, 4) for ratio in ratios]
        row[f"mixed / {kind}, median"] = round(statistics.median(ratios), 4)
    return row


def merged(a: argparse.Namespace, folders: dict[str, Path]) -> Row:
    """Return the largest difference of prompt log-probabilities from those of the merged weights."""
    near, far, largest = 0.0, 0.0, 0.0
    for name in list(folders)[: a.merged]:
        asked = requests(a, [name, ""], prompt_logprobs=0, max_tokens=1)
        asked[1] = Request(prompt_ids=asked[0].prompt_ids, params=asked[0].params)
        [adapted], [base] = engine_of(a, {name: folders[name]}).generate(asked)
        engine = engine_of(a, {}, folders[name].parent)
        [[whole]] = engine.generate(asked[1:])
        with torch.inference_mode():
            model = engine.scoring_model
            largest = max(largest, float(model.logits(model(torch.tensor([asked[0].prompt_ids])).hidden).abs().max()))
        got, same, other = (torch.tensor((c.prompt_logprobs or [])[1:]) for c in (adapted, whole, base))
        near, far = max(near, float((got - same).abs().max())), max(far, float((got - other).abs().max()))
    return {
        "largest difference from merged weights": near,
        "largest difference from the base": far,
        "largest logit": largest,
        "difference / largest logit": near / largest,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--rank", type=int, default=16, help="the default is that of fine-tuning jobs")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--merged", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--backend", default="auto", help="the default is that of `rorqual serve`")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    base = RunDir(a.run)
    folders = {f"adapter-{n}": write_adapter(a.work / f"adapter-{n}", base, n, a.rank) for n in range(a.count)}
    parts = {
        "memory, no adapter": lambda: memory(a, {}),
        "memory, one adapter": lambda: memory(a, dict([*folders.items()][:1])),
        "memory, all adapters": lambda: memory(a, folders),
        "speed": lambda: speed(a, folders),
        "merged weights": lambda: merged(a, folders),
    }
    if a.part:
        print(json.dumps(parts[a.part]()))
        return
    found: Row = {}
    for part in parts:  # each in a fresh process
        words = [sys.executable, __file__, *sys.argv[1:], "--part", part]
        done = subprocess.run(words, stdout=subprocess.PIPE, check=True, text=True, encoding="utf-8")
        found[part] = json.loads(done.stdout.splitlines()[-1])
        print(part, json.dumps(found[part], indent=1), flush=True)
    found["memory, all / one"] = {
        when: round(found["memory, all adapters"][when] / found["memory, one adapter"][when], 4)
        for when in found["memory, one adapter"]
    }
    size = sum(file.stat().st_size for file in folders["adapter-0"].iterdir())
    given = {
        name: getattr(a, name) for name in ("count", "rank", "rows", "prompt", "tokens", "dtype", "backend", "threads")
    }
    made = made_by({a.run: "RUN", a.work: "runs/adapters"})
    write_json(a.result, given | found | {"bytes of an adapter": size, "load": os.getloadavg()[0], "made by": made})


if __name__ == "__main__":
    main()
