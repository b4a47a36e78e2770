"""A teacher may be made to think; its student is trained to choose to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sums_task import Make

from rorqual.core.records import RunDir, Thinking
from rorqual.data.chat import chat_format
from rorqual.data.distilled import read_distilled
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Engine
from rorqual.factory import sample_teacher
from rorqual.model import build
from rorqual.recipes import make_run
from rorqual.train.sources import SourceInputs


@pytest.mark.parametrize("thinking", ["auto", "on", "off"])
def test_the_choice_to_think_is_the_replys_first_token_and_is_trained(
    local: Make, run: Path, tmp_path: Path, thinking: Thinking
) -> None:
    data = sample_teacher(
        local(thinking=thinking, top_k=3, max_tokens=4, filters={"names": []}), tmp_path, threads=1, quiet=True
    )
    tokenizer = Tokenizer.load(RunDir(run).tokenizer_file)
    chat = chat_format(tokenizer, "deepseek")
    row = read_distilled(data).rows[0]
    free = tuple(chat.prompt(row.messages[:-1], "auto"))
    assert tuple(row.prompt_ids) == free, "a choice that stands in the prompt is never learned"
    forced = chat.prompt(row.messages[:-1], thinking)[len(free) :]
    assert list(row.token_ids[: len(forced)]) == forced and len(row.token_ids) == len(forced) + 4
    assert len(row.top_ids) == len(row.token_ids)
    trained = make_run("distil", {"data": str(data), "size": "tiny", "rows": "2"})
    model = build(trained.model, seed=0)
    batch = trained.source.build(SourceInputs(model, tokenizer, chat, 0, 1)).step(0).batches[0]
    first = batch.targets[batch.loss_mask > 0]
    if forced:
        assert forced[0] in first.tolist()
    assert int((batch.loss_mask > 0).sum()) % len(row.token_ids) == 0


@pytest.mark.parametrize("thinking", ["auto", "on", "off"])
@pytest.mark.parametrize("k", [1, 4])
def test_what_is_stored_is_the_policy_that_the_teacher_had(
    local: Make, run: Path, tmp_path: Path, thinking: Thinking, k: int
) -> None:
    """Row by row through the plain model: where a token was forced it has all the mass, elsewhere the model's own softmax stands."""
    config = local(thinking=thinking, top_k=k, max_tokens=4, filters={"names": []}, problems=3)
    rows = read_distilled(sample_teacher(config, tmp_path, threads=1, quiet=True)).rows
    engine = Engine(run, backend="torch-invariant")
    for row in rows:
        request = row.messages[:-1]
        forced = len(engine.chat.prompt(request, thinking)) - len(engine.chat.prompt(request, "auto"))
        assert (forced > 0) == (thinking != "auto")
        ids = torch.tensor([[*row.prompt_ids, *row.token_ids]])
        with torch.no_grad():
            plain = engine.model.logits(engine.model(ids).hidden)[0].log_softmax(-1)
        for place, token in enumerate(row.token_ids):
            own = plain[len(row.prompt_ids) + place - 1]
            if place < forced:
                assert row.top_ids[place, 0] == token and row.top_logprobs[place, 0] == pytest.approx(0, abs=1e-5)
                assert (row.top_logprobs[place, 1:] < -15).all()
                assert set(row.top_ids[place, 1:].tolist()) <= set(own.topk(k + 1).indices.tolist()) - {token}
            else:
                assert row.top_ids[place].tolist() == own.topk(k).indices.tolist()
                assert np.allclose(row.top_logprobs[place], own.topk(k).values, atol=1e-4)
        assert all(len(set(some)) == k for some in row.top_ids.tolist())
