"""The output of `rorqual doctor`: facts about the machine, package versions, torch's build, and advice."""

from __future__ import annotations

import os
import platform
import re
import time
from importlib.metadata import PackageNotFoundError, requires, version

import torch

from rorqual import __version__
from rorqual.cli.inspecting import memory_text
from rorqual.cli.machine import available_cores, load_average, processor_name_and_flags, total_and_free_memory
from rorqual.engine.native.library import instruction_set
from rorqual.ops.backends import REFERENCE, TORCH

VECTORS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "sve", "bf16")
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
PACKAGE = re.compile(r"[^\w.-]")
PROBE = 1024
"""Number of rows and columns of the matrix in the speed test."""


def machine_facts(device: str, dtype: str) -> list[tuple[str, str]]:
    """Return facts about this machine and its software as (name, value) rows."""
    name, flags = processor_name_and_flags()
    total, free = total_and_free_memory()
    cuda = torch.version.cuda
    return [
        ("rorqual", __version__),
        ("python", f"{platform.python_version()}, {platform.platform()}"),
        ("processor", name or platform.machine()),
        ("vector instructions", ", ".join(flag for flag in VECTORS if flag in flags) or "none known"),
        ("bf16 in hardware", "yes" if flags & BF16_FLAGS else "no"),
        ("cores", f"{available_cores()} for this process, {os.cpu_count()} in the machine"),
        ("load", f"{load_average():.1f} runnable processes, mean of the last minute"),
        ("memory", f"{memory_text(total)}, {memory_text(free)} free"),
        ("torch", f"{torch.__version__}, {f'built for CUDA {cuda}' if cuda else 'CPU build'}"),
        (
            "torch threads",
            f"{torch.get_num_threads()} (OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')})",
        ),
        ("accelerator", accelerator()),
        ("backends", f"{TORCH.name}, {REFERENCE.name} (the reference that tests compare with)"),
        ("native kernels", instruction_set() or "none: backend=native does not run"),
        ("matrix products", f"{measure_matmul_speed(device, dtype) / 1e9:,.0f} GFLOP/s on {device} in {dtype}"),
        *versions(),
    ]


def accelerator() -> str:
    """Return the name of the accelerator that torch detects, or `none`."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return "mps" if torch.backends.mps.is_available() else "none"


def versions() -> list[tuple[str, str]]:
    """Return the installed version of each of Rorqual's dependencies as (name, version) rows."""
    rows = []
    for text in requires("rorqual") or []:
        name = PACKAGE.split(text, maxsplit=1)[0]
        if "extra ==" in text or name == "torch":
            continue
        try:
            rows.append((name, version(name)))
        except PackageNotFoundError:
            rows.append((name, f"missing: pip install '{text}'"))
    return rows


def measure_matmul_speed(device: str, dtype: str) -> float:
    """Measure the FLOP/s of a product of square matrices. Return the speed of the fastest of six matrix products."""
    kind = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    matrix = torch.ones(PROBE, PROBE, device=device, dtype=kind)
    best = float("inf")
    for _ in range(6):
        began = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # copying a value to the host waits for the device
        best = min(best, time.perf_counter() - began)
    return 2.0 * PROBE**3 / best


def setup_advice() -> list[str]:
    """Return suggestions for changes that make Rorqual faster on this machine."""
    _, flags = processor_name_and_flags()
    allowed, machine, free = available_cores(), os.cpu_count() or 1, total_and_free_memory()[1]
    suggestions = []
    if allowed < machine:
        suggestions.append(
            f"This process may use {allowed} of {machine} cores: raise the container's CPU limit or widen the affinity."
        )
    if load_average() > allowed + 0.5:
        suggestions.append(
            f"Other processes use the {allowed} cores (load {load_average():.1f}): stop them, or lower threads=."
        )
    if flags and not flags & BF16_FLAGS:
        suggestions.append(
            "The processor has no bf16 instructions: keep dtype=float32, because bfloat16 is slower here."
        )
    if instruction_set() is None and platform.machine() in ("x86_64", "AMD64"):
        suggestions.append("There are no native kernels: install a C compiler, then install Rorqual again.")
    if 0 < free < 4 * 1024**3:
        suggestions.append(f"Only {memory_text(free)} of memory is free; the quickstart may need 4 GiB.")
    return suggestions
