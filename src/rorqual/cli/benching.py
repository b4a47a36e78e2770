"""The benchmark of `rorqual bench`: throughput and latency of an engine."""

from __future__ import annotations

import os
import platform
import random
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import rorqual
from rorqual.cli.eval_settings import REMOTE
from rorqual.cli.inspecting import BYTES, count_text, memory_text
from rorqual.cli.machine import available_cores, load_average, processor_name_and_flags
from rorqual.cli.settings import Counts, EngineSettings, check_device, parse_settings
from rorqual.core.config import Natural, Seed
from rorqual.core.errors import ConfigError
from rorqual.core.records import write_json
from rorqual.engine.engine import Engine
from rorqual.engine.request import Request, SamplingParams
from rorqual.generate.output import check_writable_path
from rorqual.model.account import account


class BenchSettings(EngineSettings):
    """Settings of `rorqual bench`."""

    batch: Counts = Field((1, 8, 32), description="numbers of concurrent requests, separated by commas")
    prompt: Counts = Field((32, 512), description="tokens of each prompt, separated by commas")
    new: int = Field(64, ge=2, le=2**20, description="tokens to generate per request")
    repeats: int = Field(5, ge=1, le=1000, description="measurements of each pair of batch and prompt")
    seed: Seed = Field(0, description="seed of the prompts")
    threads: Natural = Field(0, description="threads; 0: all cores")
    out: str = Field("", description="JSON file of every measurement")


@dataclass(frozen=True)
class RepeatTiming:
    """The measurements of one repeat of the benchmark.

    `prefill`, `decode`: throughput in tokens per second. `first`: median time to first token in seconds. `gaps`: all
    inter-token latencies in seconds.
    """

    prefill: float
    decode: float
    first: float
    gaps: tuple[float, ...]


def bench_run(run: str, arguments: Sequence[str] | None) -> None:
    """Run the benchmark and print a table of the measurements. If `out` is set, write the measurements of every repeat to the
    file `out`."""
    chosen = parse_settings(BenchSettings, arguments)
    if run.startswith(REMOTE):
        raise ConfigError("bench cannot measure a server", where=run, remedy="Give a run's folder.")
    check_device(chosen.device)
    if chosen.out:
        check_writable_path(Path(chosen.out))
    threads = chosen.threads or available_cores()
    torch.set_num_threads(threads)
    max_tokens = max(chosen.prompt) + chosen.new
    engine = Engine(
        Path(run),
        device=chosen.device,
        dtype=chosen.dtype,
        slots=max(chosen.batch),
        threads=threads,
        record_experts=False,
        backend=chosen.backend,
    )
    if max_tokens > engine.max_len:
        raise ConfigError(
            f"prompt={max(chosen.prompt)} and new={chosen.new} need {max_tokens} tokens, but the model's context is {engine.max_len}",
            where="command line",
            remedy=f"Lower prompt= or new= so that their sum is at most {engine.max_len}.",
        )
    rows = []
    for batch in chosen.batch:
        for prompt in chosen.prompt:
            print(f"batch {batch}, prompt {prompt}: {chosen.repeats} repeats", file=sys.stderr, flush=True)
            rows.append(_measure_row(engine, chosen, batch, prompt))
    results = {"run": run, "settings": chosen.model_dump(mode="json"), "threads": threads, "machine": _machine_info(),
             "how": describe_conditions(engine, chosen, threads), "rows": rows}  # fmt: skip
    _show(results)
    if chosen.out:
        write_json(Path(chosen.out), results)
        print(f"Every repeat: {chosen.out}")


# ---- one pair of batch and prompt


def _measure_row(engine: Engine, chosen: BenchSettings, batch: int, prompt: int) -> dict[str, Any]:
    prompts = _random_prompts(engine.model.config.vocab_size, batch, prompt, chosen.seed)
    repeats = chosen.repeats + 1  # the first repeat is a warm-up and is dropped
    timings = [time_generation(engine, prompts, chosen.new) for _ in range(repeats)][1:]
    return {
        "batch": batch,
        "prompt": prompt,
        "prefill_tokens_per_second": _median_and_range([t.prefill for t in timings]),
        "decode_tokens_per_second": _median_and_range([t.decode for t in timings]),
        "first_token_seconds": _median_and_range([t.first for t in timings]),
        "between_tokens_seconds": _median_and_range([statistics.median(t.gaps) for t in timings]),
        "between_tokens_seconds_99": _median_and_range([float(torch.tensor(t.gaps).quantile(0.99)) for t in timings]),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "repeats": [asdict(t) | {"gaps": None} for t in timings],
    }


def time_generation(engine: Engine, prompts: Sequence[tuple[int, ...]], new: int) -> RepeatTiming:
    """Submit all prompts together, generate `new` tokens for each prompt, and return the measured throughput and latencies.

    Prefill ends when every request has its first token. The time after prefill counts as decode time.
    """
    params = SamplingParams(max_tokens=new, ignore_eos=True)
    began = time.perf_counter()
    request_ids = [engine.submit(Request(prompt_ids=ids, params=params, reuse=False)) for ids in prompts]
    last_times = dict.fromkeys(request_ids, 0.0)
    first_times: dict[int, float] = {}
    gaps: list[float] = []
    n_generated = n_decoded = 0
    prefill_seconds = now = 0.0
    while n_generated < new * len(prompts):
        deltas = engine.step()
        now = time.perf_counter() - began
        n_generated += len(deltas)
        n_decoded += len(deltas) if prefill_seconds else 0
        for delta in deltas:
            if delta.request_id in first_times:
                gaps.append(now - last_times[delta.request_id])
            first_times.setdefault(delta.request_id, now)
            last_times[delta.request_id] = now
        if not prefill_seconds and len(first_times) == len(prompts):
            prefill_seconds = now
    tokens = sum(map(len, prompts))
    return RepeatTiming(
        prefill=tokens / prefill_seconds,
        decode=n_decoded / max(now - prefill_seconds, 1e-9),
        first=statistics.median(first_times.values()),
        gaps=tuple(gaps),
    )


def _random_prompts(vocab_size: int, batch: int, length: int, seed: int) -> list[tuple[int, ...]]:
    """Return `batch` different prompts of `length` random token ids, so that the prefix cache has no hits."""
    rng = random.Random(f"{seed} {batch} {length}")
    return [tuple(rng.choices(range(vocab_size), k=length)) for _ in range(batch)]


# ---- this machine


def _machine_info() -> dict[str, Any]:
    name, _ = processor_name_and_flags()
    return {
        "processor": name or platform.machine(),
        "cores": available_cores(),
        "load": load_average(),
        "torch": torch.__version__,
        "rorqual": rorqual.__version__,
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS", ""),
    }


# ---- output


def describe_conditions(engine: Engine, chosen: BenchSettings, threads: int) -> list[str]:
    """Return notes on how throughput and latency were measured, and on conditions that may distort the measurements."""
    total = account(engine.model.config).total
    quantized = {"int8": 34 / 32, "int4": 20 / 32}  # 32 weights share two or four bytes
    each = quantized[chosen.dtype] if chosen.dtype in quantized else BYTES[chosen.dtype]  # type: ignore[index]
    size = memory_text(total * each)
    notes = [
        f"{count_text(total)} parameters in {chosen.dtype} on {chosen.device}, {size}; {threads} threads.",
        "Prompts are random ids, all different, the same in each repeat. Decoding is greedy and ignores EOS. One warm-up run is not counted.",
        "Each cell shows the median, minimum and maximum of the repeats. All requests are submitted together. Prefill ends when every "
        "request has its first token; the remaining time is decode. First: median time to first token. Between: median and 99th "
        "percentile of inter-token latency.",
    ]
    if load_average() > available_cores() + 0.5:
        notes.append(f"Other processes use the cores (load {load_average():.1f}): these figures are too low.")
    return notes


def _show(results: dict[str, Any]) -> None:
    # The table must fit in 80 columns, because rich truncates wider tables.
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    headers = (
        "batch",
        "prompt",
        "prefill\ntok/s",
        "decode\ntok/s",
        "first\nms",
        "between\nms",
        "99 %\nms",
    )
    for name in headers:
        table.add_column(name, justify="right", no_wrap=True)
    fields = (
        ("prefill_tokens_per_second", 1),
        ("decode_tokens_per_second", 1),
        ("first_token_seconds", 1000),
        ("between_tokens_seconds", 1000),
        ("between_tokens_seconds_99", 1000),
    )
    for row in results["rows"]:
        cells = [_spread_text(row[name], unit) for name, unit in fields]
        table.add_row(str(row["batch"]), str(row["prompt"]), *cells)
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(f"{results['run']}, {results['settings']['new']} new tokens")
    console.print(table)
    peak = max(row["peak_memory_bytes"] for row in results["rows"])
    for line in (f"Peak memory of this process: {memory_text(peak)}.", *results["how"]):
        console.print(line)


def _spread_text(spread: dict[str, float], unit: float) -> str:
    low, middle, high = (_format_number(spread[key] * unit) for key in ("low", "median", "high"))
    return f"{middle}\n{low}\n{high}"


def _format_number(value: float) -> str:
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def _median_and_range(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}
