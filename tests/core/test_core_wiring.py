"""Configurations at their bounds, run directories with torn checkpoints, files that appear whole, and what is told of progress and cost."""

from __future__ import annotations

import io
import json
import os
import threading
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import SerializeAsAny

from rorqual.core import config as core
from rorqual.core.config import Config, KindConfig, kinds, one_of, parse_config, parse_scalar, read_yaml, to_yaml
from rorqual.core.errors import CheckpointError, ConfigError, RorqualError, suggest_name
from rorqual.core.journal import read_lines
from rorqual.core.progress import Progress, clock_text
from rorqual.core.records import RunDir, write_atomic, write_json

# ---- configurations


class Animal(KindConfig):
    legs: core.Count = 4


class Cat(Animal):
    kind: Literal["cat"] = "cat"


class Bird(Animal):
    kind: Literal["bird"] = "bird"
    wings: core.Natural


class Parrot(Bird):
    kind: Literal["parrot"] = "parrot"  # type: ignore[assignment]
    words: tuple[str, ...] = ()


class House(Config):
    rooms: core.Count = 1
    pets: tuple[Annotated[SerializeAsAny[Animal], one_of(Animal)], ...] = ()
    owner: Annotated[SerializeAsAny[Animal], one_of(Animal)] = Cat()


BOUNDS: list[tuple[str, list[Any], list[Any]]] = [
    ("Count", [1, 2**31 - 1], [0, 2**31, True, 1.5]),
    ("Natural", [0, 2**31 - 1], [-1, 2**31, False]),
    ("Rows", [1, 2**16], [0, 2**16 + 1]),
    ("RowLength", [8, 2**22], [7, 2**22 + 1]),
    ("Seed", [0, 2**63 - 1], [-1, 2**63]),
    ("Bytes", [0, 2**63 - 1], [-1, 2**63]),
    ("Positive", [1e-300, 1e37], [0, 1.1e37, float("inf"), float("nan"), True]),
    ("NonNegative", [0, 1e37], [-1e-300, 1.1e37, float("nan")]),
    ("Share", [0, 1], [-1e-9, 1.0000001, float("nan"), True]),
    ("Part", [1e-9, 1], [0, 1.0000001, True]),
    ("Momentum", [0, 0.9999999], [-1e-9, 1]),
    ("Temperature", [1e-3, 1e3], [0.9e-3, 1.1e3]),
]


@pytest.mark.parametrize(("name", "good", "bad"), BOUNDS, ids=[name for name, _, _ in BOUNDS])
def test_a_number_keeps_its_bounds(name: str, good: list[Any], bad: list[Any]) -> None:
    """A truth value is no number, though Python counts with it."""
    kind = type("One", (Config,), {"__annotations__": {"value": getattr(core, name)}, "__module__": __name__})
    for value in good:
        assert parse_config(kind, {"value": value}, where="there").model_dump() == {"value": value}
    for value in bad:
        with pytest.raises(ConfigError, match="there: key 'value'"):
            parse_config(kind, {"value": value}, where="there")


def test_a_kind_is_known_at_any_depth_and_survives_yaml(tmp_path: Path) -> None:
    assert kinds(Animal) == {"cat": Cat, "bird": Bird, "parrot": Parrot}
    house = House(rooms=3, pets=(Cat(legs=3), Parrot(wings=2, words=("grüß", "yes"))), owner=Bird(wings=1))
    (tmp_path / "house.yaml").write_text(to_yaml(house), encoding="utf-8")
    assert read_yaml(House, tmp_path / "house.yaml") == house
    assert "grüß" in to_yaml(house) and to_yaml(house).startswith("rooms:")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"romos": 1}, "unknown key 'romos'. Did you mean 'rooms'"),
        ({"pets": [{"kind": "bird", "wings": 2, "wigns": 2}]}, "wigns"),
        ({"pets": [{"kind": "brd"}]}, "Did you mean 'bird'"),
        ({"pets": [{"legs": 2}]}, "unknown kind None"),
        ({"owner": {"kind": "bird"}}, "wings"),
        ({"owner": {"kind": "cat", "legs": 0}}, "legs"),
        ({"rooms": 0, "pets": 3}, "rooms.*pets"),
        ([1], "whole"),
    ],
    ids=["field", "of a kind", "kind", "no kind", "missing", "bound", "two", "list"],
)
def test_an_error_names_the_place_and_the_key(data: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_config(House, data, where="there")
    assert str(caught.value).startswith("there: ")


@pytest.mark.parametrize(
    ("text", "message"), [(None, "no such file"), (b"a: [", "not YAML"), (b"\xff", "not YAML"), (b"rooms: 0", "rooms")]
)
def test_a_file_that_cannot_be_read_is_named(text: bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "house.yaml"
    if text is not None:
        file.write_bytes(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(House, file)
    assert caught.value.where == str(file)


def test_values_from_a_shell() -> None:
    said = {
        "3": 3, "3e-4": 3e-4, "1e5": 1e5, " on ": "on", "OFF": "OFF", "true": True, "null": None, "[1, a]": [1, "a"], "nan": "nan",
        "inf": "inf", "a: [": "a: [", "v3": "v3", "2026.1.2": "2026.1.2", "": None, "'3'": 3.0,
    }  # fmt: skip
    assert {text: parse_scalar(text) for text in said} == said


def test_a_hint_is_the_nearest_name_or_all() -> None:
    assert suggest_name("lrr", ["seed", "lr"]) == "Did you mean 'lr'?"
    assert suggest_name("xyzzy", ["seed", "lr"]) == "Known: lr, seed." and suggest_name("a", []) == ""


# ---- run directories


def checkpoint(run: RunDir, step: int, *, torn: str = "") -> None:
    folder = run.step_dir(step)
    folder.mkdir(parents=True)
    (folder / "a").write_bytes(b"12345")
    (folder / "b").write_bytes(b"")
    sizes = {"a": 5, "b": 0}
    if torn == "size":
        sizes["a"] = 6
    if torn == "last":
        (folder / "b").unlink()
    if torn != "unfinished":
        (folder / "whole.json").write_text("{" if torn == "json" else json.dumps(sizes), encoding="utf-8")


def test_the_newest_whole_checkpoint_is_found_and_torn_ones_are_told(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    assert run.steps() == [] and run.newest_complete_step() == (None, [])
    for step, torn in ((5, ""), (20, ""), (300, "size"), (1_000_000, "unfinished"), (2_000_000, "json"), (999, "last")):
        checkpoint(run, step, torn=torn)
    (run.path / "step-000777").write_bytes(b"a file")
    (run.path / "step-00888").mkdir()
    (run.path / "step-000021.part").mkdir()
    assert run.steps() == [5, 20, 300, 999, 1_000_000, 2_000_000]
    step, skipped = run.newest_complete_step()
    assert step == 20 and len(skipped) == 4
    assert [line.split(":")[0].rpartition("/")[2] for line in skipped] == [
        "step-2000000", "step-1000000", "step-000999", "step-000300",
    ]  # fmt: skip
    assert (
        "a is not 6 bytes long" in skipped[3]
        and "b is not 0 bytes long" in skipped[2]
        and run.incomplete_reason(20) is None
    )
    with pytest.raises(CheckpointError, match=r"no run\.yaml"):
        run.checkpoint()
    run.config_file.write_text("model: 1\n", encoding="utf-8")
    assert run.checkpoint() == run.path / "step-000020" and run.config() == {"model": 1}


def test_a_run_without_a_whole_checkpoint_says_why(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    checkpoint(run, 1, torn="size")
    run.config_file.write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"no complete checkpoint; .*a is not 6 bytes long"):
        run.checkpoint()
    for text, message in ((b"- 1", "not a mapping"), (b"a: [", "not YAML"), (b"\xff", "not YAML")):
        run.config_file.write_bytes(text)
        with pytest.raises(CheckpointError, match=message) as caught:
            run.config()
        assert caught.value.where == str(run.config_file)


def test_lines_of_a_file_that_is_being_written(tmp_path: Path) -> None:
    """The first and the last are read; a torn one is left out."""
    run = RunDir(tmp_path)
    assert list(run.metrics()) == list(run.rollouts()) == []
    run.metrics_file.write_bytes(b'{"step": 1}\n{"st\n{"step": 2}\n{"step": 3}\n{"ste')
    assert [line["step"] for line in run.metrics()] == [1, 2, 3]
    run.rollouts_file.write_bytes(b'{"a": 1}')
    assert list(run.rollouts()) == [{"a": 1}] == list(read_lines(run.rollouts_file))


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "new" / "file.json"
    write_json(file, {"b": 1, "a": "grüß"})
    assert file.read_text(encoding="utf-8") == '{\n "a": "grüß",\n "b": 1\n}\n'
    write_atomic(file, b"more")
    assert file.read_bytes() == b"more" and os.listdir(file.parent) == ["file.json"]
    with pytest.raises(RorqualError, match="cannot write") as caught:
        write_atomic(file / "below", b"")
    assert caught.value.where == str(file / "below") and file.read_bytes() == b"more"
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(RorqualError, match="cannot write"):
        write_atomic(tmp_path / "folder", b"")
    assert sorted(os.listdir(tmp_path)) == ["folder", "new"]


# ---- progress and cost


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (75.2, "1:15"), (3599, "59:59"), (3600, "1:00:00"), (36_125, "10:02:05"), (-3, "0:00")],
)  # fmt: skip
def test_a_duration_is_shown_as_a_clock(seconds: float, shown: str) -> None:
    assert clock_text(seconds) == shown


def test_progress_in_a_pipe_is_lines_and_the_last_is_always_shown() -> None:
    stream = io.StringIO()
    progress = Progress("train", 10, start=4, stream=stream, every=1e9)
    progress.update(5, "loss 1")
    assert stream.getvalue() == ""
    progress.say("saved")
    progress.update(10, "loss 0.5")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "saved" and len(lines) == 2
    assert lines[1].startswith("train  10/10  loss 0.5  ") and lines[1].endswith(" step/s  left 0:00")
    often = io.StringIO()
    shown = Progress("eval", 3, unit="problem", stream=often, every=0.0)
    for done in (1, 2, 3):
        shown.update(done)
    assert [line.split()[1] for line in often.getvalue().splitlines()] == ["1/3", "2/3", "3/3"]
    assert "problem/s" in often.getvalue()


def shown_by_a_notebook(written: str) -> list[str]:
    """The lines of an output cell: a carriage return goes back to the start of the line, and text covers what was there."""
    lines = []
    for line in written.split("\n"):
        cells = ""
        for part in line.split("\r"):
            cells = part + cells[len(part) :]
        lines.append(cells.rstrip())
    return lines


def test_progress_in_a_notebook_is_one_line_that_is_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("rorqual.core.progress.time.monotonic", lambda: float(next(clock)))
    stream = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    progress = Progress("train", 10, stream=stream)
    for done, note in ((1, "a long note about the loss"), (2, "loss 2")):
        progress.update(done, note)
        (line,) = shown_by_a_notebook(stream.getvalue())
        assert line.startswith(f"train  {done}/10  {note}  ") and line.count("train") == 1
    progress.say("saved")
    progress.update(3, "loss 1")
    assert [line.split("  ")[0] for line in shown_by_a_notebook(stream.getvalue())] == ["saved", "train"]
    progress.update(10)
    last = shown_by_a_notebook(stream.getvalue())
    assert last[1].startswith("train  10/10") and last[2:] == [""] and "\x1b" not in stream.getvalue()


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path: Path) -> None:
    """So does /dev/null, which whoever is root would else replace by a file."""
    os.mkfifo(tmp_path / "pipe")
    came = list[bytes]()
    reader = threading.Thread(target=lambda: came.append((tmp_path / "pipe").read_bytes()), daemon=True)
    reader.start()
    write_atomic(tmp_path / "pipe", b"all of it")
    assert (tmp_path / "pipe").is_fifo()
    reader.join(60)
    assert came == [b"all of it"] and [file.name for file in tmp_path.iterdir()] == ["pipe"]
