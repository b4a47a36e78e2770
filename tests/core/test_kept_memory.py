"""Pages that a process has are not given back and taken anew: counted by the system, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

LOOP = """
import resource, sys, torch
from rorqual.core.memory import keep_freed
kept = sys.argv[1] == "kept" and keep_freed()
for _ in range(4):  # a step's tensors, largest of 6 MB, freed in another order than they came
    parts = [torch.ones(size << 18) for size in (6, 1, 3, 6)]
    del parts[0], parts[0], parts
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    parts = [torch.ones(size << 18) for size in (6, 1, 3, 6)]
    del parts[0], parts[0], parts
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only glibc is told")


def faults(how: str, **settings: str) -> tuple[bool, int]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    out = subprocess.run(
        [sys.executable, "-c", LOOP, how], env=env | settings, check=True, capture_output=True, text=True
    ).stdout.split()
    return out[0] == "True", int(out[1])


def test_a_steps_memory_is_taken_once() -> None:
    kept, few = faults("kept")
    _, many = faults("as it comes")
    assert kept and few < 1000 < many, "16 MB are 4,096 pages a step, and 50 steps were counted"


def test_what_the_environment_says_stands() -> None:
    assert faults("kept", MALLOC_TRIM_THRESHOLD_="131072")[0] is False
