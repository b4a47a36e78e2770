"""What an extra brings is imported where it is used, and its absence is said with the command that installs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import typed

EXTRAS = ("gguf", "math_verify", "fastapi", "tensorboard")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was trained and measured without any extra."""
    folder = tmp_path_factory.mktemp("bare")
    for words in (
        ["train", "sft", "task=families:add", "size=tiny", "steps=1", "rows=2", "out=run"],
        ["eval", "run", "task=families:add", "count=2", "max_tokens=4"],
    ):
        done = typed(folder, *words, without=EXTRAS)
        assert done.code == 0, done.err
    return folder


@pytest.mark.parametrize(
    ("words", "missing", "extra"),
    [
        (["export", "run", "run.gguf", "format=gguf"], "gguf", "gguf"),
        (["import", "run.gguf", "back"], "gguf", "gguf"),
        (["eval", "run", "task=math500", "count=1"], "math_verify", "math"),
        (["serve", "run"], "fastapi", "serve"),
        (["train", "sft", "task=families:add", "out=back", "track=tensorboard"], "tensorboard", "tensorboard"),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else "",
)
def test_what_needs_an_extra_says_which(trained: Path, words: list[str], missing: str, extra: str) -> None:
    done = typed(trained, *words, without=EXTRAS)
    assert done.code == 2 and f"{missing} is not installed" in done.err
    assert f'pip install "rorqual[{extra}]"' in " ".join(done.err.split())
    assert not (trained / "run.gguf").exists() and not (trained / "back").exists()
