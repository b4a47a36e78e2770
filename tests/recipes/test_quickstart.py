"""The quickstart in small: every stage, a report, and nothing done twice."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rorqual.core.ledger import UNACCOUNTED, read_ledger, sum_entries
from rorqual.core.records import RunDir
from rorqual.data.distilled import read_distilled
from rorqual.recipes import quickstart
from rorqual.recipes.quickstart import BRANCHES, MODES, SCALES, STUDENT_TASK, TASK, WHEN, run_quickstart

LITTLE = SCALES["small"].model_copy(
    update={"sft_steps": 3, "sft_rows": 4, "grpo_steps": 1, "grpo_problems": 2, "grpo_samples": 2, "max_tokens": 12,
            "per_cell": 1, "student_able_steps": 2, "student_base_steps": 2, "distil_problems": 4, "distil_steps": 2,
            "rival_steps": 1, "rival_problems": 2, "rival_samples": 3, "rival_lr": 2e-4, "student_per_cell": 1}
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def little() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(quickstart.SCALES, "small", LITTLE)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quickstart") / "out"
    began = time.monotonic()
    report = run_quickstart(out, size="small", threads=1)
    whole = time.monotonic() - began
    assert report == out / "report.html"
    assert sum_entries(read_ledger(out / "ledger.jsonl")).seconds <= whole
    assert sum_entries(read_ledger(out / "ledger.jsonl")).seconds >= 0.8 * whole, (
        "a busy machine may stop us between two clocks"
    )
    return out


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_every_stage_left_its_files(place: Path) -> None:
    assert RunDir(place / "base").newest_complete_step() == (3, []) and RunDir(
        place / "teacher"
    ).newest_complete_step() == (
        1,
        [],
    )
    assert [RunDir(place / name).newest_complete_step()[0] for name in ("student-base", "distilled", "answers-only", "reinforced")] == [
        2, 2, 2, 1,
    ]  # fmt: skip
    names = {path.stem for path in (place / "evals").glob("*.json")}
    students = {f"student-{branch}-{mode}" for branch, modes in BRANCHES.items() for mode in modes}
    assert names == {f"{when}-{mode}" for when in WHEN for mode in MODES} | students
    for when in WHEN:
        one, other = (json.loads((place / "evals" / f"{when}-{mode}.json").read_bytes()) for mode in ("on", "off"))
        assert [s["key"] for s in one["samples"]] == [s["key"] for s in other["samples"]]
    assert (place / "report.html").stat().st_size > 10_000 and list((place / "pictures").glob("*.png"))
    summary = json.loads((place / "summary.json").read_bytes())
    spent = [entry for entry in read_ledger(place / "ledger.jsonl") if entry.stage != "report"]
    assert [stage["name"] for stage in summary["stages"]] == [entry.stage for entry in spent] and len(spent) == 10
    assert all(
        stage["tokens"] > 0 and stage["flops"] > 0 for stage in summary["stages"] if stage["name"] != UNACCOUNTED
    )
    assert all(stage["core_seconds"] > 0 for stage in summary["stages"])


def test_branches_are_measured_on_the_same_problems_and_those_on_answers_alone_saw_the_teachers(place: Path) -> None:
    keys = [
        [s["key"] for s in json.loads((place / "evals" / f"student-{branch}-auto.json").read_bytes())["samples"]]
        for branch in BRANCHES
    ]
    assert all(one == keys[0] for one in keys)
    kept = read_distilled(place / "samples" / "data.parquet").kept_samples
    lines = [json.loads(line) for line in (place / "answers.jsonl").read_bytes().split(b"\n") if line]
    assert [line["messages"][0]["content"] for line in lines] == [row.prompt for row in kept]
    assert all(set(message) == {"role", "content"} for line in lines for message in line["messages"])


RUNS: dict[str, dict[str, Any]] = {
    "base": {"recipe": "sft", "steps": 3, "source.task": TASK, "source.options": {"hard": 0.2, "plain": 0.35}, "source.think": 0.5,
             "source.rows": 4, "source.row": 128, "seed": 0, "start.run": "", "optim.lr": 0.012},
    "teacher": {"recipe": "grpo", "steps": 1, "source.task": TASK, "source.options": {"hard": 0.5, "plain": 0.2},
                "source.problems": 2, "source.samples": 2,
                "source.max_tokens": 12, "source.row": 128, "optim.lr": 3e-4, "seed": 0, "start.run": "base", "agreement.most": 1e-4},
    "student-able": {"recipe": "sft", "steps": 2, "source.task": STUDENT_TASK, "source.options": {"hard": 0.3}, "source.think": 0.4,
                     "source.rows": 4, "source.row": 128, "seed": 0, "start.run": "", "optim.lr": 0.012},
    "student-base": {"recipe": "sft", "steps": 2, "source.task": STUDENT_TASK, "source.options": {"hard": 0.3}, "source.think": 0.07,
                     "source.rows": 4, "source.row": 128, "seed": 50, "start.run": "student-able", "optim.lr": 0.002,
                     "optim.adamw.lr": 0.002 / 3, "optim.schedule.warmup": 5},
    "distilled": {"recipe": "distil", "steps": 2, "source.data": "samples/data.parquet", "source.logits": False, "source.rows": 4,
                  "source.row": 128, "seed": 0, "start.run": "student-base", "optim.lr": 0.006, "optim.adamw.lr": 0.002},
    "answers-only": {"recipe": "sft", "steps": 2, "source.data": "answers.jsonl", "source.longer": "skip", "source.rows": 4,
                     "source.row": 128, "seed": 0, "start.run": "student-base", "optim.lr": 0.006, "optim.adamw.lr": 0.002},
    "reinforced": {"recipe": "grpo", "steps": 1, "source.task": STUDENT_TASK, "source.options": {"hard": 0.3}, "source.problems": 2,
                   "source.samples": 3, "source.max_tokens": 12, "source.row": 128, "optim.lr": 2e-4, "seed": 0,
                   "start.run": "student-base", "agreement.most": 1e-3, "agreement.mean": 1e-6},
}  # fmt: skip
"""What each training is told, by its run.yaml; paths are those in the quickstart's folder."""


@pytest.mark.parametrize("name", RUNS)
def test_each_stage_trains_as_the_scale_says(name: str, place: Path) -> None:
    config = RunDir(place / name).config()
    for key, wanted in RUNS[name].items():
        found: Any = config
        for part in key.split("."):
            found = found[part]
        if key in ("start.run", "source.data") and wanted:
            wanted = str(place / wanted)
        assert found == (pytest.approx(wanted) if isinstance(wanted, float) else wanted), key


def test_the_teacher_and_every_model_are_asked_as_the_scale_says(place: Path) -> None:
    rows = read_distilled(place / "samples" / "data.parquet").rows
    assert len(rows) == 4 and {row.family for row in rows} <= {"add", "sub", "swap"}
    told = json.loads(rows[0].params)
    assert {"temperature": 0.6, "top_p": 0.95, "max_tokens": 12, "thinking": "on"}.items() <= told.items()
    for when in WHEN:
        for mode in MODES:
            found = json.loads((place / "evals" / f"{when}-{mode}.json").read_bytes())
            assert (found["thinking"], found["split"], found["model"]) == (mode, "test", when)
            assert {sample["family"] for sample in found["samples"]} == {"add", "sub", "mod", "swap", "count", "kk"}
    for branch, modes in BRANCHES.items():
        for mode in modes:
            found = json.loads((place / "evals" / f"student-{branch}-{mode}.json").read_bytes())
            assert (found["thinking"], found["split"], found["model"]) == (mode, "test", branch)
            assert {"temperature": 0.6, "top_p": 0.95, "max_tokens": 12, "seed": 0, "n": 1}.items() <= found[
                "params"
            ].items()
            assert {sample["family"] for sample in found["samples"]} == {"add", "sub", "swap"}
            assert found["baselines"]["all"].keys() == {"uniform", "majority", "length", "tree"}
            assert found["versions"] == {"add": 2, "sub": 2, "swap": 2}


def test_the_summary_tells_of_each_stage_by_its_own_files(place: Path) -> None:
    """The base student is trained in two runs; what is measured counts its tokens; samples are counted by what became of them. No stage was
    interrupted, so the ledger has the amounts of the files."""
    summary = json.loads((place / "summary.json").read_bytes())
    found = {stage["name"]: stage for stage in summary["stages"]}
    metrics = {name: list(RunDir(place / name).metrics()) for name in RUNS}
    for stage, names in {"train the teacher": ["base"], "reinforce the teacher": ["teacher"], "distil the student": ["distilled"],
                         "train the base student": ["student-able", "student-base"], "train on answers alone": ["answers-only"],
                         "reinforce the rival": ["reinforced"]}.items():  # fmt: skip
        lines = [line for name in names for line in metrics[name]]
        assert found[stage]["tokens"] == sum(line["tokens"] + line.get("sampled_tokens", 0) for line in lines)
        assert found[stage]["flops"] == sum(line["flops"] for line in lines)
        assert found[stage]["solved"] == sum(line.get("right", 0) for line in lines)
    rows = read_distilled(place / "samples" / "data.parquet").rows
    kept, right = sum(not row.dropped for row in rows), sum(row.verdict == "right" for row in rows)
    assert summary["samples"] == {"sampled": len(rows), "right": right, "kept": kept}
    assert found["sample the teacher"]["tokens"] == sum(row.prompt_tokens + row.completion_tokens for row in rows)
    students = [
        (place / "evals" / f"student-{b}-{m}.json").read_bytes() for b, modes in BRANCHES.items() for m in modes
    ]
    assert found["measure the students"]["tokens"] == sum(sum(json.loads(one)["usage"].values()) for one in students)
    assert [branch["name"] for branch in summary["branches"]] == list(BRANCHES)
    assert summary["command"] == "rorqual quickstart --seed 0 --size small" and summary["seed"] == 0
    assert {stage for branch in summary["branches"] for stage in branch["stages"]} <= set(found)


def test_the_same_command_again_does_nothing(place: Path) -> None:
    def times() -> dict[Path, int]:
        return {file: file.stat().st_mtime_ns for file in place.rglob("*") if file.is_file()}

    before, then = snapshot(place), times()
    run_quickstart(place, size="small", threads=1)
    assert snapshot(place) == before
    assert times() == then, "the report was drawn again"


def test_a_lost_evaluation_is_made_again_alike(place: Path) -> None:
    file = place / "evals" / "after-on.json"
    before, summary = json.loads(file.read_bytes()), json.loads((place / "summary.json").read_bytes())
    file.unlink()
    run_quickstart(place, size="small", threads=2)
    again, after = json.loads(file.read_bytes()), json.loads((place / "summary.json").read_bytes())
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in before.items() if k != "seconds"}
    spent, whole = (next(s for s in one["stages"] if s["name"] == "measure the teacher") for one in (summary, after))
    assert whole["tokens"] == spent["tokens"] + sum(again["usage"].values()), "repeated work is paid again"
