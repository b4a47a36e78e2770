"""Properties of this machine (cores, memory, processor, load), read from the operating system without torch."""

from __future__ import annotations

import os
from pathlib import Path


def available_cores() -> int:
    """Return the number of cores that this process may use, limited by its CPU affinity and its cgroup's CPU quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cpu_quota()
    return max(1, min(allowed, round(quota))) if quota else allowed


def _cpu_quota() -> float:
    """Return the CPU quota of this process's cgroup in cores, or 0 if the cgroup has no quota."""
    text = _text("/sys/fs/cgroup/cpu.max").split()
    if len(text) == 2 and text[0].isdigit():
        return int(text[0]) / int(text[1])
    return 0.0


def total_and_free_memory() -> tuple[int, int]:
    """Return (total, available) memory in bytes of this machine, or of the container if the container has a memory limit."""
    fields = {key: value.split()[0] for key, _, value in (x.partition(":") for x in _lines("/proc/meminfo")) if value}
    total, free = (int(fields.get(key, "0")) * 1024 for key in ("MemTotal", "MemAvailable"))
    limit = _text("/sys/fs/cgroup/memory.max")
    if limit.isdigit() and int(limit) < total:
        used = _text("/sys/fs/cgroup/memory.current")
        return int(limit), min(free, int(limit) - int(used if used.isdigit() else "0"))
    return total, free


def processor_name_and_flags() -> tuple[str, frozenset[str]]:
    """Return the processor's name and feature flags from /proc/cpuinfo. If the kernel lists no name, the name is empty; if
    the kernel lists no flags, the set of flags is empty."""
    info = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in _lines("/proc/cpuinfo"))}
    flags = info.get("flags", "") or info.get("Features", "")
    return info.get("model name", ""), frozenset(flags.split())


def load_average() -> float:
    """Return the system's load average of the last minute, or 0 if the system reports no load average."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def _lines(path: str) -> list[str]:
    return _text(path).split("\n")


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
