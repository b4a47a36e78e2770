"""The main job: build a teacher, train it on worked solutions, reinforce it, measure before and after, report.

Nothing here is special: each stage is a recipe, an evaluation or a report that a user can call alone. Every stage that is
done is found again by its files, so the same command goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rorqual.core.config import Config, override
from rorqual.core.log import Progress, clock
from rorqual.core.records import RunDir, Thinking, write_json
from rorqual.engine.engine import Engine
from rorqual.engine.request import SamplingParams
from rorqual.evals.evaluation import Evaluation
from rorqual.evals.experts import expert_use
from rorqual.evals.report import REPORT_FILE, build_report
from rorqual.evals.run import evaluate
from rorqual.model.account import account
from rorqual.model.config import ModelConfig
from rorqual.model.ffn import MoEConfig
from rorqual.model.load.run import read_model_config
from rorqual.recipes.grpo import grpo
from rorqual.recipes.sft import sft
from rorqual.tasks.find import load_task
from rorqual.train.loop import fit
from rorqual.train.run import Dtype

TASK = "families:add,sub,mod,swap,count,kk"
"""Six families of four kinds: arithmetic, an algorithm by steps, text and state, logic."""
EVALS, SUMMARY, CLOCK = "evals", "summary.json", "clock.json"
WHEN = ("before", "after")
MODES: tuple[Thinking, ...] = ("auto", "on", "off")


class Scale(Config):
    """How much work the quickstart does: steps and samples, never a clock. Chosen on problems of the dev split, on other seeds.

    Answers are sampled as DeepSeek-R1 was evaluated, at temperature 0.6 and top-p 0.95 (R1, section 3): greedily, a model
    that thinks on two problems in five would never think.
    """

    model: Literal["tiny", "small"]
    sft_steps: int
    sft_rows: int
    sft_hard: float
    think: float
    grpo_steps: int
    grpo_problems: int
    grpo_samples: int
    grpo_hard: float
    lr: float
    row: int = 128
    max_tokens: int = 80
    temperature: float = 0.6
    top_p: float = 0.95
    per_cell: int
    expert_problems: int


FULL = Scale(
    model="small",
    sft_steps=1000,
    sft_rows=32,
    sft_hard=0.2,
    think=0.5,
    grpo_steps=40,
    grpo_problems=32,
    grpo_samples=12,
    grpo_hard=0.7,
    lr=1e-4,
    per_cell=80,
    expert_problems=8,
)
SMALL = Scale(
    model="tiny",
    sft_steps=30,
    sft_rows=8,
    sft_hard=0.2,
    think=0.5,
    grpo_steps=3,
    grpo_problems=8,
    grpo_samples=4,
    grpo_hard=0.5,
    lr=3e-4,
    per_cell=4,
    expert_problems=2,
)
SCALES = {"full": FULL, "small": SMALL}


@dataclass(frozen=True)
class Place:
    """The quickstart's folder."""

    out: Path

    @property
    def base(self) -> RunDir:
        return RunDir(self.out / "base")

    @property
    def teacher(self) -> RunDir:
        return RunDir(self.out / "teacher")

    def evaluation(self, name: str) -> Path:
        return self.out / EVALS / f"{name}.json"


def run_quickstart(
    out: Path,
    *,
    seed: int = 0,
    size: Literal["small", "full"] = "full",
    threads: int = 2,
    device: str = "cpu",
    dtype: Dtype = "float32",
) -> Path:
    """Run all stages into `out`, from where they stand there; returns the report's path."""
    scale, place = SCALES[size], Place(out)
    began = time.monotonic()
    base = sft(task=TASK, size=scale.model, steps=scale.sft_steps, rows=scale.sft_rows, row=scale.row, think=scale.think,
               options={"hard": scale.sft_hard}, seed=seed)  # fmt: skip
    base = override(base, [f"device={device}", f"dtype={dtype}"])
    for line in describe(base.model):
        print(line)
    print(f"\n1/4 train: {base.steps} steps on worked solutions of {TASK}")
    fit(base, place.base, threads=threads)
    reinforced = grpo(task=TASK, start=str(place.base.path), steps=scale.grpo_steps, problems=scale.grpo_problems,
                      samples=scale.grpo_samples, max_tokens=scale.max_tokens, row=scale.row, lr=scale.lr,
                      options={"hard": scale.grpo_hard}, seed=seed, dtype=dtype)  # fmt: skip
    reinforced = override(reinforced, [f"device={device}"])
    print(f"\n2/4 reinforce: {reinforced.steps} steps of GRPO, on correctness alone")
    fit(reinforced, place.teacher, threads=threads)
    print("\n3/4 measure on held-out problems")
    measure(place, scale, seed, threads, device, dtype)
    print("\n4/4 report")
    told = summary(place, base.model, seed, size)
    report = out / REPORT_FILE
    if not tells(place, told):
        write_json(out / SUMMARY, told)
        report = build_report(out)
    print(
        f"done in {clock(time.monotonic() - began)}\n\n  report  {report}\n  next    rorqual chat {place.teacher.path}"
    )
    return report


def describe(model: ModelConfig) -> Iterator[str]:
    """The account of a model, for a person."""
    a = account(model, context=model.max_position_embeddings, cache_value_bytes=4)
    yield f"teacher: {a.total:,} parameters, {a.active:,} active for a token ({a.active / a.total:.0%}), MTP {a.mtp:,} more"
    yield f"  {a.cache_bytes:,} bytes of cache a token (fp32), {a.flops:,} FLOPs a token forward at {a.context} positions"


def measure(place: Place, scale: Scale, seed: int, threads: int, device: str = "cpu", dtype: str = "float32") -> None:
    """The six evaluations (before and after; own choice, made to think, at once) and the use of experts."""
    task = load_task(TASK, options={"hard": 0.5})
    done = {path.stem for path in (place.out / EVALS).glob("*.json")}
    times = Times(place.out / CLOCK)
    params = SamplingParams(max_tokens=scale.max_tokens, temperature=scale.temperature, top_p=scale.top_p, seed=seed)
    for when, run in zip(WHEN, (place.base, place.teacher)):
        wanted = [mode for mode in MODES if f"{when}-{mode}" not in done]
        if not wanted and (when == "before" or "experts" in done):
            continue
        engine = Engine.from_run(run.path, threads=threads, device=device, dtype=dtype)
        for mode in wanted:
            with times.of(f"{when}-{mode}"):
                found = evaluate(engine, task, count=scale.per_cell, seed=seed, thinking=mode, params=params, per_family=True,
                                 progress=shown(f"{when}, {WORDS[mode]}"), model=when)  # fmt: skip
                found.save(place.evaluation(f"{when}-{mode}"))
        if when == "after" and "experts" not in done:
            experts = routed(read_model_config(run))
            use = expert_use(engine, task, experts, count=scale.expert_problems, seed=seed, params=params)
            write_json(place.evaluation("experts"), use)


WORDS: dict[Thinking, str] = {"auto": "own choice", "on": "made to think", "off": "at once"}


def routed(model: ModelConfig) -> int:
    """How many routed experts its layers have."""
    return max((stage.ffn.n_routed_experts for stage in model.stages if isinstance(stage.ffn, MoEConfig)), default=0)


def shown(label: str) -> Callable[[int, int], None]:
    """Progress of an evaluation, counted from now."""
    progress = Progress(f"  {label}", 0, unit="answer")

    def update(done: int, total: int) -> None:
        progress.total = total
        progress.update(done)

    return update


class Times:
    """Wall-clock and processor seconds of named pieces of work, kept in a file: all else in the folder is the same every time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spent: dict[str, dict[str, float]] = json.loads(path.read_bytes()) if path.is_file() else {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Time what is inside, and keep it."""
        wall, cpu = time.monotonic(), time.process_time()
        yield
        self.spent[name] = {"seconds": time.monotonic() - wall, "core_seconds": time.process_time() - cpu}
        write_json(self.path, self.spent)


def summary(place: Place, model: ModelConfig, seed: int, size: str) -> dict[str, Any]:
    """What the report says of model and cost."""
    a = account(model, context=model.max_position_embeddings, cache_value_bytes=4)
    stages = [stage_cost("train on worked solutions", place.base), stage_cost("reinforce", place.teacher)]
    spent = Times(place.out / CLOCK).spent
    evaluations = [Evaluation.load(place.evaluation(f"{when}-{mode}")) for when in WHEN for mode in MODES]
    tokens = sum(sum(e.usage.values()) for e in evaluations)
    stages.append(
        {"name": "measure", "tokens": tokens, "flops": tokens * a.flops}
        | {key: sum(one[key] for one in spent.values()) for key in ("seconds", "core_seconds")}
    )
    facts = {
        "total": a.total,
        "active": a.active,
        "mtp": a.mtp,
        "cache_bytes_per_token": a.cache_bytes,
        "flops_per_token": a.flops,
    }
    command = f"rorqual quickstart --seed {seed}" + ("" if size == "full" else f" --size {size}")
    return {"model": facts, "stages": stages, "seed": seed, "command": command}


def tells(place: Place, told: dict[str, Any]) -> bool:
    """Whether the report is there and tells of what lies here: the same summary, and nothing that it reads is newer."""
    report, kept = place.out / REPORT_FILE, place.out / SUMMARY
    if not report.is_file() or not kept.is_file() or json.loads(kept.read_bytes()) != told:
        return False
    read = [place.base.metrics_file, place.teacher.metrics_file, *(place.out / EVALS).glob("*.json")]
    return all(path.stat().st_mtime_ns <= report.stat().st_mtime_ns for path in read)


def stage_cost(name: str, run: RunDir) -> dict[str, Any]:
    """What a run's metrics add up to."""
    records = list(run.metrics())
    tokens = sum(r["tokens"] + r.get("sampled_tokens", 0) for r in records)
    return {"name": name, "tokens": tokens} | {
        key: sum(r[key] for r in records) for key in ("flops", "seconds", "core_seconds")
    }
