"""Two commands on one folder: the second is refused by the first one's name, unless it only reads."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from commands import forked_commands, typed
from rorqual.core.lock import acquire_lock, acquire_run_lock
from rorqual.core.records import RunDir

TRAIN = ("train", "sft", "task=families", "size=tiny", "rows=4", "out=run")


@pytest.mark.parametrize(
    "words",
    [
        (*TRAIN, "steps=3"),
        (*TRAIN, "steps=5"),
        ("train", "grpo", "task=families", "from=run", "out=run"),
        ("train", "pretrain", "data=text.txt", "out=run"),
        ("quickstart", "--size", "small", "--out", "run"),
    ],
    ids=" ".join,
)
def test_what_writes_a_folder_is_refused_while_another_does(words: tuple[str, ...], place: Path) -> None:
    (place / "text.txt").write_text("a text " * 99, "utf-8")
    with acquire_run_lock(place / "run"):
        done = typed(place, *words)
    assert done.code == 2 and f"run: another process is writing to this path: process {os.getpid()}, since" in done.err
    assert "give another out=" in done.err


@pytest.mark.parametrize(
    "words", [("import", "hf", "new"), ("merge", "lora", "new"), ("train", "sft", "task=families", "out=new")]
)
def test_what_makes_a_folder_is_refused_while_another_does(words: tuple[str, ...], place: Path) -> None:
    if words[0] == "import":
        assert typed(place, "export", "run", "hf").code == 0
    elif words[0] == "merge":
        lora = (
            "train",
            "sft",
            "task=families",
            "from=run",
            "steps=1",
            "rows=2",
            "tune.kind=lora",
            "tune.targets=[o_proj]",
            "out=lora",
        )
        assert typed(place, *lora).code == 0
    with acquire_lock(place / "new", ""):
        done = typed(place, *words)
    assert done.code == 2 and f"new: another process is writing to this path: process {os.getpid()}, since" in done.err
    assert not (place / "new").exists()


def test_a_training_is_read_while_it_goes_on_and_a_kill_gives_the_folder_back(
    place: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = RunDir(place / "run")
    with forked_commands(tmp_path_factory.mktemp("door")) as door:
        words = [str(door / "rorqual"), *TRAIN, "steps=100000", "save_seconds=3", "threads=1"]
        with subprocess.Popen(words, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as training:
            try:
                while run.newest_complete_step()[0] in (None, 3):
                    assert training.poll() is None
                    time.sleep(0.01)
                refused = typed(place, *TRAIN, "steps=100000")
                assert refused.code == 2 and "another process is writing to this path: process" in refused.err
                pid = int(refused.err.split("path: process ")[1].split(",")[0])
                for words_ in (("eval", "run", "task=families", "count=1", "max_tokens=2"), ("inspect", "run")):
                    read = typed(place, *words_)
                    assert read.code == 0, read.err
                os.kill(pid, signal.SIGKILL)
            except BaseException:
                training.kill()  # or a failure above would wait for the end of the training
                raise
    acquire_run_lock(run.path).close()
