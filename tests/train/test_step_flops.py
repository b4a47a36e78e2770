"""The FLOPs of a step: each token that was trained, sampled, checked or scored, once, by the model's account."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from little import ROW, grpo_run, sft_run

from rorqual.model.account import account
from rorqual.train.loop import step_flops
from rorqual.train.objectives import NextToken
from rorqual.train.run import Run


def cost(run: Run, modules: int) -> Any:
    return account(run.model.model_copy(update={"num_nextn_predict_layers": modules}), context=ROW)


def test_of_training(base: Path) -> None:
    run = sft_run()
    assert step_flops(run, {"tokens": 100}) == 100 * cost(run, 1).training_flops
    alone = run.model_copy(update={"objectives": (NextToken(),)})
    assert step_flops(alone, {"tokens": 100}) == 100 * cost(run, 0).training_flops < step_flops(run, {"tokens": 100})


@pytest.mark.parametrize("name", ["sampled_tokens", "checked_tokens", "reference_tokens"])
def test_of_each_token_that_was_only_read(name: str, base: Path) -> None:
    run = grpo_run(base)
    assert step_flops(run, {"tokens": 100, name: 7}) == 100 * cost(run, 0).training_flops + 7 * cost(run, 0).flops
    assert step_flops(run, {"tokens": 0, name: 7, "teacher_flops": 11}) == 7 * cost(run, 0).flops + 11
