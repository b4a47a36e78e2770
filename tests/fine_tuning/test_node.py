"""OpenAI's client for Node runs a whole job, unchanged but for the address."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from test_moving_page import blocks
from tuned_server import BASE, TuneServer, sums


@pytest.mark.browser
def test_openais_client_for_node_tunes_a_model(tuner: TuneServer, tmp_path: Path) -> None:
    npm, node = shutil.which("npm"), shutil.which("node")
    assert npm and node, "npm and node are needed: apt-get install npm"
    shutil.copy(Path(__file__).with_name("jobs.mjs"), tmp_path)
    (tmp_path / "package.json").write_text('{"private": true, "type": "module"}', encoding="utf-8")
    install = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "openai@^6"]
    done = subprocess.run(
        install, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=False, timeout=300
    )
    assert done.returncode == 0, f"npm could not install `openai`; is a registry within reach? {done.stderr[-2000:]}"
    data = sums(tmp_path / "sums.jsonl")
    words = [node, "jobs.mjs", f"{tuner.server.url}/v1", tuner.client.api_key, str(data), BASE]
    done = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    events = found.pop("events")
    assert events[0] == "The job has successfully completed" and events[-1].startswith("Created fine-tuning job: ")
    assert found == {
        "filename": "sums.jsonl", "status": "succeeded", "cancelled": "cancelled", "checkpoints": 1, "listed": True,
        "model": True, "served": True, "gone": True, "deleted": True,
        "refused": {"status": 404, "param": "training_file", "kind": "NotFoundError"},
        "head": "step,train_loss,valid_loss,valid_mean_token_accuracy",
    }  # fmt: skip
    [page] = blocks("js")
    named = page.replace("http://127.0.0.1:8000/v1", words[2]).replace("rq-...", words[3])
    (tmp_path / "page.mjs").write_text(named.replace("train.jsonl", str(data)), encoding="utf-8")
    words = [node, "page.mjs"]
    done = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=False, timeout=300
    )
    assert done.returncode == 0 and "Created fine-tuning job: " in done.stdout, done.stderr
