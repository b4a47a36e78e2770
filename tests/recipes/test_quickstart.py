"""The quickstart in small: every stage, a report, and nothing done twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rorqual.core.records import RunDir
from rorqual.recipes import quickstart
from rorqual.recipes.quickstart import MODES, SCALES, WHEN, run_quickstart

LITTLE = SCALES["small"].model_copy(
    update={"sft_steps": 3, "sft_rows": 4, "grpo_steps": 1, "grpo_problems": 2, "grpo_samples": 2, "max_tokens": 12,
            "per_cell": 1, "expert_problems": 1}
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quickstart") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(quickstart.SCALES, "small", LITTLE)
        report = run_quickstart(out, size="small", threads=1)
    assert report == out / "report.html"
    return out


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_every_stage_left_its_files(place: Path) -> None:
    assert RunDir(place / "base").newest_whole() == (3, []) and RunDir(place / "teacher").newest_whole() == (1, [])
    names = {path.stem for path in (place / "evals").glob("*.json")}
    assert names == {f"{when}-{mode}" for when in WHEN for mode in MODES} | {"experts"}
    for when in WHEN:
        one, other = (json.loads((place / "evals" / f"{when}-{mode}.json").read_bytes()) for mode in ("on", "off"))
        assert [s["key"] for s in one["samples"]] == [s["key"] for s in other["samples"]]
    assert (place / "report.html").stat().st_size > 10_000 and list((place / "pictures").glob("*.png"))
    summary = json.loads((place / "summary.json").read_bytes())
    assert [stage["name"] for stage in summary["stages"]][-1] == "measure"
    assert all(stage["tokens"] > 0 and stage["flops"] > 0 for stage in summary["stages"])


def test_the_same_command_again_does_nothing(place: Path) -> None:
    before, times = snapshot(place), {f: f.stat().st_mtime_ns for f in place.rglob("*")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(quickstart.SCALES, "small", LITTLE)
        run_quickstart(place, size="small", threads=1)
    assert snapshot(place) == before
    assert {f: f.stat().st_mtime_ns for f in place.rglob("*")} == times, "the report was drawn again"


@pytest.mark.slow
def test_a_lost_evaluation_is_made_again_alike(place: Path) -> None:
    file, clock = place / "evals" / "after-on.json", place / "clock.json"
    before, summary = json.loads(file.read_bytes()), json.loads((place / "summary.json").read_bytes())
    file.unlink()
    times = json.loads(clock.read_bytes())
    del times["before-auto"]  # as if a kill had fallen between an evaluation and its clock
    clock.write_text(json.dumps(times), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(quickstart.SCALES, "small", LITTLE)
        run_quickstart(place, size="small", threads=2)
    again, after = json.loads(file.read_bytes()), json.loads((place / "summary.json").read_bytes())
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in before.items() if k != "seconds"}
    for one, other in zip(summary["stages"], after["stages"], strict=True):
        assert (one["tokens"], one["flops"]) == (other["tokens"], other["flops"])
