"""`fit` does what a plain loop does, written apart: every tensor after each of five steps, in fp32 and in bf16."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from little import ROW, TASK, Watched, sft_run, weights_of
from plain_loop import AdamW, Muon, Part, Plan, Rows, distil, grpo, logprobs, mtp, next_token, train

from rorqual.core.records import RunDir
from rorqual.model import Decoder
from rorqual.model.load.run_directory import load_run
from rorqual.recipes import make_run
from rorqual.train.batch import TrainBatch
from rorqual.train.loop import fit
from rorqual.train.run import Run
from rorqual.train.sources import StepBatches

STEPS = 5
LIMIT = {"float32": 1e-3, "bfloat16": 1.5e-2}
"""Of the largest change of each tensor since the start. Found: 2.1e-4 and 4.7e-3."""


def plain(batch: TrainBatch, base: Decoder | None) -> Rows:
    """What a source gave, as plain tensors. Log-probabilities of a reference or a teacher are `base`'s own, found here anew."""
    rows = Rows(batch.tokens, batch.targets, batch.loss_mask, batch.segments, batch.positions)
    rows.replay, rows.advantages, rows.sampled = batch.replay, batch.advantages, batch.sampled_logprobs
    if base is not None:
        with torch.no_grad():
            found = logprobs(base.logits(base(rows.tokens, rows.places, segments=rows.documents).hidden))
        rows.teacher, rows.reference = found, found.gather(-1, rows.targets.unsqueeze(-1)).squeeze(-1)
    return rows


def optim(kind: str) -> tuple[dict[str, Any], AdamW | Muon]:
    """The same numbers for both: none of them a default, and a large eps, so that no rounding of a gradient becomes a whole step."""
    adamw = {"lr": 3e-3, "betas": (0.8, 0.97), "eps": 1e-3, "weight_decay": 0.3}
    if kind == "adamw":
        return {"kind": "adamw", **adamw}, AdamW(**adamw)  # type: ignore[arg-type]
    muon = {"lr": 0.03, "momentum": 0.85, "weight_decay": 0.2}
    return {"kind": "muon", **muon, "adamw": {"kind": "adamw", **adamw}}, Muon(**muon, adamw=AdamW(**adamw))  # type: ignore[arg-type]


def hold(
    run: Run, parts: Sequence[Part], out: Path, *, kind: str, dtype: str, ran: int = 1, base: Decoder | None = None
) -> list[StepBatches]:
    """Train both; no tensor may differ, after any step, by more than `LIMIT` of its largest change. `ran`: routers that an update
    runs. What the source gave is returned."""
    settings, numbers = optim(kind)
    clip = 0.2
    settings |= {"clip": clip, "schedule": {"warmup": 2, "decay": 0.5, "final": 0.1}}
    update = {"optim": settings, "dtype": dtype, "micro_batches": 2, "balance": {"gamma": 0.01}, "steps": STEPS}
    if dtype == "bfloat16":
        update["agreement"] = {"mean": 0.05, "most": 1.0, "gap": 0.05}
    run = Run.model_validate(run.model_dump() | update)
    watched = Watched(kind="watched", row=run.source.row, inner=run.source)
    lines: list[dict[str, Any]] = []
    state = fit(
        run.model_copy(update={"source": watched, "save_seconds": 1e9}), RunDir(out), quiet=True, threads=2,
        observe=lines.append,
    )  # fmt: skip
    seen = watched._seen
    assert len(seen) == STEPS and all(work.batches for _, work in seen)
    ours = [weights for weights, _ in seen[1:]] + [weights_of(state.model)]
    start, model = seen[0][0], copy.deepcopy(state.model)
    model.load_state_dict(start)
    plan = Plan(STEPS, numbers, warmup=2, decay=0.5, final=0.1, clip=clip, gamma=0.01, bf16=dtype == "bfloat16")
    most: dict[str, float] = dict.fromkeys(start, 0.0)
    steps = train(model, lambda step: [plain(batch, base) for batch in seen[step][1].batches], parts, plan)
    for number, told in enumerate(steps):
        assert min(told.norms) > clip, "a clip that does not bind shows nothing"
        line, near = lines[number], 1e-3 if dtype == "float32" else 1e-2
        assert (line["step"], line["updates"], line["tokens"]) == (number + 1, len(told.losses), told.tokens)
        assert line["grad_norm"] == pytest.approx(max(told.norms), rel=near)
        assert line["loss"] == pytest.approx(sum(told.losses) / len(told.losses), rel=near, abs=1e-5)
        assert line["load_max_over_mean"] == pytest.approx(told.unevenness)
        wrong = {}
        for name, tensor in model.state_dict().items():
            most[name] = max(most[name], float((tensor - start[name]).abs().max()))
            error = float((ours[number][name] - tensor).abs().max())
            if error > LIMIT[dtype] * most[name]:
                wrong[name] = error / most[name] if most[name] else float("inf")
        assert not wrong, f"step {number + 1}: {wrong}"
        if (
            dtype == "bfloat16"
        ):  # another last bit of a weight is another rounding to bf16: each step begins from the same
            model.load_state_dict(ours[number])
    still = [name for name, change in most.items() if not change]
    assert (not still) if ran == 2 else "mtp.0.block.ffn.router.e_score_correction_bias" in still
    assert all(name.startswith("mtp.") and start[name].dim() == 1 for name in still), "vectors do not decay"
    return [work for _, work in seen]


@pytest.mark.parametrize(("kind", "dtype"), [("adamw", "float32"), ("muon", "float32"), ("adamw", "bfloat16")])
def test_fine_tuning_with_multi_token_prediction(kind: str, dtype: str, tmp_path: Path) -> None:
    hold(sft_run(STEPS), [next_token(), mtp(0.3)], tmp_path / "run", kind=kind, dtype=dtype, ran=2)


@pytest.mark.parametrize(("per", "dtype"), [("token", "float32"), ("sequence", "float32"), ("sequence", "bfloat16")])
def test_reinforcement_with_a_kl_term(per: str, dtype: str, base: Path, tmp_path: Path) -> None:
    values = {
        "task": TASK, "from": str(base), "problems": "4", "samples": "6", "max_tokens": "12", "row": str(ROW), "beta": "0.5",
        "objectives.0.per": per, "objectives.0.clip_low": "0.01", "objectives.0.clip_high": "0.02",
        "source.minibatches": "2" if dtype == "float32" else "1",  # in bf16 rounding decides which tokens of a second are clipped
    }  # fmt: skip
    part = grpo(low=0.01, high=0.02, beta=0.5, temperature=1.0, per_answer=per == "sequence")
    work = hold(
        make_run("grpo", values), [part], tmp_path / "run", kind="adamw", dtype=dtype, base=load_run(RunDir(base))
    )
    every = [
        (batch.advantages[batch.loss_mask > 0] == 0)
        for step in work
        for batch in step.batches
        if batch.advantages is not None
    ]
    assert 0 < float(torch.cat(every).float().mean()) < 1, "answers without an advantage train by the KL term alone"


@pytest.mark.parametrize(
    ("divergence", "dtype"),
    [
        ("forward", "float32"),
        ("reverse", "float32"),
        ("skewed", "float32"),
        ("skewed_reverse", "float32"),
        ("skewed", "bfloat16"),
    ],
)
def test_distillation(divergence: str, dtype: str, base: Path, young: Path, tmp_path: Path) -> None:
    values = {
        "teacher": str(base), "from": str(young), "task": TASK, "problems": "4", "samples": "4", "max_tokens": "12",
        "row": str(ROW), "divergence": divergence, "alpha": "0.3", "objectives.0.temperature": "1.5",
    }  # fmt: skip
    part = distil(divergence, alpha=0.3, temperature=1.5)
    hold(
        make_run("on_policy", values),
        [part],
        tmp_path / "run",
        kind="muon" if dtype == "float32" else "adamw",
        dtype=dtype,
        base=load_run(RunDir(base)),
    )


@pytest.fixture(scope="module")
def young(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has hardly begun."""
    out = tmp_path_factory.mktemp("young") / "run"
    fit(sft_run(10, save_seconds=1e9, seed=5), RunDir(out), quiet=True)
    return out
