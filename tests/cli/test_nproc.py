"""`rorqual train nproc=N`: killed often, the run ends with the bits of one process; what fails without hope is told once."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from in_process import output_of
from rorqual.core.records import RunDir

SETTINGS: dict[str, Any] = {
    "task": "families:add",
    "size": "tiny",
    "steps": 16,
    "rows": 8,
    "micro_batches": 3,
    "save_seconds": 0.1,
}


def command(out: Path, **more: object) -> list[str]:
    values = SETTINGS | {"out": out} | more
    return [sys.executable, "-m", "rorqual", "train", "sft", *(f"{key}={value}" for key, value in values.items())]


def steps(out: Path) -> int:
    file = RunDir(out).metrics_file
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def weights(out: Path) -> tuple[bytes, bytes]:
    folder = RunDir(out).checkpoint()
    return (folder / "model.safetensors").read_bytes(), (folder / "optim.safetensors").read_bytes()


def ranks_of(launcher: int) -> dict[int, int]:
    """The processes that `launcher` started, by their ranks."""
    found = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    given = {int(one): Path(f"/proc/{one}/environ").read_text().split("\0") for one in found}
    return {
        int(line.removeprefix("RANK=")): one
        for one, lines in given.items()
        for line in lines
        if line.startswith("RANK=")
    }


def test_a_rank_that_is_killed_starts_again_and_changes_no_bit(tmp_path: Path) -> None:
    subprocess.run(command(tmp_path / "one", quiet="true", threads=2), check=True, capture_output=True)
    out, words = tmp_path / "two", command(tmp_path / "two", nproc=2)
    with subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        while steps(out) < 3 and run.poll() is None:
            time.sleep(0.01)
        os.kill(ranks_of(run.pid)[1], signal.SIGKILL)
        printed, told = run.communicate(timeout=120)
    assert run.returncode == 0, told
    assert told.count("rank 1 was ended by SIGKILL; all ranks start again from the newest checkpoint") == 1
    assert weights(tmp_path / "one") == weights(out)
    lines = [json.loads(line)["step"] for line in RunDir(out).metrics_file.read_text().splitlines()]
    assert lines == list(range(1, SETTINGS["steps"] + 1)) and printed.count("Next: rorqual chat") == 1
    assert not (out / ".ranks").exists()


def test_what_fails_without_hope_is_told_once(tmp_path: Path) -> None:
    words = command(tmp_path / "run", micro_batches=1, nproc=2)
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("rorqual:") == 1
    assert "rorqual: micro_batches: 2 processes share 1 micro-batches\n" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "run").exists()


TASK = '''
import os

from rorqual.tasks.families.mixture import Families


class Broken(Families):
    """It has no problems in rank 1."""

    def problems(self, split, seed):
        if os.environ.get("RANK") == "1":
            raise ZeroDivisionError("no problems here")
        yield from super().problems(split, seed)
'''


def test_what_fails_in_one_rank_alone_is_told_and_not_tried_again(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(TASK, encoding="utf-8")
    words = command(tmp_path / "run", task=f"{tmp_path / 'broken.py'}:Broken", nproc=2)
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == 2 and "start again" not in done.stderr
    assert "rank 1 failed with status 2" in done.stderr and "ZeroDivisionError: no problems here" in done.stderr


def test_a_rank_waits_for_the_others_as_long_as_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    began = time.monotonic()
    told = output_of(
        "train", "sft", "task=families:add", "size=tiny", "rank_timeout=1", f"out={tmp_path / 'run'}", code=75
    )
    assert "rank 0: cannot join the other processes" in told and time.monotonic() - began < 30
    assert not (tmp_path / "run").exists()
