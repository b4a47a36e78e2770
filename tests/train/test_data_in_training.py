"""What training does with documents, masks and numbers that are not numbers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from little import ROW, TASK, documents, loud, packed, sft_run, tiny, tokenizer, train_with, update_of

from rorqual.core.errors import DataError, NumericsError
from rorqual.core.records import RunDir
from rorqual.data.chat import chat_format
from rorqual.data.pack import TrainingSample, pack_rows
from rorqual.model import Decoder
from rorqual.recipes.sft import sft
from rorqual.tasks.find import load_task
from rorqual.train.batch import TrainBatch
from rorqual.train.checkpoint import save_checkpoint
from rorqual.train.loop import fit
from rorqual.train.objectives import MultiToken, NextToken, Objective
from rorqual.train.sources import Source, StepBatches
from rorqual.train.sources.worked import worked_sample

BOTH: tuple[Objective, ...] = (NextToken(), MultiToken())


def test_a_batch_without_a_trained_token_is_no_nan() -> None:
    model = loud(tiny())
    silent = [TrainingSample(s.ids, [False] * len(s)) for s in documents(13, count=3)]
    update = update_of(model, BOTH, packed(silent))
    assert update.loss == 0.0
    assert all(bool((g == 0).all()) for g in update.grads)


@torch.no_grad()
def poisoned(source: Source, model: Decoder, step: int) -> StepBatches:
    """From step 3 on a weight is not a number."""
    if step == 2:
        model.layers[1].ffn.experts.down_proj[3, 2, 1] = math.nan
    return source.step(step)


def test_a_nan_stops_the_run_and_the_older_checkpoint_is_still_there(tmp_path: Path) -> None:
    out = RunDir(tmp_path / "run")
    with pytest.raises(NumericsError, match="nan"):
        train_with(sft_run(5), out, poisoned)
    assert out.steps() == [1, 2] and out.newest_complete_step()[0] == 2
    straight = RunDir(tmp_path / "straight")
    fit(sft_run(5), straight, quiet=True)
    fit(sft_run(5), out, quiet=True)
    assert (out.checkpoint() / "model.safetensors").read_bytes() == (
        straight.checkpoint() / "model.safetensors"
    ).read_bytes()


def test_weights_that_are_not_finite_are_not_kept(tmp_path: Path) -> None:
    """An update may do it after a loss that was finite: the checkpoint would be the newest, and of no use."""
    out, model = RunDir(tmp_path / "run"), loud(tiny())
    optimizer = sft_run().optim.build(dict(model.named_parameters()))
    save_checkpoint(out, 1, model, optimizer)
    with torch.no_grad():
        model.lm_head.weight[2, 3] = math.inf
    with pytest.raises(NumericsError, match=r"after step 2, 1 tensors contain NaN or infinity, such as lm_head.weight"):
        save_checkpoint(out, 2, model, optimizer)
    assert out.steps() == [1] and out.incomplete_reason(1) is None


@pytest.mark.parametrize("think", [True, False])
def test_the_end_of_the_turn_is_trained(think: bool) -> None:
    ids = tokenizer()
    problem = next(iter(load_task(TASK).problems("train", 0)))
    sample = worked_sample(problem, chat_format(ids, "deepseek"), think=think)
    batch = TrainBatch.from_packed(pack_rows([sample], [[0]], ROW).batch)
    trained = batch.targets[0][batch.loss_mask[0] > 0].tolist()
    assert trained[-1] == ids.special_id("<｜end▁of▁sentence｜>"), "a model that never learns to stop"
    assert trained[0] == (ids.special_id("<think>") if think else ids.special_id("</think>")), (
        "the choice to think is the model's own"
    )
    assert trained.count(ids.special_id("</think>")) == 1


def test_a_set_of_nothing_to_train_on_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    file = tmp_path / "silent.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "hello"}]}\n', "utf-8")
    with pytest.raises(DataError, match="nothing to train on"):
        fit(sft(data=str(file), size="tiny", rows=2, row=32, steps=1), RunDir(tmp_path / "run"), quiet=True)
    assert not (tmp_path / "run").exists()
