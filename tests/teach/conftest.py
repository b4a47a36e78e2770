"""A run whose tokenizer counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from rorqual.core.records import RunDir
from rorqual.recipes import make_run
from rorqual.train.loop import fit


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("teach") / "run"
    fit(make_run("sft", {"task": "families", "size": "tiny", "steps": "1", "rows": "2"}), RunDir(out), quiet=True)
    return out
