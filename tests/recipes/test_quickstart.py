"""The quickstart in small: every stage, a report, and nothing done twice."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from rorqual.core.ledger import UNACCOUNTED, read_ledger, total
from rorqual.core.records import RunDir
from rorqual.data.distilled import read_distilled
from rorqual.recipes import quickstart
from rorqual.recipes.quickstart import BRANCHES, MODES, SCALES, WHEN, run_quickstart

LITTLE = SCALES["small"].model_copy(
    update={"sft_steps": 3, "sft_rows": 4, "grpo_steps": 1, "grpo_problems": 2, "grpo_samples": 2, "max_tokens": 12,
            "per_cell": 1, "expert_problems": 1, "student_able_steps": 2, "student_base_steps": 2, "distil_problems": 4, "distil_steps": 2,
            "rival_steps": 1, "rival_problems": 2, "rival_samples": 2, "student_per_cell": 1}
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quickstart") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(quickstart.SCALES, "small", LITTLE)
        began = time.monotonic()
        report = run_quickstart(out, size="small", threads=1)
        whole = time.monotonic() - began
    assert report == out / "report.html"
    assert total(read_ledger(out / "ledger.jsonl")).seconds <= whole
    assert total(read_ledger(out / "ledger.jsonl")).seconds >= 0.8 * whole, (
        "a busy machine may stop us between two clocks"
    )
    return out


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_every_stage_left_its_files(place: Path) -> None:
    assert RunDir(place / "base").newest_whole() == (3, []) and RunDir(place / "teacher").newest_whole() == (1, [])
    assert [RunDir(place / name).newest_whole()[0] for name in ("student-base", "distilled", "answers-only", "reinforced")] == [
        2, 2, 2, 1,
    ]  # fmt: skip
    names = {path.stem for path in (place / "evals").glob("*.json")}
    students = {f"student-{branch}-{mode}" for branch, modes in BRANCHES.items() for mode in modes}
    assert names == {f"{when}-{mode}" for when in WHEN for mode in MODES} | {"experts"} | students
    for when in WHEN:
        one, other = (json.loads((place / "evals" / f"{when}-{mode}.json").read_bytes()) for mode in ("on", "off"))
        assert [s["key"] for s in one["samples"]] == [s["key"] for s in other["samples"]]
    assert (place / "report.html").stat().st_size > 10_000 and list((place / "pictures").glob("*.png"))
    summary = json.loads((place / "summary.json").read_bytes())
    *stages, last = summary["stages"]
    assert last["name"] == UNACCOUNTED and len(stages) == 9
    spent = {entry.stage: entry for entry in read_ledger(place / "ledger.jsonl")}
    for stage in stages:
        assert stage["tokens"] > 0 and stage["flops"] > 0, stage
        entry = spent[stage["name"]]
        assert (entry.tokens, entry.flops, entry.solved) == (stage["tokens"], stage["flops"], stage["solved"]), stage
        assert entry.core_seconds > 0 and stage["seconds"] == pytest.approx(entry.seconds)


def test_branches_are_measured_on_the_same_problems_and_those_on_answers_alone_saw_the_teachers(place: Path) -> None:
    keys = [
        [s["key"] for s in json.loads((place / "evals" / f"student-{branch}-auto.json").read_bytes())["samples"]]
        for branch in BRANCHES
    ]
    assert all(one == keys[0] for one in keys)
    kept = read_distilled(place / "samples" / "data.parquet").kept
    lines = [json.loads(line) for line in (place / "answers.jsonl").read_bytes().split(b"\n") if line]
    assert [line["messages"][0]["content"] for line in lines] == [row.prompt for row in kept]
    assert all(set(message) == {"role", "content"} for line in lines for message in line["messages"])


def test_the_same_command_again_does_nothing(place: Path) -> None:
    before, times = snapshot(place), {f: f.stat().st_mtime_ns for f in place.rglob("*")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(quickstart.SCALES, "small", LITTLE)
        run_quickstart(place, size="small", threads=1)
    assert snapshot(place) == before
    assert {f: f.stat().st_mtime_ns for f in place.rglob("*")} == times, "the report was drawn again"


@pytest.mark.slow
def test_a_lost_evaluation_is_made_again_alike(place: Path) -> None:
    file = place / "evals" / "after-on.json"
    before, summary = json.loads(file.read_bytes()), json.loads((place / "summary.json").read_bytes())
    file.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(quickstart.SCALES, "small", LITTLE)
        run_quickstart(place, size="small", threads=2)
    again, after = json.loads(file.read_bytes()), json.loads((place / "summary.json").read_bytes())
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in before.items() if k != "seconds"}
    for one, other in zip(summary["stages"], after["stages"], strict=True):
        assert (one["tokens"], one["flops"]) == (other["tokens"], other["flops"])
