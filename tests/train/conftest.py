"""A model that has half learned to answer, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from little import sft_run

from rorqual.core.records import RunDir
from rorqual.train.loop import fit


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ends its turns and is sometimes right: groups have both rewards."""
    out = tmp_path_factory.mktemp("base") / "run"
    fit(sft_run(90, save_seconds=1e9), RunDir(out), quiet=True)
    return out
