"""The command itself: what is quick, what stops it, and how its arguments are read."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from commands import listing, typed
from rorqual.cli.main import report_errors
from rorqual.cli.settings import split_pairs
from rorqual.core.errors import ConfigError
from rorqual.core.records import RunDir
from rorqual.recipes import make_run
from rorqual.train.sources import RolloutConfig

RORQUAL = (sys.executable, "-m", "rorqual")
VERBS = ("quickstart", "train", "eval", "chat", "inspect", "report", "compare", "doctor")


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["train", "--help"]], ids=" ".join)
def test_help_is_quick_because_torch_is_not_imported(words: list[str]) -> None:
    code = f"import sys; sys.argv[1:] = {words!r}\ntry:\n import rorqual.cli.main as m; m.main()\nfinally:\n print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=True)
    assert done.stdout.endswith("False\n")


def test_each_verb_has_help_with_an_example(tmp_path: Path) -> None:
    whole = typed(tmp_path, "--help")
    for verb in VERBS:
        assert re.search(rf"^  {verb} ", whole.out, re.MULTILINE)
        told_ = typed(tmp_path, verb, "--help").out
        assert re.search(rf"Example:\n  .*rorqual {verb}", told_), told_


def test_without_a_verb_the_help_is_shown(tmp_path: Path) -> None:
    assert typed(tmp_path).out.rstrip() == typed(tmp_path, "--help").out.rstrip()


STEPS = 50
"""So many that a run is not done before it is stopped."""


@pytest.mark.parametrize("polite", [signal.SIGINT, signal.SIGTERM])
def test_stopped_it_says_so_and_the_same_command_goes_on_where_it_was(polite: signal.Signals, tmp_path: Path) -> None:
    words = [
        "train",
        "sft",
        "task=families",
        "size=tiny",
        "rows=2",
        f"steps={STEPS}",
        "save_seconds=0.05",
        "out=run",
        "threads=1",
    ]
    process = subprocess.Popen(
        [*RORQUAL, *words],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    run = RunDir(tmp_path / "run")
    while not run.steps() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(polite)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert err.endswith("stopped; the same command resumes\n")
    assert "Traceback" not in err
    reached, _ = run.newest_complete_step()
    assert reached is not None
    again = typed(tmp_path, *words)
    assert again.code == 0, again.err
    assert f"sft  {reached}/{STEPS}" not in again.err
    assert [record["step"] for record in run.metrics()] == list(range(1, STEPS + 1))
    before = listing(tmp_path)
    assert typed(tmp_path, *words).code == 0
    assert listing(tmp_path) == before, "a run that is done changes nothing"


def test_whoever_stops_reading_is_no_error(tmp_path: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m rorqual inspect deepseek-v3 | head -n 1",
        shell=True, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=True,
    )  # fmt: skip
    assert done.stdout.startswith("model ")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "runs/a"), "runs/a: No space left on device\n  Free disk space"),
        (PermissionError(errno.EACCES, "Permission denied", "/closed/x"), "/closed/x: Permission denied\n  Check the path"),
    ],
)  # fmt: skip
def test_the_system_s_own_refusals_are_told_like_ours(
    error: OSError, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as stopped, report_errors(lambda: "train"):
        raise error
    assert stopped.value.exit_code == 2
    assert says in capsys.readouterr().err


def test_a_bug_shows_itself() -> None:
    with pytest.raises(ZeroDivisionError), report_errors(lambda: "train"):
        raise ZeroDivisionError


def test_pairs() -> None:
    assert split_pairs(["a=1", "b=x=y", "c="]) == {"a": "1", "b": "x=y", "c": ""}
    for wrong in ("a", "=1", "--a=1", "-x"):
        with pytest.raises(ConfigError, match="not key=value"):
            split_pairs([wrong])
    with pytest.raises(ConfigError, match="given twice"):
        split_pairs(["a=1", "a=2"])


def test_on_and_off_are_words_where_words_are_wanted(tiny: Path) -> None:
    for key in ("thinking", "source.thinking"):
        values = {"task": "families", "from": str(tiny), key: "on", "source.std": "off"}
        source = make_run("grpo", values).source
        assert isinstance(source, RolloutConfig)
        assert (source.thinking, source.std) == ("on", False)
