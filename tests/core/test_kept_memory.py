"""Pages that a process has are not given back and taken anew: counted by the system, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

LOOP = """
import resource, sys, torch
from rorqual.core.memory import keep_freed_memory
kept = sys.argv[1] == "kept" and keep_freed_memory()
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
    """The heap may grow once more after the first steps, by a block or two; it does not grow with the steps."""
    kept, few = faults("kept")
    _, many = faults("as it comes")
    step, steps = 4096, 50  # 16 MB in pages
    assert kept and few < 2 * step and many > steps // 2 * step, (few, many)


def test_what_the_environment_says_stands() -> None:
    assert faults("kept", MALLOC_TRIM_THRESHOLD_="131072")[0] is False


FREED = """
import os, torch
from rorqual.core.memory import keep_freed_memory, return_freed_memory
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
keep_freed_memory()
read, laid = [], []
for _ in range(40):  # weights of 8 MB, each followed by what is kept
    read.append(torch.ones(8 << 18))
    laid.append(torch.ones(1 << 16))
most = resident()
del read
return_freed_memory()
print(most, resident())
"""


def test_what_was_laid_out_anew_does_not_stay_twice() -> None:
    """Also where it lies below what is used: that is beyond what glibc gives back by itself."""
    most, left = map(int, subprocess.run([sys.executable, "-c", FREED], check=True, capture_output=True).stdout.split())
    assert most - left > 250
