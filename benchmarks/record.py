"""What stands beside every result: the command, the machine's class and the versions that made it."""

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
    """Command, date, machine and versions. `places` maps this machine's paths to the names under which they are written."""
    return {
        "command": command(places),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit(ROOT),
        "machine": f"{processor()}, {os.cpu_count()} cores, shared with other work (nice {os.nice(0)})",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def command(places: dict[Path, str]) -> str:
    """The command line, with paths of this machine replaced by their names, and without where its result went."""
    words = ["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]
    if "--result" in words:
        at = words.index("--result")
        del words[at : at + 2]
    for path, name in places.items():
        words = [name if word == str(path) else word for word in words]
    return " ".join(words)


def commit(folder: Path) -> str:
    """The commit that a checkout stands at, shortened; empty where it is none."""
    words = ["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n")
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def core_seconds(who: int = resource.RUSAGE_SELF) -> float:
    """Processor seconds spent so far by this process (or, with RUSAGE_CHILDREN, by those it waited for)."""
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime
