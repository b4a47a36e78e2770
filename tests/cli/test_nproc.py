"""`rorqual train nproc=N`: killed often, the run ends with the bits of one process; what fails without hope is told once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rorqual.core.records import RunDir

SETTINGS = {"task": "families:add", "size": "tiny", "steps": 40, "rows": 8, "micro_batches": 3, "save_seconds": 0.1}


def command(out: Path, **more: object) -> list[str]:
    values = SETTINGS | {"out": out} | more
    return [sys.executable, "-m", "rorqual", "train", "sft", *(f"{key}={value}" for key, value in values.items())]


def children(process: int) -> list[int]:
    """The processes that `process` started."""
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(one) for one in found]


def steps(out: Path) -> int:
    file = RunDir(out).metrics_file
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def weights(out: Path) -> tuple[bytes, bytes]:
    folder = RunDir(out).checkpoint()
    return (folder / "model.safetensors").read_bytes(), (folder / "optim.safetensors").read_bytes()


def test_ranks_that_are_killed_start_again_and_change_no_bit(tmp_path: Path) -> None:
    subprocess.run(command(tmp_path / "one", quiet="true", threads=2), check=True, capture_output=True)
    rng, out, killed = random.Random(0), tmp_path / "two", []
    with subprocess.Popen(command(out, nproc=2), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        for wanted in (3, 15):
            while steps(out) < wanted and run.poll() is None:
                time.sleep(0.01)
            ranks = [one for one in children(run.pid) if "rank" in Path(f"/proc/{one}/environ").read_text().lower()]
            assert len(ranks) == 2
            victim = rng.choice(ranks)
            rank = dict(
                line.split("=", 1) for line in Path(f"/proc/{victim}/environ").read_text().split("\0") if "=" in line
            )
            os.kill(victim, signal.SIGKILL)
            killed.append(int(rank["RANK"]))
        printed, told = run.communicate(timeout=120)
    assert run.returncode == 0, told
    for rank_of in killed:
        assert f"rank {rank_of} was ended by SIGKILL; all ranks start again from the newest checkpoint" in told
    assert weights(tmp_path / "one") == weights(out)
    lines = [json.loads(line)["step"] for line in RunDir(out).metrics_file.read_text().splitlines()]
    assert lines == list(range(1, 41)) and printed.count("Next: rorqual chat") == 1
    assert not (out / ".ranks").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"micro_batches": 1}, "rorqual: micro_batches: 2 processes share 1 micro-batches\n"),
        ({"task": "families:ad"}, "rorqual: families.names: unknown name 'ad'\n"),
    ],
)
def test_what_fails_without_hope_is_told_once(settings: dict[str, object], words: str, tmp_path: Path) -> None:
    done = subprocess.run(command(tmp_path / "run", **settings, nproc=2), check=False, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("rorqual:") == 1 and words in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "run").exists()
