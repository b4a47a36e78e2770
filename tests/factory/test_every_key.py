"""Every key of the command `rorqual distil` arrives where it belongs in factory.yaml, and nowhere else."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from distil_server import Adder, says
from sums_task import SUMS

from in_process import output_of
from rorqual.cli.verbs.distil import DistilCommand
from rorqual.core.config import read_yaml
from rorqual.factory import FactoryConfig, FilterConfig, RemoteAccess

# key: what is typed, and the value
REMOTE: dict[str, tuple[str, Any]] = {
    "task": (SUMS, SUMS),
    "model": ("adder", "adder"),
    "options": ("{limit: 9}", {"limit": 9}),
    "split": ("dev", "dev"),
    "problems": ("3", 3),
    "samples": ("2", 2),
    "temperature": ("0.5", 0.5),
    "top_p": ("0.75", 0.75),
    "max_tokens": ("33", 33),
    "thinking": ("on", "on"),
    "seed": ("4", 4),
    "seed_bits": ("31", 31),
    "keep": ("graded", "graded"),
    "batch": ("7", 7),
    "decontaminate": (f"{SUMS}, families:add", (SUMS, "families:add")),
    "filters.names": ("[length, duplicate]", ("length", "duplicate")),
    "filters.overlap": ("11", 11),
    "concurrency": ("3", 3),
    "timeout": ("90.5", 90.5),
    "retries": ("4", 4),
    "backoff": ("0.25", 0.25),
    "budget": ("1.5", 1.5),
    "price_in": ("1e-05", 1e-05),
    "price_out": ("2", 2.0),
}
LOCAL: dict[str, tuple[str, Any]] = {
    "task": ("messages", "messages"),
    "data": ("mine-train.jsonl", "mine-train.jsonl"),
    "problems": ("2", 2),
    "max_tokens": ("4", 4),
    "thinking": ("off", "off"),
    "top_k": ("2", 2),
    "keep": ("all", "all"),
    "device": ("cpu:0", "cpu:0"),
    "dtype": ("bfloat16", "bfloat16"),
    "filters.names": ("length", ("length",)),
    "access.retries": ("7", 7),
    "access.timeout": ("8", 8.0),
}

Typed = Callable[..., str]


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Typed:
    """Type a command in an empty folder; what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RORQUAL_API_KEY", raising=False)
    return output_of


def wanted(teacher: str, keys: dict[str, tuple[str, Any]]) -> FactoryConfig:
    tree: dict[str, Any] = {"teacher": teacher, "filters": {}, "access": {}}
    for key, (_, value) in keys.items():
        part, _, name = key.rpartition(".")
        place = tree[part] if part else tree["access"] if key in RemoteAccess.model_fields else tree
        place[name] = value
    return FactoryConfig.model_validate(tree)


def test_no_key_is_forgotten_here() -> None:
    fields = {
        *FactoryConfig.model_fields,
        *RemoteAccess.model_fields,
        *(f"filters.{name}" for name in FilterConfig.model_fields),
    }
    assert {key.removeprefix("access.") for key in {**REMOTE, **LOCAL}} == fields - {"teacher", "filters", "access"}
    assert set(DistilCommand.model_fields) == {"out", "threads", "quiet", "api_key"}
    plain = FactoryConfig(teacher="run", task="")
    for config, keys in ((wanted("http://x/v1", REMOTE), REMOTE), (wanted("run", LOCAL), LOCAL)):
        for key in keys:
            name = key.rpartition(".")[2]
            part = "filters" if key.startswith("filters.") else "access" if name in RemoteAccess.model_fields else ""
            one, other = (getattr(c, part) if part else c for c in (config, plain))
            assert getattr(one, name) != getattr(other, name), f"{key} is typed as its default, which shows nothing"


@pytest.mark.parametrize("where", ["server", "run"])
def test_what_is_typed_is_the_config(server: Adder, run: Path, typed: Typed, tmp_path: Path, where: str) -> None:
    teacher, keys = (server.url, REMOTE) if where == "server" else (str(run), LOCAL)
    lines = [json.dumps({"prompt": f"q{number}", "completion": "a"}) for number in range(30)]
    (tmp_path / "mine-train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    typed("distil", teacher, *(f"{key}={text}" for key, (text, _) in keys.items()), "out=taught", "threads=1")
    assert read_yaml(FactoryConfig, tmp_path / "taught" / "factory.yaml") == wanted(teacher, keys)
    assert len(server.asked) == (6 if where == "server" else 0)


def test_where_it_is_written_and_that_quiet_prints_nothing(server: Adder, typed: Typed, tmp_path: Path) -> None:
    words = ("distil", server.url, "model=adder", f"task={SUMS}", "problems=2")
    assert "Next: rorqual train sft data=runs/distilled/data.parquet" in typed(*words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]
    assert typed(*words, "out=mine", "quiet=true") == ""
    assert (tmp_path / "mine" / "data.parquet").is_file()


def test_the_key_that_is_typed_goes_before_the_environments(
    server: Adder, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("distil", server.url, "model=adder", f"task={SUMS}", "problems=1", "quiet=true")
    monkeypatch.setenv("RORQUAL_API_KEY", "environment")
    typed(*words, "out=a")
    typed(*words, "out=b", "api_key=typed")
    monkeypatch.delenv("RORQUAL_API_KEY")
    typed(*words, "out=c")
    assert server.keys == ["Bearer environment", "Bearer typed", None]


def test_a_device_that_is_not_here_is_refused_before_anything_is_written(
    run: Path, typed: Typed, tmp_path: Path
) -> None:
    told = typed("distil", str(run), f"task={SUMS}", "device=cuda:99", code=2)
    assert "device 'cuda:99' is not available" in told and not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["4", "<think>" + "so it is " * 60 + "</think>4", " "])
def test_the_next_command_works_as_typed(server: Adder, typed: Typed, tmp_path: Path, text: str) -> None:
    """Beside a run that has the default folder already, and for samples longer than a row; where nothing was kept there is none."""
    (tmp_path / "runs" / "sft").mkdir(parents=True)
    (tmp_path / "runs" / "sft" / "mine").write_text("dear", encoding="utf-8")
    server.rule = lambda body, number: says(text)
    words = ("problems=3", "keep=all", "filters.names=[]", "out=my set")
    told = typed("distil", server.url, "model=adder", f"task={SUMS}", *words)
    following = told.partition("Next: ")[2].splitlines()[0]
    if not text.strip():
        assert following.startswith("no sample passed")
        return
    typed(*shlex.split(following)[1:], "steps=1", "size=tiny", "rows=2")
    assert (tmp_path / "my set-student" / "run.yaml").is_file()
