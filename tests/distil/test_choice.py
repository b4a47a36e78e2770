"""A teacher may be made to think; its student is trained to choose to."""

from __future__ import annotations

from pathlib import Path

import pytest
from sums_task import Make

from rorqual.core.records import RunDir, Thinking
from rorqual.data.chat import chat_format
from rorqual.data.distilled import read_distilled
from rorqual.data.tokenizer import Tokenizer
from rorqual.distil import sample_teacher
from rorqual.model import build
from rorqual.recipes import make_run
from rorqual.train.sources import Materials


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
    batch = trained.source.build(Materials(model, tokenizer, chat, 0, 1)).step(0).batches[0]
    first = batch.targets[batch.loss_mask > 0]
    if forced:
        assert forced[0] in first.tolist()
    assert int((batch.loss_mask > 0).sum()) % len(row.token_ids) == 0
