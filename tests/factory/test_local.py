"""A run as the teacher: its samples are a function of the config, and none is lost or drawn differently by a restart."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from sums_task import Make

from rorqual.core.errors import CheckpointError, ConfigError
from rorqual.core.ledger import read_ledger
from rorqual.data.distilled import TeacherSample, read_distilled
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Engine, Request, SamplingParams
from rorqual.factory import FactoryConfig, sample_teacher
from rorqual.tasks.find import load_task, safe_grade

HERE = Path(__file__).parent


def made(config: FactoryConfig, out: Path, threads: int = 1) -> list[TeacherSample]:
    return read_distilled(sample_teacher(config, out, threads=threads, quiet=True)).rows


def told(rows: list[TeacherSample]) -> list[str]:
    """Everything but the clock."""
    plain = [replace(row, core_seconds=0.0) for row in rows]
    return [repr([getattr(row, f.name).tolist() if f.name.startswith("top") else getattr(row, f.name) for f in fields(row)])
            for row in plain]  # fmt: skip


@pytest.fixture(scope="module")
def straight(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished factory of three batches, to be copied or read."""
    out = tmp_path_factory.mktemp("straight") / "out"
    config = FactoryConfig(
        teacher=str(run), task=f"{HERE / 'sums_task.py'}:Sums", problems=6, samples=2, max_tokens=8, keep="all", batch=4
    )
    sample_teacher(config, out, threads=1, quiet=True)
    return out


def test_each_row_says_where_it_comes_from(straight: Path, run: Path) -> None:
    file = read_distilled(straight / "data.parquet")
    rows = file.rows
    assert [(r.key, r.number) for r in rows] == [(f"{a}+{a + 1}", n) for a in range(6) for n in range(2)]
    assert file.tokenizer == Tokenizer.load(run / "tokenizer.json").fingerprint and file.vocab == 263
    engine, task = Engine(run), load_task(f"{HERE / 'sums_task.py'}:Sums")
    problems = {p.key: p for p in task.problems("train", 0)}
    for row in rows:
        assert row.teacher.endswith("run@step-000002") and json.loads(row.params)["max_tokens"] == 8
        assert tuple(row.prompt_ids) == tuple(engine.chat.prompt(row.messages[:-1], "auto"))
        assert (row.prompt_tokens, row.completion_tokens) == (len(row.prompt_ids), len(row.token_ids))
        reply = engine.chat.parse(list(row.token_ids), "auto")
        assert (row.messages[-1].content, row.messages[-1].reasoning) == (reply.content, reply.reasoning)
        assert row.verdict == safe_grade(task, problems[row.key], row.messages[-1].content).value
    assert len({row.seed for row in rows}) == 12, "each sample draws with a seed of its own"
    requests = [
        Request(row.messages[:-1], SamplingParams(max_tokens=8, temperature=1.0, top_p=1.0, seed=row.seed))
        for row in rows
    ]
    again = [[*one.prompt_ids, *one.token_ids] for (one,) in engine.generate(requests)]
    assert again == [[*row.prompt_ids, *row.token_ids] for row in rows], "by which it is drawn again"
    assert all(row.core_seconds > 0 and row.money == 0 for row in rows)
    costs = {cost.stage: cost for cost in read_ledger(straight / "costs.jsonl")}
    assert sum(row.core_seconds for row in rows) <= costs["sampling"].core_seconds


def test_the_same_call_again_does_nothing_and_other_files_are_refused(
    straight: Path, local: Make, tmp_path: Path
) -> None:
    times = {file: file.stat().st_mtime_ns for file in straight.iterdir()}
    assert sample_teacher(local(), straight, threads=2, quiet=True) == straight / "data.parquet"
    assert {file: file.stat().st_mtime_ns for file in straight.iterdir()} == times
    (tmp_path / "letter.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(ConfigError, match="the folder has other files in it"):
        made(local(), tmp_path)


@pytest.mark.parametrize("lines", [1, 4, 7, 12])
def test_a_restart_gives_what_a_straight_run_gives(straight: Path, local: Make, tmp_path: Path, lines: int) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "factory.yaml").write_bytes((straight / "factory.yaml").read_bytes())
    kept = (straight / "samples.jsonl").read_bytes().split(b"\n")[:lines]
    (out / "samples.jsonl").write_bytes(b"".join(line + b"\n" for line in kept) + b'{"torn')
    assert told(made(local(), out, threads=2)) == told(read_distilled(straight / "data.parquet").rows)
    again = (out / "samples.jsonl").read_bytes().split(b"\n")
    assert again[:lines] == kept and len(again) == 13, "what was there is there, and nothing twice"
    assert (out / "contaminated.jsonl").read_bytes() == (straight / "contaminated.jsonl").read_bytes()


def test_a_teacher_that_was_trained_on_is_another_teacher(local: Make, run: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    made(local(teacher=str(copy)), tmp_path / "out")
    weights = copy / "step-000002" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x00\x80\x3f")
    with pytest.raises(ConfigError, match=r"finished.json: this dataset is finished, but since then changed: teacher"):
        made(local(teacher=str(copy)), tmp_path / "out")
    (tmp_path / "out" / "finished.json").unlink()
    with pytest.raises(ConfigError, match=r"samples.jsonl:1: this sample comes from another teacher"):
        made(local(teacher=str(copy)), tmp_path / "out")


def test_settings_that_cannot_be_meant_write_nothing(local: Make, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(CheckpointError, match="not a run directory"):
        made(local(teacher=str(tmp_path / "none")), out)
    with pytest.raises(ConfigError, match=r"'famlies'.*(?s:.)*'families'"):
        made(local(task="famlies"), out)
    with pytest.raises(ConfigError, match="top_k=264 is more than the vocabulary's 263 tokens"):
        made(local(top_k=264), out)
    for changes in (
        {"split": "test"},
        {"model": "m"},
        {"top_k": -1},
        {"problms": 3},
        {"teacher": "http://x/v1", "model": "m", "top_k": 1},
    ):
        with pytest.raises(ValueError, match="validation error"):
            local(**changes)
    assert not out.exists()
