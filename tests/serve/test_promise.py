"""Where the same bits cannot be promised, whoever relies on them is told."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rorqual.cli.main import app
from served import running, write_run

SAID = "answers may differ in their last bits"


@pytest.mark.parametrize(("head_dim", "held"), [(8, True), (18, False)])
def test_a_server_and_a_batch_say_so(tmp_path: Path, head_dim: int, held: bool) -> None:
    run = write_run(tmp_path / "run", head_dim)
    with running(run, tmp_path, "ui=false", "backend=torch-invariant") as server:
        with server.client as client:
            asked = client.post("/v1/completions", json={"model": "run", "prompt": "a", "max_tokens": 2})
            assert asked.status_code == 200, asked.text
            end = time.monotonic() + 60
            while 'what="invariant"' not in client.get("/metrics").text:  # until the engine has spoken
                assert time.monotonic() < end
                time.sleep(0.1)
        assert server.metric(r'engine\{what="invariant"\}') == held
    assert (SAID in (tmp_path / "log").read_text(encoding="utf-8")) is not held
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "a", "max_tokens": 2}) + "\n", encoding="utf-8")
    words = [
        "generate",
        str(prompts),
        f"run={run}",
        f"out={tmp_path / 'out.jsonl'}",
        "threads=1",
        "backend=torch-invariant",
    ]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0 and (SAID in done.stderr) is not held
