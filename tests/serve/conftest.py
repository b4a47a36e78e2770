"""One run and one server for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Server, start, stop, write_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("serve") / "tiny")


@pytest.fixture(scope="session")
def server(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    running = start(run, folder / "keys.json", folder / "log", "port=0", "slots=4")
    yield running
    if running.process.poll() is None:
        assert stop(running) == 0
    assert "Traceback" not in running.log.read_text(encoding="utf-8")
