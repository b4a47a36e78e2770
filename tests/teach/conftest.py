"""A tiny base model, and files of examples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from example_files import Write

from rorqual.recipes.sft import sft
from rorqual.train.loop import fit


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that was trained for two steps."""
    out = tmp_path_factory.mktemp("base") / "tiny"
    fit(sft(task="families:add", size="tiny", steps=2, rows=2, row=256), out, quiet=True)
    return out


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes rows as JSONL."""

    def rows_to(name: str, rows: Sequence[dict[str, Any]]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return rows_to
