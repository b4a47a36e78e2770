"""What an earlier version wrote is read: runs, adapters, GGUF, keys, an evaluation, a report's files. A cache folder of then is a miss."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rorqual.convert.gguf import import_gguf
from rorqual.core.config import read_yaml
from rorqual.core.records import RunDir
from rorqual.engine import Engine, Request, SamplingParams
from rorqual.evals.evaluation import Evaluation
from rorqual.model.load.run_directory import load_run
from rorqual.recipes.quickstart.report import build_report
from rorqual.serve.keys import ApiKeys
from rorqual.train.loop import fit
from rorqual.train.run import Run

OLDER = Path(__file__).parent / "older"
PROMPT = tuple(range(10, 140))
EXPECTED: dict[str, Any] = json.loads((OLDER / "expected.json").read_text("utf-8"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(OLDER, tmp_path, dirs_exist_ok=True)
    cache = tmp_path / "cache"
    for secret in (cache, cache / "secret", tmp_path / "keys.json"):  # git keeps no such modes
        secret.chmod(0o700 if secret.is_dir() else 0o600)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["run", "lora", "esft"])
def test_a_model_of_then_gives_the_answers_of_then(place: Path, name: str) -> None:
    engine = Engine(name)
    for how, params in (("greedy", {}), ("sampled", {"temperature": 1.0, "seed": 3, "top_k": 20})):
        request = Request(prompt_ids=PROMPT, params=SamplingParams(max_tokens=12, ignore_eos=True, **params))  # type: ignore[arg-type]
        [[found]] = engine.generate([request])
        ids, logprobs = EXPECTED[name][how]
        assert found.token_ids == ids
        torch.testing.assert_close(torch.tensor(found.logprobs), torch.tensor(logprobs), rtol=0, atol=1e-4)
        if how == "greedy":
            assert found.experts.tolist()[-1] == EXPECTED[name]["experts"]


def test_a_run_of_then_is_extended_as_it_was_then(place: Path) -> None:
    run = read_yaml(Run, place / "run" / "run.yaml")
    fit(run.model_copy(update={"steps": 4, "extensions": ()}), RunDir(place / "run"), threads=1, quiet=True)
    records = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    then = [json.loads(line) for line in (place / "further.jsonl").read_text("utf-8").splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    for found, expected in zip(records[2:], then, strict=True):
        for name in ("loss", "grad_norm", "loss/next_token", "loss/mtp", "load_max_over_mean"):
            assert found[name] == pytest.approx(expected[name], rel=1e-4), name
    names = set(load_file(place / "run" / "step-000004" / "model.safetensors"))
    assert any(name.endswith("ffn.router.gate") for name in names), "what is written now has the names of now"


def test_a_folder_of_blocks_of_then_is_a_miss_and_goes_on(place: Path) -> None:
    held = {file.name for file in (place / "cache").glob("*.rqblock")}
    request = Request(prompt_ids=PROMPT, params=SamplingParams(max_tokens=12, ignore_eos=True))
    hits = []
    for _ in range(2):
        engine = Engine("run", cache_dir=place / "cache")
        [[found]] = engine.generate([request])
        hits.append(found.usage["prompt_cache_hit_tokens"])
        assert found.token_ids == EXPECTED["run"]["greedy"][0]
        engine.close()
    assert hits == [0, 128] and {file.name for file in (place / "cache").glob("*.rqblock")} > held


def test_a_gguf_file_of_then_is_the_run(place: Path) -> None:
    import_gguf(place / "run.gguf", place / "imported", progress=lambda *_: None)
    tokens = torch.tensor([PROMPT])
    found, expected = (load_run(RunDir(place / name))(tokens).hidden.detach() for name in ("imported", "run"))
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_keys_and_evaluations_of_then_are_read(place: Path) -> None:
    keys = ApiKeys.load(place / "keys.json")
    assert keys.tenant(EXPECTED["key"]) == "tenant" and keys.tenant(EXPECTED["key"][:-1]) is None
    found = Evaluation.load(place / "run" / "evals" / "families-add-test-auto.json")
    assert len(found.samples) == 3


def test_the_files_of_a_report_of_then_give_its_accuracies(place: Path) -> None:
    page = build_report(place / "quickstart").read_text("utf-8")
    section = page[page.index('id="accuracy"') : page.index('id="students"')]
    rows = re.findall(r"<tr.*?</tr>", section, flags=re.DOTALL)
    found = [
        [re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, flags=re.DOTALL)]
        for row in rows
    ]
    assert found == json.loads((place / "quickstart" / "accuracy.json").read_text("utf-8")) and len(found) == 25
