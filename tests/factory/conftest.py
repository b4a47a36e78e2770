"""A run to sample, a server to ask, and a factory's settings for each."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from distil_server import Adder
from sums_task import SUMS, Make

from rorqual.core.records import RunDir
from rorqual.factory import FactoryConfig, card
from rorqual.recipes import make_run
from rorqual.train.loop import fit

draw = cache(card.draw)


@pytest.fixture(autouse=True)
def _draw_a_chart_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the charts of cards: the same data gives the same bytes, and drawing takes most of the time of a small factory."""
    monkeypatch.setattr(card, "draw", draw)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps, never written to."""
    out = tmp_path_factory.mktemp("teacher") / "run"
    fit(make_run("sft", {"task": "families", "size": "tiny", "steps": "2", "rows": "4"}), RunDir(out), quiet=True)
    return out


@pytest.fixture
def server() -> Iterator[Adder]:
    made = Adder()
    made.start()
    yield made
    made.stop()


@pytest.fixture
def local(run: Path) -> Make:
    """The settings of a local factory; keyword arguments change them."""

    def make(**changes: Any) -> FactoryConfig:
        usual = {"problems": 6, "samples": 2, "max_tokens": 8, "keep": "all", "batch": 4}
        return FactoryConfig.model_validate({"teacher": str(run), "task": SUMS, **usual, **changes})

    return make


@pytest.fixture
def remote(server: Adder) -> Make:
    """The settings of a factory that asks the server; `access` changes only what it names."""

    def make(access: dict[str, Any] | None = None, **changes: Any) -> FactoryConfig:
        usual = {"problems": 6, "samples": 2, "max_tokens": 20}
        way = {"backoff": 0.01, "timeout": 60.0, "retries": 3, "concurrency": 4, **(access or {})}
        base = {"teacher": server.url, "model": "adder", "task": SUMS}
        return FactoryConfig.model_validate({**base, **usual, "access": way, **changes})

    return make
