"""The quickstart folder of invented figures, and a tiny trained run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from quickstart_folder import write_folder, write_students
from rorqual.core.records import RunDir
from rorqual.recipes import make_run
from rorqual.train.loop import fit


@pytest.fixture(scope="session")
def add_students() -> Callable[..., Path]:
    return write_students


@pytest.fixture
def quickstart_folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path)


@pytest.fixture(scope="session")
def make_folder() -> Callable[[Path], Path]:
    return write_folder


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run to start from."""
    out = tmp_path_factory.mktemp("start") / "run"
    run = make_run("sft", {"task": "families:add", "size": "tiny", "rows": "2", "row": "96", "steps": "1"})
    fit(run, RunDir(out), quiet=True)
    return out
