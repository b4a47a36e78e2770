"""Experiments on a model's shape: what is compared is equal where it says so, and the loss that they compare is the loss."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rorqual.core.records import RunDir
from rorqual.lab.experiment_run import conclude_finding, plan_within_budget
from rorqual.lab.finding import Finding
from rorqual.lab.job import load_value
from rorqual.lab.page import page_text
from rorqual.lab.shape_experiment import LATENT_VS_FULL, MULTI_TOKEN_PREDICTION, ShapeExperiment
from rorqual.lab.shapes import ARMS, CONTEXT, DENSE_CLOCK, DENSE_FLOPS, FULL, MOE, MTP, PLAIN_CLOCK, shape_run
from rorqual.model.account import account
from rorqual.model.load.run_directory import read_model_config

SHAPES: tuple[ShapeExperiment, ...] = (LATENT_VS_FULL, MULTI_TOKEN_PREDICTION)  # the third differs in names alone
SHARE = 0.005


def test_what_is_said_to_be_equal_is_equal() -> None:
    dense, moe, full = (account(ARMS[name].model(), context=CONTEXT) for name in (DENSE_FLOPS, MOE, FULL))
    assert dense.flops == pytest.approx(moe.flops, rel=0.03)
    assert dense.total < 0.6 * moe.total, "no mixture to speak of"
    assert full.total == pytest.approx(moe.total, rel=0.03) and full.flops == pytest.approx(moe.flops, rel=0.03)
    assert full.cache_bytes > 2 * moe.cache_bytes
    assert ARMS[DENSE_CLOCK].model() == ARMS[DENSE_FLOPS].model() and ARMS[PLAIN_CLOCK].model() == ARMS[MOE].model()
    assert account(ARMS[MTP].model(), context=CONTEXT).flops == moe.flops, "the main model is the same"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of the three, a little of everything, two seeds, done in this process."""
    out = tmp_path_factory.mktemp("lab")
    for experiment in SHAPES:
        plan = replace(plan_within_budget(experiment, out, (3, 4), 0.0), share=SHARE, jobs={})
        for (seed, _), job in plan.jobs.items():
            job.finish(plan.seed_folder(seed))
        finding = conclude_finding(plan, f"rorqual lab {experiment.name}")
        (out / f"{experiment.name}.json").write_text(json.dumps(finding.model_dump(mode="json")), encoding="utf-8")
    return out


@pytest.mark.parametrize("experiment", SHAPES, ids=lambda e: e.name)
def test_end_to_end(out: Path, experiment: ShapeExperiment) -> None:
    finding = Finding.load(out / f"{experiment.name}.json")
    assert finding.seeds == (3, 4) and all(len(c.by_seed) == 2 for c in finding.contrasts)
    assert set(finding.costs) == {f"{arm}{job}" for arm in experiment.arms for job in ("", "-loss", "-on")}
    loss = finding.contrasts[0]
    for side, arm in enumerate(experiment.parts[0][1:]):
        means = [np.mean(load_value(out / f"seed-{seed}", f"{arm}-loss")) for seed in finding.seeds]
        assert [seed[side] for seed in loss.by_seed] == pytest.approx(means)
    rows = {
        table.title: dict(zip(experiment.arms, table.rows, strict=True))
        for table in finding.tables
        if len(table.rows) == len(experiment.arms)
    }
    for arm in experiment.arms:
        size = account(read_model_config(RunDir(out / "seed-3" / arm)), context=CONTEXT)
        assert (
            rows["parameters"][arm][1] == f"{size.total:,}"
            and rows["cache bytes per token"][arm][1] == f"{size.cache_bytes:,}"
        )
        assert (
            rows["steps"][arm][2] == str(shape_run(arm, 3, SHARE).steps)
            and rows["active FLOPs"][arm][1] == f"{size.flops:,}"
        )
    for arm in experiment.arms:
        weights = [RunDir(out / f"seed-{seed}" / arm).checkpoint() / "model.safetensors" for seed in finding.seeds]
        digests = [hashlib.sha256(file.read_bytes()).hexdigest()[:12] for file in weights]
        assert finding.runs[arm] == tuple(
            f"seed-{seed}/{arm}@{d}" for seed, d in zip(finding.seeds, digests, strict=True)
        )
    others = {"latent-vs-full", "moe-vs-dense", "mtp"} - {experiment.name}
    assert {name: runs for name, runs in finding.shared_runs.items() if MOE in runs}.keys() == others
    assert experiment.judge_again(finding.model_copy(update={"contrasts": (), "tables": (), "words": ()})) == finding
    page = page_text(finding)
    assert finding.headline[:40] in page and f"Shares runs with {', '.join(finding.shared_runs)}." in page


def test_what_is_shared_is_trained_once(out: Path) -> None:
    """Nothing was added to the baseline's metrics by the second experiment."""
    steps = shape_run(MOE, 3, SHARE).steps
    assert [r["step"] for r in RunDir(out / "seed-3" / MOE).metrics()] == list(range(1, steps + 1))
