"""What this machine is: asked of the system, without torch."""

from __future__ import annotations

import os
from pathlib import Path


def cores() -> int:
    """Cores this process may use: its affinity, cut to the quota of its control group where there is one."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return max(1, min(allowed, round(quota))) if quota else allowed


def _quota() -> float:
    """Cores' worth of time that a container may use; 0 where there is no limit."""
    text = _text("/sys/fs/cgroup/cpu.max").split()
    if len(text) == 2 and text[0].isdigit():
        return int(text[0]) / int(text[1])
    old, period = _text("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), _text("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
    return int(old) / int(period) if old.isdigit() and period.isdigit() and int(period) else 0.0


def memory() -> tuple[int, int]:
    """Bytes of memory: all of it (cut to a container's limit), and what is free to use."""
    fields = {key: value.split()[0] for key, _, value in (x.partition(":") for x in _lines("/proc/meminfo")) if value}
    total, free = (int(fields.get(key, "0")) * 1024 for key in ("MemTotal", "MemAvailable"))
    limit = _text("/sys/fs/cgroup/memory.max")
    if limit.isdigit() and int(limit) < total:
        used = _text("/sys/fs/cgroup/memory.current")
        return int(limit), min(free, int(limit) - int(used if used.isdigit() else "0"))
    return total, free


def processor() -> tuple[str, frozenset[str]]:
    """The processor's name and its flags, as the kernel gives them; empty where it gives none."""
    info = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in _lines("/proc/cpuinfo"))}
    flags = info.get("flags", "") or info.get("Features", "")
    return info.get("model name", ""), frozenset(flags.split())


def load() -> float:
    """Mean number of processes that wanted a core over the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def _lines(path: str) -> list[str]:
    return _text(path).split("\n")


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
