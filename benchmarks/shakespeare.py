"""Compare the validation loss per character on tiny Shakespeare with nanoGPT's CPU configuration, for the same number of tokens.

    git clone nanoGPT's repository to NANOGPT; then
    python benchmarks/shakespeare.py --data tinyshakespeare.txt --nanogpt NANOGPT --out runs/shakespeare

nanoGPT's `train.py` runs with the command of its README ("I only have a macbook"). Only seed, threads and a final checkpoint are
changed. Both sides train on 2,000 x 12 x 64 characters of the first nine tenths of the file. Both are measured on the whole last
tenth, in adjacent windows of 64, so that each character is predicted once. Finished runs in `--out` are reused, so the command
can be repeated until it is complete.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import pickle
import re
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import commit, core_seconds, made_by

from rorqual.core.records import RunDir, write_json
from rorqual.data.source.text import read_text_split
from rorqual.data.tokenizer import Tokenizer
from rorqual.evals.perplexity import text_loss
from rorqual.model.account import account
from rorqual.model.load.run_directory import load_run
from rorqual.recipes import make_run
from rorqual.train.loop import fit

STEPS, ROWS, WINDOW = 2000, 12, 64
README = (
    "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1 --block_size=64 --batch_size=12 "
    "--n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
)
SEEDED = (
    "import sys, runpy, torch; seed, sys.argv = int(sys.argv[1]), sys.argv[2:]; torch.set_num_threads({threads}); "
    "plant = torch.manual_seed; torch.manual_seed = lambda _: plant(seed); runpy.run_path(sys.argv[0], run_name='__main__')"
)
"""Runs a script with another seed than its hard-coded 1337."""

ADAMW = "optim={{kind: adamw, lr: {}, betas: [0.9, 0.99], weight_decay: 0.1, schedule: {{warmup: 100, decay: 1.0, final: 0.1}}}}"
OURS = {"rorqual": "", "rorqual, AdamW": ADAMW.format("1e-3"), "rorqual, AdamW at 3e-3": ADAMW.format("3e-3")}
"""Our default recipe (Muon, MTP, experts), and the same with nanoGPT's optimizer at its rate and at three times its rate."""


def prepare(checkout: Path, data: Path) -> None:
    """Write the three files of nanoGPT's data/shakespeare_char/prepare.py from a local file."""
    folder = checkout / "data" / "shakespeare_char"
    text = data.read_text(encoding="utf-8")
    chars = sorted(set(text))
    ids = {char: number for number, char in enumerate(chars)}
    cut = int(len(text) * 0.9)
    for name, part in (("train.bin", text[:cut]), ("val.bin", text[cut:])):
        np.array([ids[char] for char in part], dtype=np.uint16).tofile(folder / name)
    meta = {"vocab_size": len(chars), "itos": dict(enumerate(chars)), "stoi": ids}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))


def nanogpt(checkout: Path, out: Path, seed: int, threads: int) -> dict[str, Any]:
    """Train with nanoGPT's script, then measure its checkpoint on the whole validation part."""
    done = out / f"nanogpt-{seed}"
    result = done / "result.json"
    if result.is_file():
        return json.loads(result.read_bytes())
    done.mkdir(parents=True, exist_ok=True)
    began = core_seconds(resource.RUSAGE_CHILDREN)
    words = [*README.split(), f"--out_dir={done.resolve()}", "--always_save_checkpoint=True"]
    with open(done / "log.txt", "w", encoding="utf-8") as log:
        subprocess.run(
            [sys.executable, "-c", SEEDED.format(threads=threads), str(seed), "train.py", *words],
            cwd=checkout, stdout=log, check=True, env={**os.environ, "PYTHONPATH": str(checkout)},
        )  # fmt: skip
    spent = core_seconds(resource.RUSAGE_CHILDREN) - began
    printed = re.findall(r"step (\d+): train loss ([\d.]+), val loss ([\d.]+)", (done / "log.txt").read_text("utf-8"))
    saved = torch.load(done / "ckpt.pt", map_location="cpu", weights_only=False)
    if saved["iter_num"] != STEPS or int(printed[-1][0]) != STEPS:
        raise SystemExit(f"nanoGPT stopped at step {saved['iter_num']} of {STEPS}: see {done / 'log.txt'}")
    model = nanogpt_model(checkout, saved)
    found = {
        "model": "nanoGPT",
        "seed": seed,
        "loss": whole_loss(model, np.fromfile(checkout / "data" / "shakespeare_char" / "val.bin", dtype=np.uint16)),
        "own estimate": float(printed[-1][2]),
        "parameters": sum(p.numel() for p in model.parameters()),
        "active": sum(p.numel() for p in model.parameters()),
        "core_seconds": round(spent, 1),
    }
    write_json(result, found)
    return found


def nanogpt_model(checkout: Path, saved: dict[str, Any]) -> torch.nn.Module:
    """Load nanoGPT's model from its checkpoint."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", checkout / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    model = module.GPT(module.GPTConfig(**saved["model_args"]))
    model.load_state_dict(saved["model"])
    return model.eval()


@torch.no_grad()
def whole_loss(model: torch.nn.Module, ids: np.ndarray) -> float:
    """Return the mean loss in nats over all adjacent windows of 64. The code is independent of `text_loss`."""
    count = (len(ids) - 1) // WINDOW
    x = torch.from_numpy(ids[: count * WINDOW].astype(np.int64)).view(count, WINDOW)
    y = torch.from_numpy(ids[1 : count * WINDOW + 1].astype(np.int64)).view(count, WINDOW)
    means = [(model(a, b)[1].item(), len(a)) for a, b in zip(x.split(60), y.split(60), strict=True)]
    return math.fsum(mean * rows for mean, rows in means) / count


def ours(name: str, data: Path, out: Path, seed: int, threads: int) -> dict[str, Any]:
    """Train with our recipe and measure the loss."""
    folder = RunDir(out / f"{name.replace(', ', '-').replace(' ', '-').lower()}-{seed}")
    result = folder.path / "result.json"
    if result.is_file():
        return json.loads(result.read_bytes())
    values = {"data": str(data), "rows": str(ROWS), "row": str(WINDOW), "steps": str(STEPS), "seed": str(seed)}
    if OURS[name]:
        key, _, value = OURS[name].partition("=")
        values[key] = value
    run = make_run("pretrain", values)
    fit(run, folder, threads=threads)
    cost = account(run.model, context=WINDOW)
    records = list(folder.metrics())
    found = text_loss(
        load_run(folder), Tokenizer.load(folder.tokenizer_file), read_text_split(data).validation, window=WINDOW
    )
    summary = {
        "model": name,
        "seed": seed,
        "loss": found.per_character,
        "parameters": cost.total,
        "active": cost.active,
        "parameters of MTP, for training only": cost.mtp,
        "core_seconds": round(sum(record["core_seconds"] for record in records), 1),
        "tokens": sum(record["tokens"] for record in records),
        "characters measured": found.characters,
    }
    write_json(result, summary)
    return summary


def main() -> None:
    """Run both sides with every seed and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="tinyshakespeare.txt")
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of nanoGPT")
    parser.add_argument("--out", type=Path, default=Path("runs/shakespeare"))
    parser.add_argument("--result", type=Path, default=Path("docs/results/shakespeare.json"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    prepare(a.nanogpt, a.data)
    found: list[dict[str, Any]] = []
    for seed in a.seeds:
        found.append(nanogpt(a.nanogpt, a.out, seed, a.threads))
        print(found[-1], flush=True)
        for name in OURS:
            found.append(ours(name, a.data, a.out, seed, a.threads))
            print(found[-1], flush=True)
            write_json(a.result, document(found, a))
    print(a.result)


def document(found: list[dict[str, Any]], a: argparse.Namespace) -> dict[str, Any]:
    """Return all runs and their means."""
    names = list(dict.fromkeys(run["model"] for run in found))
    losses = {name: [run["loss"] for run in found if run["model"] == name] for name in names}
    return {
        "what": "validation loss a character on tiny Shakespeare, in nats: the last tenth of the file, all windows of 64",
        "made by": made_by({a.data: "tinyshakespeare.txt", a.nanogpt: "NANOGPT", a.out: "runs/shakespeare"}),
        "nanoGPT": {"commit": commit(a.nanogpt), "command": f"python train.py {README}", "README says": 1.88},
        "ours": {
            name: f"rorqual train pretrain data=tinyshakespeare.txt rows={ROWS} row={WINDOW} steps={STEPS} seed=SEED"
            + (f" '{change}'" if change else "")
            for name, change in OURS.items()
        },
        "training characters": STEPS * ROWS * WINDOW,
        "means": {
            name: {
                "loss": statistics.mean(values),
                "smallest": min(values),
                "largest": max(values),
                "seeds": len(values),
            }
            for name, values in losses.items()
        },
        "runs": found,
        "not alike": "tokens (65 characters there, 256 bytes and 7 marks here), attention (MLA here), experts (two of 16 and a "
        "shared one active), multi-token prediction (trained beside, not counted in the loss), optimizer, order of the text "
        "(windows begin anywhere there; side by side, each once an epoch here).",
    }


if __name__ == "__main__":
    main()
