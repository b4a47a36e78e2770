"""lm-eval's loglikelihood over our server is what transformers says of the exported weights, and our own scoring."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rorqual.core.records import RunDir
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.score import score
from rorqual.model.load.run_directory import load_run
from served import Server

TASK = Path(__file__).parent / "clients" / "lm_eval" / "choices.yaml"
QUESTIONS = (
    ("Two and three are", [" five", " six, or so", " many more than that"]),
    ("The sea is full of ", ["whales", "salt", "ships and sailors"]),
    ("one " * 40 + "and", [" two", " one", " none of them"]),  # longer than a block of the cache
    ("one " * 40 + "or", [" two", " one"]),  # which begins alike
)


def lm_eval(tmp_path: Path, key: str, model: str) -> list[tuple[float, bool]]:
    """(log-likelihood, whether it is the greedy continuation) of each choice, in order."""
    out = tmp_path / "out"
    done = subprocess.run(
        [
            sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", model, "--tasks", "choices",
            "--include_path", str(tmp_path), "--batch_size", "3",
            "--output_path", str(out), "--log_samples",
        ],
        capture_output=True, text=True, encoding="utf-8", check=False, timeout=300,
        env={
            **os.environ, "OPENAI_API_KEY": key, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache"),
            "NO_PROXY": "127.0.0.1",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    [samples] = out.rglob("samples_choices_*.jsonl")
    rows: list[dict[str, Any]] = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    rows.sort(key=lambda row: row["doc_id"])
    return [(float(pair[0]), str(pair[1]) == "True") for row in rows for pair in row["filtered_resps"]]


def test_a_loglikelihood_is_our_own_and_transformers(run: Path, server: Server, tmp_path: Path) -> None:
    rows = [{"question": q, "choices": c, "answer": 0} for q, c in QUESTIONS]
    data = tmp_path / "choices.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = TASK.read_text(encoding="utf-8").replace("choices.jsonl", str(data))
    (tmp_path / "choices.yaml").write_text(task, encoding="utf-8")
    exported = tmp_path / "exported"
    done = subprocess.run(
        [sys.executable, "-m", "rorqual", "export", str(run), str(exported), "quiet=true"],
        capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    address = f"model=tiny,base_url={server.url}/v1/completions,tokenizer={exported},tokenizer_backend=huggingface,max_retries=1"
    ours = lm_eval(tmp_path, server.key, address)
    theirs = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    model = load_run(RunDir(run), device="cpu")
    tokenizer = Tokenizer.load(RunDir(run).tokenizer_file)
    pairs = [(tokenizer.encode(question.rstrip()), tokenizer.encode(" " * question.endswith(" ") + choice))
             for question, choices in QUESTIONS for choice in choices]  # fmt: skip
    scored = score(model, pairs, model.config.vocab_size)
    for (prompt, reply), (ids, logprobs), (value, greedy) in zip(pairs, scored, ours, strict=True):
        own = [dict(zip(its.tolist(), row.tolist()))[token] for token, its, row in zip(reply, ids, logprobs)]
        with torch.no_grad():
            logits = theirs(torch.tensor([[*prompt, *reply]])).logits[0, len(prompt) - 1 : -1]
        other = logits.log_softmax(-1).gather(1, torch.tensor(reply).unsqueeze(1)).sum().item()
        assert value == pytest.approx(sum(own), abs=1e-3)
        assert value == pytest.approx(other, abs=1e-3)
        assert greedy == (logits.argmax(-1).tolist() == reply)
    assert len({round(value, 3) for value, _ in ours}) == len(pairs)
