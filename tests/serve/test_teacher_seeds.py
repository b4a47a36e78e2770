"""A row of a distilled set names the seed by which our own server gives the same reply again."""

from __future__ import annotations

from pathlib import Path

import pytest

from rorqual.data.distilled import read_distilled
from rorqual.factory import FactoryConfig, sample_teacher
from served import Server


@pytest.mark.parametrize("bits", [64, 31])
def test_a_rows_seed_gives_its_text_again(server: Server, tmp_path: Path, bits: int) -> None:
    config = FactoryConfig.model_validate(
        {"teacher": f"{server.url}/v1", "model": "tiny", "task": "families:add", "problems": 3, "samples": 3}
        | {"max_tokens": 12, "keep": "all", "filters": {"names": ()}, "seed_bits": bits}
    )
    rows = read_distilled(sample_teacher(config, tmp_path / "out", threads=1, quiet=True, api_key=server.key)).rows
    assert len({row.seed for row in rows}) == len(rows) == 9
    assert len({row.messages[-1].content for row in rows if row.number < 2}) > 3, "they differ"
    with server.client as client:
        for row in rows:
            body = {"model": row.model, "messages": [{"role": "user", "content": row.prompt}], "seed": row.seed}
            body |= {"temperature": 1.0, "top_p": 1.0, "max_tokens": 12}
            message = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]
            said = message["content"] or "", message.get("reasoning_content")
            assert said == (row.messages[-1].content, row.messages[-1].reasoning)
