"""Provenance of benchmark results: the command, the machine and the versions."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]


def made_by(places: dict[Path, str]) -> dict[str, Any]:
    """Return command, date, machine and versions. `places` maps local paths to the names to write instead."""
    return {
        "command": command(places),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit(ROOT),
        "machine": f"{processor()}, {os.cpu_count()} cores, shared with other work (nice {os.nice(0)})",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def command(places: dict[Path, str]) -> str:
    """Return the command line without `--result`, and with local paths replaced by their names."""
    words = ["python", Path(sys.argv[0]).resolve().relative_to(ROOT).as_posix(), *sys.argv[1:]]
    if "--result" in words:
        at = words.index("--result")
        del words[at : at + 2]
    for path, name in places.items():
        words = [name if word == str(path) else word for word in words]
    return " ".join(words)


def commit(folder: Path) -> str:
    """Return the abbreviated commit of a checkout, or an empty string if it is not a git checkout."""
    words = ["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def processor() -> str:
    """Return the CPU model, or the architecture if the system does not report it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n")
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def core_seconds(who: int = resource.RUSAGE_SELF) -> float:
    """Return the CPU seconds used by this process or, with RUSAGE_CHILDREN, by its finished children."""
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime
