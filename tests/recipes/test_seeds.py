"""The result over several quickstarts: both intervals, the verdict's rule, student and teacher alike, every problem's verdict."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rorqual.evals.evaluation import Evaluation
from rorqual.evals.stats import t_interval
from rorqual.tasks.task import Verdict

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "seeds.py"
OWN = "right, own choice: before GRPO against after"


@pytest.fixture(scope="module")
def seeds() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_seeds", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, make_folder: Any, add_students: Any) -> list[Path]:
    """Five quickstarts; in each a few problems more are right after GRPO than in the one before."""
    first = add_students(make_folder(tmp_path_factory.mktemp("seeds") / "seed-0", 40), 40)
    made = [first]
    for seed in range(1, 5):
        folder = first.parent / f"seed-{seed}"
        shutil.copytree(first, folder)
        summary = json.loads((folder / "summary.json").read_bytes())
        (folder / "summary.json").write_text(json.dumps(summary | {"seed": seed}), encoding="utf-8")
        file = folder / "evals" / "after-auto.json"
        one = Evaluation.load(file)
        samples = tuple(
            s.model_copy(update={"verdict": Verdict.RIGHT}) if i % 60 < seed else s for i, s in enumerate(one.samples)
        )
        one.model_copy(update={"samples": samples}).save(file)
        made.append(folder)
    return made


@pytest.fixture(scope="module")
def found(seeds: ModuleType, folders: list[Path]) -> dict[str, Any]:
    """The result of all five, never written to."""
    result: dict[str, Any] = seeds.result(folders)
    return result


def test_five_seeds_give_a_verdict_and_four_do_not(
    seeds: ModuleType, folders: list[Path], found: dict[str, Any]
) -> None:
    five = found["questions"][OWN]["all"][0]
    four, one = (seeds.ask(folders[:count], *seeds.QUESTIONS[OWN], "all")[0] for count in (4, 1))
    assert five["verdict"] == "holds" and four["verdict"] == "open"
    differences = [after - before for before, after in five["by_seed"]]
    student = t_interval(differences, 0.99)
    assert five["t_interval_99"] == pytest.approx([student.low, student.high], abs=2e-4)
    assert five["interval_99"][0] > 0 and five["interval_99"] != five["t_interval_99"]
    assert one["t_interval_99"] is None
