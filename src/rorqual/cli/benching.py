"""The benchmark of `rorqual bench`: throughput, latency, and the share of memory bandwidth that an engine reaches."""

from __future__ import annotations

import os
import platform
import random
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import rorqual
from rorqual.cli.accounts import BYTES, count, memory_text
from rorqual.cli.machine import cores, load, memory, processor
from rorqual.cli.measure import REMOTE
from rorqual.cli.settings import Counts, Placement, check_device, read
from rorqual.core.config import Natural, Seed
from rorqual.core.errors import ConfigError
from rorqual.core.records import write_json
from rorqual.data.source.text import read_text
from rorqual.engine.engine import Engine
from rorqual.engine.request import Request, SamplingParams
from rorqual.generate.output import check_place
from rorqual.model.account import account
from rorqual.model.config import ModelConfig
from rorqual.plan.serve import split_weights, touched

ARRAY = 2**30
"""Size in bytes of the array that the bandwidth test reads. It is larger than any cache, but at most a quarter of free memory."""
READS = 5
"""Number of times that the bandwidth test repeats each kind of read: a sum, and a matrix-vector product."""


class BenchSettings(Placement):
    """Settings of `rorqual bench`."""

    batch: Counts = Field((1, 8, 32), description="numbers of concurrent requests, separated by commas")
    prompt: Counts = Field((32, 512), description="tokens of each prompt, separated by commas")
    new: int = Field(64, ge=2, le=2**20, description="tokens to generate per request")
    repeats: int = Field(5, ge=1, le=1000, description="measurements of each pair of batch and prompt")
    data: str = Field("", description="text file that prompts are cut from; default: random token ids")
    seed: Seed = Field(0, description="seed of the prompts")
    threads: Natural = Field(0, description="threads; 0: all cores")
    out: str = Field("", description="JSON file of every measurement")


@dataclass(frozen=True)
class Timing:
    """The measurements of one repeat of the benchmark.

    `prefill`, `decode`: throughput in tokens per second. `first`: median time to first token in seconds. `gaps`: all
    inter-token latencies in seconds.
    """

    prefill: float
    decode: float
    first: float
    gaps: tuple[float, ...]


def bench_run(run: str, arguments: Sequence[str] | None) -> None:
    """Run the benchmark and print its table. If `out` is set, write the measurements of every repeat to this file."""
    chosen = read(BenchSettings, arguments)
    if run.startswith(REMOTE):
        raise ConfigError("bench cannot measure a server", where=run, remedy="Give a run's folder.")
    check_device(chosen.device)
    if chosen.out:
        check_place(Path(chosen.out))
    threads = chosen.threads or cores()
    torch.set_num_threads(threads)
    max_tokens = max(chosen.prompt) + chosen.new
    engine = Engine(
        Path(run),
        device=chosen.device,
        dtype=chosen.dtype,
        slots=max(chosen.batch),
        threads=threads,
        record_experts=False,
    )
    if max_tokens > engine.max_len:
        raise ConfigError(
            f"prompt={max(chosen.prompt)} and new={chosen.new} need {max_tokens} tokens, but the model's context is {engine.max_len}",
            where="command line",
            remedy=f"Lower prompt= or new= so that their sum is at most {engine.max_len}.",
        )
    source = _source(engine, chosen)
    bandwidth = read_bandwidth(chosen.device, threads)
    rows = []
    for batch in chosen.batch:
        for prompt in chosen.prompt:
            print(f"batch {batch}, prompt {prompt}: {chosen.repeats} repeats", file=sys.stderr, flush=True)
            rows.append(_row(engine, chosen, batch, prompt, source, bandwidth))
    results = {"run": run, "settings": chosen.model_dump(mode="json"), "threads": threads, "machine": _machine(),
             "bandwidth_bytes_per_second": bandwidth, "how": how(engine, chosen, bandwidth, threads), "rows": rows}  # fmt: skip
    _show(results)
    if chosen.out:
        write_json(Path(chosen.out), results)
        print(f"Every repeat: {chosen.out}")


# ---- one pair of batch and prompt


def _row(
    engine: Engine, chosen: BenchSettings, batch: int, prompt: int, source: Sequence[int], bandwidth: float
) -> dict[str, Any]:
    prompts = _prompts(source, batch, prompt, chosen.seed)
    timings = [timing(engine, prompts, chosen.new) for _ in range(chosen.repeats + 1)][
        1:
    ]  # the first repeat is a warm-up and is dropped
    mean_keys = prompt + chosen.new / 2
    read_bytes = step_bytes(engine.model.config, batch, mean_keys, BYTES[chosen.dtype])
    return {
        "batch": batch,
        "prompt": prompt,
        "prefill_tokens_per_second": _spread([t.prefill for t in timings]),
        "decode_tokens_per_second": _spread([t.decode for t in timings]),
        "first_token_seconds": _spread([t.first for t in timings]),
        "between_tokens_seconds": _spread([statistics.median(t.gaps) for t in timings]),
        "between_tokens_seconds_99": _spread([float(torch.tensor(t.gaps).quantile(0.99)) for t in timings]),
        "bytes_per_step": read_bytes,
        "bandwidth_share": _spread([t.decode / batch * read_bytes / bandwidth for t in timings]),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "repeats": [asdict(t) | {"gaps": None} for t in timings],
    }


def timing(engine: Engine, prompts: Sequence[tuple[int, ...]], new: int) -> Timing:
    """Submit all prompts together, generate `new` tokens for each, and return the measurements.

    Prefill ends when every request has its first token. The time after prefill counts as decode.
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
    return Timing(
        prefill=tokens / prefill_seconds,
        decode=n_decoded / max(now - prefill_seconds, 1e-9),
        first=statistics.median(first_times.values()),
        gaps=tuple(gaps),
    )


def _prompts(source: Sequence[int], batch: int, length: int, seed: int) -> list[tuple[int, ...]]:
    """Return `batch` different prompts of `length` tokens, so that the prefix cache has no hits.

    Prompts are slices of the tokenized text `source`. If `source` is a range (the vocabulary), the prompts are random
    token ids.
    """
    rng = random.Random(f"{seed} {batch} {length}")
    if isinstance(source, range):
        return [tuple(rng.choices(source, k=length)) for _ in range(batch)]
    starts = [rng.randrange(len(source) - length + 1) for _ in range(batch)]
    return [tuple(source[start : start + length]) for start in starts]


def _source(engine: Engine, chosen: BenchSettings) -> Sequence[int]:
    if not chosen.data:
        return range(engine.model.config.vocab_size)
    split = read_text(Path(chosen.data))
    ids = engine.tokenizer.encode(split.train + split.validation)
    if len(ids) < max(chosen.prompt) + max(chosen.batch):
        raise ConfigError(
            f"the text has only {len(ids)} tokens, too few for prompts of {max(chosen.prompt)}",
            where=chosen.data,
            remedy="Give a longer text or a smaller prompt=.",
        )
    return ids


def step_bytes(config: ModelConfig, batch: int, keys: float, size: int) -> float:
    """Return the number of bytes that a decode step must read from memory.

    A step reads the KV cache of `keys` tokens per sequence. A step reads a weight once if at least one of the
    `batch` tokens uses the weight. Only one row of an untied embedding is counted. If each token selects k of n routed
    experts uniformly, a step reads the share 1 - (1 - k / n)^batch of the routed experts.
    """
    figures = account(config, cache_value_bytes=size)
    experts = split_weights(config)[1] * (touched(config, batch) - touched(config, 1))
    return (figures.active_lookup + experts) * size + batch * keys * figures.cache_bytes


# ---- this machine


def read_bandwidth(device: str, threads: int) -> float:
    """Measure the memory bandwidth that `threads` threads reach, in bytes per second.

    The test computes sums and matrix-vector products over an array that is larger than any cache. The result is the
    speed of the fastest read.
    """
    size = min(ARRAY, (memory()[1] or 4 * ARRAY) // 4)
    torch.set_num_threads(threads)
    array = torch.ones(size // 4 // 4096, 4096, device=device)
    vector = torch.ones(4096, device=device)
    best = float("inf")
    for kind in range(2 * READS):
        began = time.perf_counter()
        float(array.sum() if kind % 2 else (array @ vector)[0])  # copying a value to the host waits for the device
        best = min(best, time.perf_counter() - began)
    return array.numel() * 4 / best


def last_cache() -> int:
    """Return the size in bytes of the largest cache of core 0, or 0 if the system does not report it."""
    sizes = [0]
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        with suppress(OSError, ValueError):
            sizes.append(int(file.read_text(encoding="ascii").strip().removesuffix("K")) * 1024)
    return max(sizes)


def _machine() -> dict[str, Any]:
    name, _ = processor()
    return {
        "processor": name or platform.machine(),
        "cores": cores(),
        "load": load(),
        "last_cache_bytes": last_cache(),
        "torch": torch.__version__,
        "rorqual": rorqual.__version__,
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS", ""),
    }


# ---- output


def how(engine: Engine, chosen: BenchSettings, bandwidth: float, threads: int) -> list[str]:
    """Return notes on the method of measurement, and on conditions that may distort the results."""
    config = engine.model.config
    weights = account(config).total * BYTES[chosen.dtype]
    prompts = f"pieces of {chosen.data}" if chosen.data else "random ids"
    notes = [
        f"{count(account(config).total)} parameters in {chosen.dtype} on {chosen.device}, {memory_text(weights)}; {threads} threads.",
        f"Prompts are {prompts}, all different, the same in each repeat. Decoding is greedy and ignores EOS. One warm-up run is not counted.",
        "Each cell shows the median, minimum and maximum of the repeats. All requests are submitted together. Prefill ends when every "
        "request has its first token; the remaining time is decode. First: median time to first token. Between: median and 99th "
        "percentile of inter-token latency.",
        f"This machine reads memory at {bandwidth / 1e9:.1f} GB/s (best of {2 * READS} reads of an array larger than the cache). The last "
        "column is the share of this bandwidth that decoding reaches, if a step reads the weights once and each sequence's KV cache.",
    ]
    if weights < 2 * last_cache():
        notes.append(
            f"The weights nearly fit in the last-level cache ({memory_text(last_cache())}), which is faster than memory: "
            "the share of memory bandwidth may exceed 100 % here."
        )
    if load() > cores() + 0.5:
        notes.append(f"Other processes use the cores (load {load():.1f}): these figures are too low.")
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
        "% of\nmemory",
    )
    for name in headers:
        table.add_column(name, justify="right", no_wrap=True)
    fields = (
        ("prefill_tokens_per_second", 1),
        ("decode_tokens_per_second", 1),
        ("first_token_seconds", 1000),
        ("between_tokens_seconds", 1000),
        ("between_tokens_seconds_99", 1000),
        ("bandwidth_share", 100),
    )
    for row in results["rows"]:
        cells = [_cell(row[name], unit) for name, unit in fields]
        table.add_row(str(row["batch"]), str(row["prompt"]), *cells)
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(f"{results['run']}, {results['settings']['new']} new tokens")
    console.print(table)
    peak = max(row["peak_memory_bytes"] for row in results["rows"])
    for line in (f"Peak memory of this process: {memory_text(peak)}.", *results["how"]):
        console.print(line)


def _cell(spread: dict[str, float], unit: float) -> str:
    low, middle, high = (_digits(spread[key] * unit) for key in ("low", "median", "high"))
    return f"{middle}\n{low}\n{high}"


def _digits(value: float) -> str:
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}
