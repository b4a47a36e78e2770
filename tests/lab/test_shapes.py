"""Experiments on a model's shape: what is compared is equal where it says so, and the loss that they compare is the loss."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rorqual.core.records import RunDir
from rorqual.data.chat import chat_format
from rorqual.data.pack import Sample
from rorqual.data.tokenizer import Tokenizer
from rorqual.evals.stats import Interval
from rorqual.evals.verdict import together
from rorqual.lab.equal_budget import EqualBudgetClaim, EqualQuantity, JudgedClaim, ShapeExperiment, judge
from rorqual.lab.finding import Contrast, Finding
from rorqual.lab.job import evaluation
from rorqual.lab.latent_vs_full import LatentVsFull
from rorqual.lab.moe_vs_dense import MoEVsDense
from rorqual.lab.mtp import MultiTokenPrediction
from rorqual.lab.page import page_text
from rorqual.lab.run import concluded, planned
from rorqual.lab.shapes import (
    ARMS,
    CONTEXT,
    DENSE_CLOCK,
    DENSE_FLOPS,
    FIXED,
    FIXED_CLOCK,
    FULL,
    MOE,
    MTP,
    PLAIN_CLOCK,
    ROW,
    ZERO,
    document_losses,
    held_out,
    shape_run,
    solutions,
)
from rorqual.model.account import account
from rorqual.model.decoder import Decoder
from rorqual.model.init import build
from rorqual.model.load.run import load_run

SHAPES: tuple[ShapeExperiment, ...] = (LatentVsFull(), MultiTokenPrediction())  # the third differs in names alone
SHARE = 0.005


def test_what_is_said_to_be_equal_is_equal() -> None:
    dense, moe, full = (account(ARMS[name].model(), context=CONTEXT) for name in (DENSE_FLOPS, MOE, FULL))
    assert dense.flops == pytest.approx(moe.flops, rel=0.03)
    assert dense.total < 0.6 * moe.total, "no mixture to speak of"
    assert full.total == pytest.approx(moe.total, rel=0.03) and full.flops == pytest.approx(moe.flops, rel=0.03)
    assert full.cache_bytes > 2 * moe.cache_bytes
    assert ARMS[DENSE_CLOCK].model() == ARMS[DENSE_FLOPS].model() and ARMS[PLAIN_CLOCK].model() == ARMS[MOE].model()
    assert account(ARMS[MTP].model(), context=CONTEXT).flops == moe.flops, "the main model is the same"


def test_arms_differ_in_nothing_else() -> None:
    """But for steps and learning rates; and at equal steps they read the same rows."""
    base = shape_run(MOE, seed=3, factor=1.0)
    for name in ARMS:
        run = shape_run(name, seed=3, factor=1.0)
        source = base.source.model_copy(update={"options": dict(ARMS[name].options)})
        assert run.source == source and run.seed == base.seed and run.balance == base.balance
        other = run.optim.model_copy(update={"schedule": base.optim.schedule})
        assert other == base.optim
        assert run.optim.schedule.warmup == run.steps // 10
    assert {shape_run(name, 3).steps for name in (MOE, DENSE_FLOPS, FULL, MTP)} == {base.steps}
    apart = {name for name, arm in ARMS.items() if arm.options != ARMS[MOE].options}
    assert apart == {ZERO, FIXED, FIXED_CLOCK} and len({str(ARMS[name].options) for name in apart}) == 1
    assert {arm.factor for arm in ARMS.values()} <= {factor for arm in ARMS.values() for factor in arm.tried}


def slow_loss(model: Decoder, sample: Sample) -> float:
    losses = []
    for at in range(1, len(sample)):
        if sample.mask[at]:
            logits = model.logits(model(torch.tensor([list(sample.ids[:at])])).hidden[0, -1]).double()
            losses.append(float(torch.logsumexp(logits, 0) - logits[sample.ids[at]]))
    return sum(losses) / len(losses)


def test_the_loss_of_a_document_is_a_slow_recomputation() -> None:
    """Each document alone, token by token, without packing or batches."""
    model = build(ARMS[MOE].model(), seed=1)
    chat = chat_format(Tokenizer.byte_level(), "deepseek")
    samples = sorted(solutions(chat, seed=5, count=12, split="test"), key=len)[:4]
    assert len({tuple(s.ids) for s in samples}) == 4
    fast = document_losses(model, samples, row=ROW, rows=2)
    with torch.no_grad():
        slow = [slow_loss(model, sample) for sample in samples]
    assert fast == pytest.approx(slow, abs=1e-5)
    assert document_losses(model, samples[::-1], row=ROW) == pytest.approx(slow[::-1], abs=1e-5)


def test_mtp_is_dropped_for_the_loss() -> None:
    chat = chat_format(Tokenizer.byte_level(), "deepseek")
    samples = solutions(chat, seed=5, count=4, split="dev")
    model = build(ARMS[MTP].model(), seed=1)
    before = document_losses(model, samples, row=ROW)
    with torch.no_grad():
        for parameter in model.mtp.parameters():
            parameter.mul_(3)
    assert document_losses(model, samples, row=ROW) == before


def test_the_dense_rival_is_dense() -> None:
    assert [half.rival for half in MoEVsDense.parts] == [DENSE_FLOPS, DENSE_CLOCK]
    assert all(stage.ffn.kind == "dense" for stage in ARMS[DENSE_FLOPS].model().stages)


def judged(low: float, high: float, favoured: float, rival: float) -> JudgedClaim:
    middle = (low + high) / 2
    seeds = tuple((1.0, 1.0 + middle + off) for off in (-0.002, -0.001, 0.0, 0.001, 0.002))
    loss = Contrast(question="", a=1, b=1 + middle, difference=middle, low=low, high=high, by_seed=seeds, unit="nats")
    return JudgedClaim(
        EqualBudgetClaim("core-seconds", MOE, DENSE_CLOCK), EqualQuantity("core-seconds", favoured, rival), loss, ()
    )


def test_the_rule_refuses_costs_that_are_not_equal() -> None:
    for cheap, dear in ((30.0, 34.4), (34.4, 30.0)):
        fair = judged(0.1, 0.2, cheap, dear)
        assert fair.verdict == "holds" and "no verdict" not in fair.words()
    for cheap, dear in ((30.0, 34.6), (34.6, 30.0)):
        unfair = judged(0.1, 0.2, cheap, dear)
        assert unfair.verdict == "open" and "no verdict" in unfair.words() and "15%" in unfair.words()
    assert not EqualQuantity("active FLOPs", 100, 104).fair and EqualQuantity("active FLOPs", 100, 102).fair
    assert not EqualQuantity("steps", 100, 101).fair and EqualQuantity("steps", 100, 100).fair


def test_a_verdict_needs_both_intervals() -> None:
    """Five seeds of one sign whose Student's interval holds 0; the bootstrap's does not."""
    weak = judged(0.01, 0.1, 1, 1)
    seeds = tuple((1.0, 1.0 + d) for d in (0.0, 0.03, 0.04, 0.075, 0.116))
    weak = replace(weak, loss=weak.loss.model_copy(update={"by_seed": seeds}))
    assert weak.verdict == "open" and "Which is better is open." in weak.words()
    assert weak.loss.ends.low < 0 < 0.1 < weak.loss.ends.high
    close = tuple((1.0, 1.05 + d / 100) for _, d in seeds)
    strong = replace(weak, loss=weak.loss.model_copy(update={"by_seed": close}))
    assert strong.verdict == "holds" and strong.loss.ends == Interval(0.01, 0.1, 0.99)
    wide = replace(strong, loss=strong.loss.model_copy(update={"low": -0.01}))
    assert wide.verdict == "open", "Student's t alone is not enough either"


def test_one_seed_gives_no_verdict() -> None:
    one = judged(0.1, 0.2, 1, 1)
    assert replace(one, loss=one.loss.model_copy(update={"by_seed": ((1.0, 1.15),)})).verdict == "open"


def test_a_claim_holds_where_all_its_halves_do() -> None:
    assert judged(-0.2, -0.1, 1, 1).verdict == "does not hold" and judged(-0.1, 0.1, 1, 1).verdict == "open"
    assert together(["holds", "holds"]) == "holds" and together(["holds", "open"]) == "open"
    assert together(["open", "does not hold"]) == "does not hold"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of the three, a little of everything, two seeds, done in this process."""
    out = tmp_path_factory.mktemp("lab")
    for experiment in SHAPES:
        plan = replace(planned(experiment, out, (3, 4), 0.0), share=SHARE, jobs={})
        for (seed, _), job in plan.jobs.items():
            job.finish(plan.place(seed))
        finding = concluded(plan, f"rorqual lab {experiment.name}")
        (out / f"{experiment.name}.json").write_text(json.dumps(finding.model_dump(mode="json")), encoding="utf-8")
    return out


@pytest.mark.parametrize("experiment", SHAPES, ids=lambda e: e.name)
def test_end_to_end(out: Path, experiment: ShapeExperiment) -> None:
    finding = Finding.load(out / f"{experiment.name}.json")
    assert finding.seeds == (3, 4) and all(len(c.by_seed) == 2 for c in finding.contrasts)
    assert set(finding.costs) == {f"{arm}{job}" for arm in experiment.arms for job in ("", "-loss", "-on")}
    assert len(finding.words) >= len(experiment.parts)
    for half, words in zip(experiment.parts, finding.words, strict=False):
        again = judge(half, {seed: out / f"seed-{seed}" for seed in finding.seeds})
        assert f"{again.loss.a:.4f}" in words and f"{again.loss.b:.4f}" in words
    assert len(finding.verdicts) == 1
    kept = finding.verdicts[0]
    for arm in experiment.arms:
        for seed in finding.seeds:
            right = kept.values(f"{arm}-on", seed)
            assert np.mean(right) == evaluation(out / f"seed-{seed}", f"{arm}-on").rows("all")[0].accuracy
    page = page_text(finding)
    assert finding.words[0].split(". ")[0] in page and page.count("<img") >= 2


def test_what_is_shared_is_trained_once(out: Path) -> None:
    """Nothing was added to the baseline's metrics by the second experiment."""
    steps = shape_run(MOE, 3, SHARE).steps
    assert [r["step"] for r in RunDir(out / "seed-3" / MOE).metrics()] == list(range(1, steps + 1))


def test_all_arms_of_a_seed_are_asked_the_same(out: Path) -> None:
    place = out / "seed-4"
    model = load_run(RunDir(place / MOE))
    chat = chat_format(Tokenizer.byte_level(), "deepseek")
    again = document_losses(model, solutions(chat, 4, 6, "test"), row=ROW)
    assert held_out(place, name=MOE, seed=4, count=6) == again
