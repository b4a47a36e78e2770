"""The Python of the how-to page, as it stands but for the names of things: from a job of the old server to an answer of the new one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from openai.types.fine_tuning import FineTuningJob
from tuned_server import TuneServer, wait

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "openai-fine-tuning.md"


def blocks(language: str) -> list[str]:
    """The page's code in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_pages_python_moves_a_model(
    tuner: TuneServer,
    tuned: FineTuningJob,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Our own server plays OpenAI's, too."""
    export, train, call = blocks("python")
    address = f"{tuner.server.url}/v1"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_BASE_URL", address)
    monkeypatch.setenv("OPENAI_API_KEY", tuner.client.api_key)
    names: dict[str, Any] = {}
    exec(export.replace("ftjob-...", tuned.id), names)
    for name, file in (("train", tuned.training_file), ("validation", tuned.validation_file or "")):
        assert Path(f"{name}.jsonl").read_bytes() == tuner.client.files.content(file).content
    texts = (Path(f"{name}.jsonl").read_text(encoding="utf-8") for name in ("validation", "old"))
    rows, kept = ([json.loads(line) for line in text.splitlines()] for text in texts)
    assert [one["expected"] for one in kept] == [row["messages"][-1]["content"] for row in rows]
    for row, one in zip(rows, kept, strict=True):
        *prompt, answer = one["messages"]
        assert prompt == row["messages"][:-1] and answer["role"] == "assistant"
        asked = {"messages": prompt, "temperature": 0}
        reply = tuner.client.chat.completions.create(model=tuned.fine_tuned_model or "", **asked)  # type: ignore[call-overload]
        assert reply.choices[0].message.content == answer["content"]
    exec(train.replace("http://127.0.0.1:8000/v1", address).replace("rq-...", tuner.client.api_key), names)
    assert "Created fine-tuning job" in capsys.readouterr().out
    assert wait(tuner.client, names["job"].id).status == "succeeded"
    exec(call.replace('"content": "..."', '"content": "1+2"'), names)
    assert names["reply"].model == names["job"].fine_tuned_model and names["reply"].usage.completion_tokens
