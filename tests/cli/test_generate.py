"""`rorqual generate`: a file of prompts answered, killed, poisoned, shuffled, and asked of a server."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from commands import listing, refused, started, typed
from rorqual.core.records import Message, TaskDefaults
from rorqual.engine.engine import Engine
from rorqual.engine.request import Request
from rorqual.generate.output import PartialOutput
from rorqual.generate.prompts import RefusedRow
from rorqual.generate.schema import RowParser, RowRequest, RowSampling, line_seed

Row = dict[str, Any]
Rows = list[Row]
GENERATE = ("generate", "prompts.jsonl", "run=run", "out=out.jsonl", "threads=1")


def write(place: Path, rows: Rows, name: str = "prompts.jsonl") -> None:
    (place / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def answers_in(place: Path, name: str = "out.jsonl") -> Rows:
    return [json.loads(line) for line in (place / name).read_bytes().splitlines()]


def texts(row: dict[str, Any]) -> list[Any]:
    return [(c["text"], c["reasoning"], c["finish_reason"], c["tokens"]) for c in row["choices"]]


def sampled(count: int) -> Rows:
    return [{"id": f"p{n}", "prompt": f"add {n} {n * 7}", "temperature": 1.0, "n": 1 + n % 3} for n in range(count)]


@pytest.fixture(scope="module")
def engine(tiny: Path) -> Engine:
    return Engine(tiny, slots=4, record_experts=False)


def test_each_line_is_what_the_engine_says_to_that_request_alone(place: Path, engine: Engine) -> None:
    rows: Rows = [
        {"prompt": "add 1 2", "gold": 3, "id": 7},
        {"messages": [{"role": "user", "content": "add 3 4"}], "thinking": "on", "temperature": 0.7, "seed": 5, "n": 2},
        {"prompt_ids": [3, 65, 66, 4], "max_tokens": 3, "meta": {"source": ["x"]}},
        {"prompt": "add 5 6", "temperature": 1.0, "top_k": 5},
    ]
    write(place, rows)
    done = typed(place, *GENERATE, "max_tokens=12", "seed=11", "token_ids=true", "logprobs=true")
    assert done.code == 0, done.err
    assert "4 lines: 4 answered, 0 refused" in done.out
    assert re.search(r"generate  4/4  .* tokens/s .* left ", done.err)
    found = answers_in(place)
    assert [row["line"] for row in found] == [1, 2, 3, 4]
    assert (found[0]["id"], found[0]["gold"], found[2]["meta"]) == (7, 3, {"source": ["x"]})
    seeds = [line_seed(11, 1, 7), 5, line_seed(11, 3, None), line_seed(11, 4, None)]
    settings = [{}, {"temperature": 0.7, "n": 2}, {"max_tokens": 3}, {"temperature": 1.0, "top_k": 5}]
    for row, given, seed, own in zip(found, rows, seeds, settings):
        params = RowSampling(**{"max_tokens": 12, **own, "seed": seed}).params()
        content = given["messages"][0]["content"] if "messages" in given else given.get("prompt", "")
        messages = (Message("user", content),) if content else ()
        ids = tuple(given["prompt_ids"]) if "prompt_ids" in given else None
        [alone] = engine.generate([Request(messages, params, given.get("thinking", "auto"), ids)])
        assert row["seed"] == seed
        assert [c["token_ids"] for c in row["choices"]] == [s.token_ids for s in alone]
        assert texts(row) == [(s.text, s.reasoning, s.finish_reason, len(s.token_ids)) for s in alone]
        assert [c["logprobs"] for c in row["choices"]] == [s.logprobs for s in alone], "the same bits, beside others"
        assert row["usage"] == {
            "prompt_tokens": len(alone[0].prompt_ids),
            "completion_tokens": sum(len(s.token_ids) for s in alone),
        }


# ---- killed and begun again


def test_killed_four_times_it_gives_the_same_file(place: Path) -> None:
    write(place, [*sampled(40), {"prompt": ""}])
    words = (*GENERATE, "max_tokens=60", "token_ids=true", "slots=2")
    assert typed(place, *(word.replace("out=out", "out=whole") for word in words)).code == 1
    partial, kept = place / "out.jsonl.partial", b""
    for goal in (1, 6, 12, 18):
        process = started(place, *words)
        while process.is_alive() and (not partial.exists() or partial.read_bytes().count(b"\n") < goal):
            time.sleep(0.005)
        assert process.is_alive(), "it was over before it could be killed"
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        now = partial.read_bytes()
        assert now[: now.rfind(b"\n") + 1].startswith(kept), "a line that was there was made again"
        kept = now[: now.rfind(b"\n") + 1]
        assert not (place / "out.jsonl").exists()
    done = typed(place, *words)
    assert done.code == 1
    assert (place / "out.jsonl").read_bytes() == (place / "whole.jsonl").read_bytes()
    assert not partial.exists()
    left = 41 - kept.count(b"\n")
    assert f"this run: {left} lines" in done.out
    again = typed(place, *words)
    assert (again.code, "already complete" in again.out) == (1, True)


def test_a_torn_line_is_cut_off_and_made_again(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with PartialOutput(out, {"a": 1}, rows=3, last=3) as partial:
        partial.append_records({1: {"line": 1, "error": {}}, 2: {"line": 2}})
    with open(partial.path, "ab") as file:
        file.write(b'{"line": 3, "choi')
    with PartialOutput(out, {"a": 1}, rows=3, last=3) as partial:
        assert [partial.has_answer(line) for line in (1, 2, 3)] == [True, True, False]
        assert (partial.count, partial.errors) == (2, 1)
        partial.append_records({3: {"line": 3, "text": "x"}})
        partial.finish()
    assert out.read_bytes() == b'{"line": 1, "error": {}}\n{"line": 2}\n{"line": 3, "text": "x"}\n'


def test_a_kill_between_the_last_steps_changes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    lines = {2: {"line": 2}, 1: {"line": 1}}
    with PartialOutput(out, {"a": 1}, rows=2, last=2) as partial:
        partial.append_records(lines)
        raw = partial.path.read_bytes()
        partial.finish()
    whole = out.read_bytes()
    partial.path.write_bytes(raw)  # killed after the rename
    with PartialOutput(out, {"a": 1}, rows=2, last=2) as partial:
        assert not partial.whole
        partial.finish()
    assert out.read_bytes() == whole == b'{"line": 1}\n{"line": 2}\n'
    out.unlink()  # killed before the first line
    with PartialOutput(out, {"a": 2}, rows=2, last=2) as partial:
        assert partial.count == 0


def test_what_was_begun_otherwise_is_refused_and_left_alone(place: Path) -> None:
    write(place, sampled(3))
    assert typed(place, *GENERATE, "max_tokens=4").code == 0
    before = listing(place)
    for words, says in (
        (("max_tokens=5",), ("max_tokens was 4 and is 5", "another out=")),
        (("max_tokens=4", "seed=1"), ("seed was 0 and is 1",)),
        (("max_tokens=4", "token_ids=true"), ("token_ids was false and is true",)),
        (("max_tokens=4", "dtype=bfloat16"), ("dtype",)),
    ):
        done = typed(place, *GENERATE, *words)
        assert done.code == 2
        assert all(part in done.err for part in says), done.err
        assert listing(place) == before
    assert typed(place, *GENERATE, "max_tokens=4", "slots=1").code == 0, "slots change no figure"
    write(place, sampled(4))
    assert "file was" in typed(place, *GENERATE, "max_tokens=4").err
    write(place, sampled(3))
    (place / "run" / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    assert "run was" in typed(place, *GENERATE, "max_tokens=4").err


# ---- bad lines


@dataclass(frozen=True)
class Poison:
    """A line, the key that is named and a part of what is said; `twin` is the nearest line that is right."""

    raw: str | bytes
    key: str
    says: str
    twin: str


def poison(settings: str, key: str, says: str, twin: str) -> Poison:
    return Poison(f'{{"prompt": "hi", {settings}}}', key, says, f'{{"prompt": "hi", {twin}}}')


LONG = "long " * 40
POISONS = [
    Poison('{"prompt": ""}', "prompt", "empty", '{"prompt": " "}'),
    Poison('{"messages": []}', "messages", "list", '{"messages": [{"role": "user", "content": "hi"}]}'),
    Poison('{"messages": [{"role": "user", "content": ""}]}', "messages", "empty",
           '{"messages": [{"role": "user", "content": "x"}]}'),
    Poison('{"messages": [{"role": "human", "content": "x"}]}', "messages", "'human'",
           '{"messages": [{"role": "user", "content": "x", "name": "me"}]}'),
    Poison('{"messages": [{"role": "user", "content": 5}]}', "messages", "int",
           '{"messages": [{"role": "user", "content": "5"}]}'),
    Poison('{"messages": [{"role": "assistant", "content": "x"}]}', "messages", "assistant",
           '{"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "x"}]}'),
    Poison('{"prompt_ids": []}', "prompt_ids", "empty", '{"prompt_ids": [0]}'),
    Poison('{"prompt_ids": [263]}', "prompt_ids", "vocabulary", '{"prompt_ids": [262]}'),
    Poison('{"prompt_ids": [-1]}', "prompt_ids", "vocabulary", '{"prompt_ids": [1]}'),
    Poison('{"prompt_ids": [1.5]}', "prompt_ids", "whole numbers", '{"prompt_ids": [1]}'),
    Poison('{"prompt_ids": [true]}', "prompt_ids", "whole numbers", '{"prompt_ids": [1]}'),
    Poison('{"prompt_ids": "12"}', "prompt_ids", "whole numbers", '{"prompt_ids": [1, 2]}'),
    Poison(f'{{"prompt": "{LONG}"}}', "prompt", "context of 128", '{"prompt": "long long"}'),
    Poison(json.dumps({"prompt_ids": [65] * 128}), "prompt_ids", "context of 128", json.dumps({"prompt_ids": [65] * 127})),
    Poison('{"prompt": "a\\u0000b"}', "prompt", "NUL", '{"prompt": "a\\u0001b"}'),
    Poison('{"prompt": "x"', "", "not JSON", '{"prompt": "x"}'),
    Poison('{"prompt": "x", "y": NaN}', "y", "written as JSON", '{"prompt": "x", "y": null}'),
    Poison('{"prompt": "x", "y": 1e999}', "y", "written as JSON", '{"prompt": "x", "y": 1e99}'),
    Poison('{"id": 1}', "prompt", "no prompt", '{"id": 1, "prompt": "x"}'),
    Poison('{"promt": "x"}', "prompt", "no prompt", '{"prompt": "x", "promt": "x"}'),
    Poison('{"prompt": "x", "prompt_ids": [1]}', "prompt_ids", "both", '{"prompt": "x", "prompt_ids": null}'),
    Poison('{"prompt": ["x"]}', "prompt", "list", '{"prompt": "x"}'),
    poison('"temperature": -0.1', "temperature", "greater", '"temperature": 0'),
    poison('"temperature": "0"', "temperature", "number", '"temperature": 0.0'),
    poison('"temperature": true', "temperature", "number", '"temperature": null'),
    poison('"max_tokens": 0', "max_tokens", "greater", '"max_tokens": 1'),
    poison('"max_tokens": 1.5', "max_tokens", "integer", '"max_tokens": 2'),
    poison('"max_tokens": 1e30', "max_tokens", "integer", '"max_tokens": 2147483647'),
    poison('"top_p": 0', "top_p", "greater", '"top_p": 1'),
    poison('"top_p": 1.01', "top_p", "less", '"top_p": 0.01'),
    poison('"top_k": -1', "top_k", "greater", '"top_k": 0'),
    poison('"min_p": 2', "min_p", "less", '"min_p": 0'),
    poison('"seed": -1', "seed", "greater", '"seed": 9007199254740991'),
    poison('"n": 0', "n", "greater", '"n": 1'),
    poison('"n": 1000000000', "n", "less", '"n": 3'),
    poison('"presence_penalty": 101', "presence_penalty", "less", '"presence_penalty": 0'),
    poison('"repetition_penalty": 0', "repetition_penalty", "greater", '"repetition_penalty": 1'),
    poison('"logit_bias": {"x": 1}', "logit_bias", "ids", '"logit_bias": {}'),
    poison('"logit_bias": {"5": 101}', "logit_bias", "less", '"logit_bias": null'),
    poison('"stop": ""', "stop", "at least 1", '"stop": "\\n"'),
    poison('"stop": [1]', "stop", "string", '"stop": ["1"]'),
    poison(f'"stop": {json.dumps(["x"] * 17)}', "stop", "at most 16", f'"stop": {json.dumps(["x"] * 16)}'),
    poison('"top_logprobs": 21', "top_logprobs", "less", '"top_logprobs": 0'),
    poison('"min_tokens": -1', "min_tokens", "greater", '"min_tokens": 1'),
    poison('"max_tokens": 2, "min_tokens": 3', "min_tokens", "is 3", '"max_tokens": 2, "min_tokens": 2'),
    poison('"min_p_first": 1', "min_p_first", "boolean", '"min_p_first": true'),
    poison('"prompt_logprobs": 21', "prompt_logprobs", "less", '"prompt_logprobs": 0'),
    poison('"grammar": "json"', "grammar", "kind", '"grammar": null'),
    poison('"grammar": {"kind": "regex", "source": "[0-9"}', "grammar", "regular expression",
           '"grammar": {"kind": "regex", "source": "[0-9]+"}'),
    poison('"grammar": {"kind": "choice", "source": []}', "grammar", "choice", '"grammar": {"kind": "choice", "source": ["a"]}'),
    poison('"thinking": "maybe"', "thinking", "'auto'", '"thinking": "off"'),
    poison('"stop_token_ids": [263]', "stop_token_ids", "263", '"stop_token_ids": [262]'),
    poison('"min_p": 1', "min_p", "less than 1", '"min_p": 0.5'),
    poison('"temprature": 1', "temprature", "unknown key", '"speed": 1'),
    poison('"max_completion_tokens": 5', "max_completion_tokens", "unknown key", '"max_tokens": 5'),
    poison('"choices": []', "choices", "reserved", '"choice": []'),
    poison('"id": 1.5', "id", "whole number", '"id": "1.5"'),
]  # fmt: skip


def test_a_bad_line_says_what_to_mend_and_its_twin_is_answered_as_if_alone(place: Path) -> None:
    lines = [line.encode() if isinstance(line, str) else line for p in POISONS for line in (p.raw, p.twin)]
    (place / "prompts.jsonl").write_bytes(b"\n".join(lines))
    done = typed(place, *GENERATE, "max_tokens=2", "temperature=1", "max_len=128")
    assert done.code == 1, done.err
    assert "Traceback" not in done.err
    assert f"{len(POISONS)} answered, {len(POISONS)} refused" in done.out
    found = answers_in(place)
    assert [row["line"] for row in found] == list(range(1, 2 * len(POISONS) + 1))
    for p, bad, good in zip(POISONS, found[::2], found[1::2]):
        assert bad["error"]["key"] == p.key, (p, bad)
        assert p.says in bad["error"]["what"], (p, bad)
        assert bad["error"]["remedy"], p
        assert "choices" not in bad
        assert "error" not in good, (p, good)
        assert good["choices"], p
    (place / "prompts.jsonl").write_bytes(b"\n".join(b"" if n % 2 == 0 else line for n, line in enumerate(lines)))
    done = typed(place, *GENERATE[:3], "out=alone.jsonl", "threads=1", "max_tokens=2", "temperature=1", "max_len=128")
    assert done.code == 0, done.err
    assert answers_in(place, "alone.jsonl") == found[1::2]


def test_a_reply_that_its_grammar_gave_up_is_no_answer(place: Path) -> None:
    """A format that finds thinking marks cannot spell one; the same words without it are its twin."""
    grammar = {"kind": "choice", "source": ["hello <think> world"]}
    twin = {"kind": "choice", "source": ["hello think world"]}
    write(place, [{"prompt": "hi", "thinking": "off", "grammar": one} for one in (grammar, twin)])
    done = typed(place, *GENERATE, "max_tokens=40")
    assert done.code == 1 and "is incomplete" in done.out
    broken, whole = answers_in(place)
    assert broken["error"]["key"] == "grammar" and broken["choices"][0]["error"] in broken["error"]["what"]
    assert whole["choices"][0]["text"] == "hello think world" and "error" not in whole


# ---- a bad file, or a bad command


def without_tokenizer(place: Path) -> None:
    (place / "run" / "tokenizer.json").unlink()


def base_model(place: Path) -> None:
    config = place / "run" / "run.yaml"
    config.write_text(config.read_text(encoding="utf-8") + "\nchat: none\n", encoding="utf-8")


WHOLE: list[tuple[str, tuple[str, ...], tuple[str, ...], Any]] = [
    ("missing", ("nowhere.jsonl", "run=run", "out=o"), ("nowhere.jsonl", "no such file"), None),
    ("a folder called so", ("d.jsonl", "run=run", "out=o"), ("in a regular file",), lambda p: (p / "d.jsonl").mkdir()),
    ("empty", ("e.jsonl", "run=run", "out=o"), ("e.jsonl", "empty"), lambda p: (p / "e.jsonl").touch()),
    ("no run", ("p.jsonl", "out=o"), ("'run'", "required"), None),
    ("no out", ("p.jsonl", "run=run"), ("'out'", "required"), None),
    ("no such run", ("p.jsonl", "run=nowhere", "out=o"), ("nowhere", "not a run directory"), None),
    ("out is a folder", ("p.jsonl", "run=run", "out=run"), ("a folder", "out=FILE"), None),
    ("out under a file", ("p.jsonl", "run=run", "out=p.jsonl/o"), ("not a folder", "another out="), None),
    ("out is the input", ("p.jsonl", "run=run", "out=p.jsonl"), ("the prompt file itself",), None),
    ("out is there", ("p.jsonl", "run=run", "out=o"), ("the file exists", "remove"), lambda p: (p / "o").write_bytes(b"mine")),
    ("mistyped key", ("p.jsonl", "run=run", "out=o", "max_token=3"), ("'max_token'", "'max_tokens'"), None),
    ("out of range", ("p.jsonl", "run=run", "out=o", "temperature=-1"), ("'temperature'", "greater"), None),
    ("no number", ("p.jsonl", "run=run", "out=o", "n=many"), ("'n'", "integer", "'many'"), None),
    ("no slots", ("p.jsonl", "run=run", "out=o", "slots=0"), ("'slots'", "greater"), None),
    ("too long", ("p.jsonl", "run=run", "out=o", "max_len=129"), ("max_len=129", "context"), None),
    ("no device", ("p.jsonl", "run=run", "out=o", "device=gpu9"), ("'gpu9'", "device=cpu"), None),
    ("no tokenizer", ("p.jsonl", "run=run", "out=o"), ("tokenizer.json", "cannot read the tokenizer"), without_tokenizer),
    ("a base model", ("p.jsonl", "run=run", "out=o"), ("base model", "raw=true"), base_model),
    ("no model's name", ("p.jsonl", "run=http://127.0.0.1:9/v1", "out=o"), ("model=NAME",), None),
    ("ids of an address", ("p.jsonl", "run=http://127.0.0.1:9/v1", "out=o", "model=m", "token_ids=true"), ("token_ids",), None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "says", "prepare"), [w[1:] for w in WHOLE], ids=[w[0].replace(" ", "-") for w in WHOLE]
)
def test_a_bad_file_or_command_is_refused_and_nothing_changed(
    words: tuple[str, ...], says: tuple[str, ...], prepare: Any, place: Path
) -> None:
    write(place, [{"prompt": "hi"}], "p.jsonl")
    if prepare is not None:
        prepare(place)
    refused(place, "generate", *words, says=says)


def test_a_base_model_continues_texts(place: Path, engine: Engine) -> None:
    base_model(place)
    write(place, [{"prompt": "add 1"}])
    done = typed(place, *GENERATE, "raw=true", "max_tokens=4", "token_ids=true")
    assert done.code == 0, done.err
    [row] = answers_in(place)
    assert row["usage"]["prompt_tokens"] == len(engine.tokenizer.encode("add 1"))


# ---- order, kinds of files, size


def test_seeds_are_of_the_id_else_of_the_line(place: Path) -> None:
    asking = RowParser(RowSampling(seed=3))

    def seed(line: int, **row: Any) -> int:
        ask = asking.parse_row(line, {"prompt": "x", **row})
        assert isinstance(ask, RowRequest)
        return ask.request.params.seed

    assert seed(1, id="a") == seed(9, id="a") != seed(1, id="b")
    assert seed(1) != seed(2)
    assert seed(7) != seed(1, id=7) != seed(1, id="7")
    assert seed(1, id="a", seed=0) == 0 and seed(1, seed=None) == seed(1)
    assert len({seed(line) for line in range(1, 2000)}) == 1999
    assert all(0 <= seed(line) < 2**53 for line in range(1, 100))
    assert seed(1) != line_seed(4, 1, None)


def test_parquet_and_csv_are_read_as_the_same_prompts(place: Path) -> None:
    rows: Rows = [
        {"id": "a", "prompt": "add 1 2", "max_tokens": 5, "temperature": 1.0},
        {"id": "b", "prompt": '12, "quoted"\nand more', "max_tokens": 7},
        {"id": "c", "prompt": "12", "n": 2},
        {"id": "d", "prompt": "x", "n": 0},
    ]
    write(place, rows)
    pq.write_table(pa.Table.from_pylist(rows, pa.schema([("id", pa.string()), ("prompt", pa.string()),
        ("max_tokens", pa.int64()), ("temperature", pa.float64()), ("n", pa.int32())])), place / "prompts.parquet")  # fmt: skip
    with open(place / "prompts.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, ["id", "prompt", "max_tokens", "temperature", "n"])
        table.writeheader()
        table.writerows(rows)
    found = []
    for kind in ("jsonl", "parquet", "csv"):
        done = typed(place, "generate", f"prompts.{kind}", "run=run", f"out={kind}.jsonl", "max_tokens=3")
        assert done.code == 1, done.err
        found.append((place / f"{kind}.jsonl").read_bytes())
    assert found[0] == found[1] == found[2]


def test_columns_named_by_the_user_are_the_prompt(place: Path) -> None:
    rows = [("Fee", " why 5? ", "fee"), ("", "7", "pin"), ("12", "", ""), ("", "", "none")]
    with open(place / "mine.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("title", "body", "label"), *rows])
    joined = ["Fee\n\nwhy 5?", "7", "12", ""]
    write(place, [{"prompt": text, "title": t, "body": b, "label": label}
                  for text, (t, b, label) in zip(joined, rows, strict=True)])  # fmt: skip
    assert typed(place, *GENERATE, "max_tokens=6", "temperature=1").code == 1
    words = ("run=run", "out=mine.jsonl", "max_tokens=6", "temperature=1", "threads=1")
    assert typed(place, "generate", "mine.csv", "prompt=title, body", *words).code == 1
    plain, mine = answers_in(place), answers_in(place, "mine.jsonl")
    assert [row["choices"] for row in mine[:3]] == [row["choices"] for row in plain[:3]]
    assert [row["usage"] for row in mine[:3]] == [row["usage"] for row in plain[:3]]
    assert [row.get("label") for row in mine[:2]] == ["fee", "pin"] and mine[0]["body"] == " why 5? "
    assert (mine[3]["error"]["key"], mine[3]["error"]["what"]) == ("title", "the prompt is empty")
    assert mine[3]["label"] == "none"
    assert typed(place, "generate", "mine.csv", "prompt=Title,BODY", *words).code == 1, "the same columns"
    before = listing(place)
    for columns, says in (
        ("body", 'prompt was "title, body" and is "body"'),
        ("title,bdoy", "no column 'bdoy'"),
        (",", "no column ''"),
    ):
        done = typed(place, "generate", "mine.csv", f"prompt={columns}", *words)
        assert done.code == 2 and says in done.err, done.err
    assert listing(place) == before


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"text": " b\n"}, "b"),
        ({"text": 3}, "3"),
        ({"text": ["b", 1]}, '["b", 1]'),
        ({"text": "b", "prompt": "a", "messages": [], "prompt_ids": "c"}, "b"),
        ({"text": "b", "stop": None}, "b"),
        ({"text": "b", "stop": 5}, "b\n\n5"),
        ({"text": "", "stop": "c"}, "c"),
        ({"stop": "c"}, "c"),
    ],
)
def test_a_row_of_columns_is_one_prompt_and_keeps_its_fields(row: Row, prompt: str) -> None:
    """`stop` is a column here, and no sampling key."""
    task = TaskDefaults(max_tokens=7)
    found = RowParser(RowSampling(), columns=("text", "stop"), task=task).parse_row(1, row)
    assert isinstance(found, RowRequest) and found.request.messages == (Message("user", prompt),)
    assert found.carried == row and found.request.params.max_tokens == 7 and not found.request.params.stop


@pytest.mark.parametrize(
    ("row", "key", "what"),
    [
        ({"body": "b"}, "text", "column 'text' is missing"),
        ({"text": None}, "text", "column 'text' is null"),
        ({"text": "  "}, "text", "the prompt is empty"),
        ({"text": "a\0"}, "text", "NUL"),
        ({"text": "b", "line": 1}, "line", "reserved"),
        ({"text": "b", "temprature": 1}, "temprature", "unknown key"),
    ],
)
def test_a_row_without_a_usable_column_is_refused(row: Row, key: str, what: str) -> None:
    found = RowParser(RowSampling(), columns=("text",)).parse_row(1, row)
    assert isinstance(found, RefusedRow) and found.key == key and what in found.what


def test_a_taught_run_answers_with_the_defaults_of_its_task(place: Path) -> None:
    """Keys of the command and of a row come first; `raw` continues plain text, so no default applies."""
    task = {"thinking": "off", "max_tokens": 9, "temperature": 0.5, "calculator": True,
            "grammar": {"kind": "regex", "source": "[0-9]{4}"}}  # fmt: skip
    own = {"prompt": "add 1 2", "grammar": {"kind": "regex", "source": "[a-f]{3}"}, "max_tokens": 30}
    ids = {"prompt_ids": [3, 65, 66, 4], "max_tokens": 5, "temperature": 0}
    turns = [{"role": "user", "content": "add 5 6"}]
    rows: Rows = [{"prompt": "add 1 2"}, {"prompt": "add 3 4", "max_tokens": 2}, own, {"messages": turns}, ids]
    write(place, rows)
    named = [{"text" if key == "prompt" else key: value for key, value in row.items()} for row in rows[:3]]
    write(place, named, "named.jsonl")
    typed_keys = [
        f"{key}={json.dumps(value) if isinstance(value, dict | bool) else value}" for key, value in task.items()
    ]
    for name, words in {"keys": typed_keys, "no": [], "raw": ["raw=true"]}.items():
        assert typed(place, *GENERATE[:3], f"out={name}.jsonl", "threads=1", *words).code == 0
    (place / "run" / "defaults.json").write_text(json.dumps(task), encoding="utf-8")
    for name, words in {"task": [], "raw-task": ["raw=true"], "longer": ["max_tokens=3", "temperature=0"]}.items():
        assert typed(place, *GENERATE[:3], f"out={name}.jsonl", "threads=1", *words).code == 0
    words = ("run=run", "out=named.jsonl.out", "threads=1", "prompt=text")
    assert typed(place, "generate", "named.jsonl", *words).code == 0
    read = {name: answers_in(place, f"{name}.jsonl") for name in ("keys", "no", "raw", "task", "raw-task", "longer")}
    assert (
        read["task"][:4] == read["keys"][:4] != read["no"][:4] and read["task"][4] == read["no"][4] != read["keys"][4]
    )
    assert read["raw-task"] == read["raw"]
    assert [len(row["choices"][0]["text"]) for row in read["task"][:3]] == [4, 2, 3]
    assert read["task"][0]["choices"][0]["text"].isdigit() and set(read["task"][2]["choices"][0]["text"]) <= set(
        "abcdef"
    )
    assert len(read["longer"][0]["choices"][0]["text"]) == 3
    for row, of_prompt in zip(answers_in(place, "named.jsonl.out"), read["task"], strict=False):
        assert row.pop("text") and row == of_prompt
    again = typed(place, *GENERATE[:3], "out=task.jsonl", "threads=1", "max_tokens=1024")
    assert again.code == 2 and "defaults.max_tokens was 9 and is null" in again.err, again.err
    for changed, says in (
        ({"max_tokens": 8}, "defaults.max_tokens was 9 and is 8"),
        ({"max_tokens": "x"}, "defaults.json"),
    ):
        (place / "run" / "defaults.json").write_text(json.dumps(task | changed), encoding="utf-8")
        assert says in typed(place, *GENERATE[:3], "out=task.jsonl", "threads=1").err
        assert typed(place, *GENERATE[:3], "out=raw.jsonl", "threads=1", "raw=true").code == 0, "no default applies"


# ---- a server
