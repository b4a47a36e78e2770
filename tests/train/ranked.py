"""Several real processes that train together, and small runs of every recipe."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from little import ROW, TASK, on_policy_run, sft_run

from rorqual.core.records import RunDir
from rorqual.engine import Engine
from rorqual.model.adapter import ESFT, LoRA
from rorqual.recipes import make_run
from rorqual.train.loop import fit
from rorqual.train.run import Run, StartConfig

TEXT = "the quick brown fox jumps over the lazy dog. how vexingly quick daft zebras jump! "


def in_ranks(count: int, work: Callable[..., Any], *args: Any, seconds: float = 60.0) -> list[Any]:
    """What `work(*args)` returns or raises in each of `count` processes of one group, which wait `seconds` for each other."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rorqual.train.loop", "torch._dynamo"])
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(count, context) as pool:
        ranks = [pool.submit(_join, Path(folder) / "store", rank, count, seconds, work, args) for rank in range(count)]
        return [rank.exception() or rank.result() for rank in ranks]


def _join(store: Path, rank: int, count: int, seconds: float, work: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    limit = timedelta(seconds=seconds)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count, timeout=limit)
    try:
        return work(*args)
    finally:
        dist.destroy_process_group()


def train(run: Run, out: Path, threads: int = 1) -> None:
    fit(run, RunDir(out), quiet=True, threads=threads)


def make(name: str, base: Path, folder: Path, *, steps: int, parts: int) -> Run:
    """A small run of `name` in `parts` micro-batches. Files that it reads are written to `folder`."""
    recipe, _, variant = name.partition(" ")
    values = {"from": str(base), "steps": str(steps), "row": str(ROW)}
    if recipe == "pretrain":
        (folder / "text.txt").write_text(TEXT * 40)
        run = make_run(
            "pretrain",
            {"data": str(folder / "text.txt"), "size": "tiny", "steps": str(steps), "rows": "7", "row": "32"},
        )
    elif recipe == "sft":
        run = sft_run(steps)
        run = run.model_copy(update={"source": run.source.model_copy(update={"rows": 7})})
    elif recipe == "dpo":
        from test_dpo import ROWS, write

        run = make_run("dpo", values | {"data": write(folder / "pairs.jsonl", *ROWS), "pairs": "3", "lr": "1e-3"})
    elif recipe == "distil":
        from test_distilled_source import sampled
        from test_distilled_source import write as write_samples

        data = write_samples(folder, sampled(Engine(base, backend="torch-invariant")))
        run = make_run("distil", values | {"data": data, "rows": "5", "objective": "forward"})
    elif recipe == "grpo":
        dynamic = (
            {"source.max_num_gen_batches": "3", "source.top_p": "0.9"} if variant == "dynamic" else {"beta": "0.1"}
        )
        run = make_run("grpo", values | {"task": TASK, "problems": "4", "samples": "6", "max_tokens": "12"} | dynamic)
    else:
        run = on_policy_run(base).model_copy(update={"steps": steps})
    changes: dict[str, Any] = {"micro_batches": parts, "save_seconds": 1e9}
    if variant == "bf16":
        changes["dtype"] = "bfloat16"
    if variant in ("lora", "esft"):
        changes |= {"start": StartConfig(run=str(base)), "tune": LoRA(r=4) if variant == "lora" else ESFT(p=0.3)}
    return run.model_copy(update=changes)


RUNS = (
    "pretrain", "sft", "sft bf16", "sft lora", "sft esft", "dpo", "distil", "on_policy", "grpo", "grpo dynamic",
)  # fmt: skip
