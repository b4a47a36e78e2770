"""A run to type commands at."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from rorqual.core.records import RunDir
from rorqual.engine.engine import Engine
from rorqual.recipes import make_run
from rorqual.train.loop import fit


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps, to be copied or read, never written to."""
    out = tmp_path_factory.mktemp("tiny") / "run"
    fit(make_run("sft", {"task": "families", "size": "tiny", "steps": "3", "rows": "4"}), RunDir(out), quiet=True)
    return out


@pytest.fixture
def place(tmp_path: Path, tiny: Path) -> Path:
    """A folder that holds a copy of the tiny run, as `run`, and nothing else."""
    folder = tmp_path / "place"
    folder.mkdir()
    shutil.copytree(tiny, folder / "run")
    return folder


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of every engine of a run that is made, which is made with them all the same."""
    made: list[dict[str, Any]] = []
    begin = Engine.__init__

    def noted(self: Engine, run: Path | str, **more: Any) -> None:
        made.append({"run": str(run), **more})
        begin(self, run, **more)

    monkeypatch.setattr(Engine, "__init__", noted)
    return made
