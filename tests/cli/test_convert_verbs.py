"""`rorqual import` and `rorqual export`, as they are typed."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from commands import refused, typed
from in_process import output_of
from rorqual.cli.progress import ByteProgressBar


def test_there_and_back_and_the_model_answers_the_same(place: Path) -> None:
    for words in (
        ("export", "run", "out/hf"),
        ("import", "out/hf", "again"),
        ("export", "again", "out/twice", "dtype=keep", "format=hf"),
        ("export", "run", "out/run.gguf", "format=gguf"),
        ("import", "out/run.gguf", "third", "quiet=true"),
    ):
        done = typed(place, *words)
        assert done.code == 0, done.err
        assert done.err.startswith(words[0]) or "quiet=true" in words
        assert bool(done.out) == ("quiet=true" not in words)
    for name in (
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    ):
        assert (place / "out/hf" / name).read_bytes() == (place / "out/twice" / name).read_bytes()
    said = {run: typed(place, "chat", run, "max_tokens=8", stdin="add 1 2\n") for run in ("run", "again", "third")}
    assert {done.code for done in said.values()} == {0}, said
    assert len({done.out for done in said.values()}) == 1


@dataclass(frozen=True)
class Case:
    name: str
    words: tuple[str, ...]
    says: tuple[str, ...]


CASES = [
    Case("no such folder", ("import", "nowhere", "new"), ("nowhere", "no such folder")),
    Case("a run for a checkpoint", ("import", "run", "new"), ("run: this folder is already a run", "rorqual chat")),
    Case("no such file", ("import", "nowhere.gguf", "new"), ("nowhere.gguf",)),
    Case("a key for the folder", ("import", "hf", "out=new"), ("RUN is 'out=new'", "rorqual import SRC RUN")),
    Case("a target that exists", ("import", "hf", "run"), ("run: the target already exists", "Choose a new folder")),
    Case("an export to what exists", ("export", "run", "hf"), ("hf: the target already exists",)),
    Case("not a run", ("export", "hf", "new"), ("hf: not a run directory",)),
    Case("no such type", ("import", "hf", "new", "dtype=int4"), ("'dtype'", "'int4'", "bfloat16")),
    Case("no such type of hf", ("export", "run", "new", "dtype=q4_0"), ("format=hf does not support dtype=q4_0", "bfloat16, float16, fp8")),
    Case("no such type of gguf", ("export", "run", "new", "format=gguf", "dtype=fp8"), ("format=gguf does not support dtype=fp8", "q8_0")),
    Case("a mistyped key", ("export", "run", "new", "fromat=gguf"), ("'fromat'", "'format'")),
    Case("a shard of nothing", ("export", "run", "new", "shard_gb=-1"), ("'shard_gb'", "greater than 0")),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_refused_by_name_and_nothing_changed(case: Case, place: Path, exported: Path) -> None:
    shutil.copytree(exported, place / "hf")
    refused(place, *case.words, says=case.says)


@pytest.fixture(scope="module")
def exported(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "hf"
    output_of("export", str(tiny), str(out), "quiet=true")
    return out


def test_code_in_a_checkpoint_is_mentioned(place: Path, exported: Path) -> None:
    shutil.copytree(exported, place / "hf")
    (place / "hf" / "modeling_mine.py").write_text("raise SystemExit(7)", encoding="utf-8")
    done = typed(place, "import", "hf", "good")
    assert done.code == 0, done.err
    assert "modeling_mine.py) was not run: Rorqual uses its own deepseek_v3" in done.err


def test_progress_says_how_much_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ByteProgressBar("import", quiet=False)
    for done in range(0, 9_000_001, 1_000_000):
        progress(done, 9_000_000, "layers.1.ffn.gate")
    assert re.fullmatch(r"(import  \d+/9  layers\.1\.ffn\.gate  [\d.]+ MB/s  left [\d:?]+\n)+", capsys.readouterr().err)
    ByteProgressBar("import", quiet=True)(1, 1, "x")
    assert capsys.readouterr().err == ""
