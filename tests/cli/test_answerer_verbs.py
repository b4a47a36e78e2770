"""`rorqual generate` and `rorqual chat` with what `rorqual teach` chose, whatever rung it is."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from commands import listing, refused, started, typed
from rorqual.cli.generating import TAUGHT, GenerateSettings
from rorqual.generate.schema import RowSampling
from rorqual.teach.answerer import Step, load_answerer
from rorqual.teach.paths import TeachPaths
from rorqual.teach.promise import PlattCalibration
from rorqual.teach.rungs.simple import UserRule
from taught_task import COLUMNS, texts, write_task

GENERATE = ("generate", "rows.jsonl", "run=task", "out=out.jsonl", "threads=1")
SLOW = "import time\ndef rule(prompt):\n    time.sleep(0.01)\n    return prompt[:4]\n"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a taught task of two columns and a promise, and rows to answer."""
    folder = tmp_path / "place"
    write_task(folder / "task", texts(90))
    write_rows(folder / "rows.jsonl", rows(30))
    return folder


def rows(count: int) -> list[dict[str, Any]]:
    pairs = (prompt.split("\n\n") for prompt, _ in texts(count, 5))
    return [{"id": n, **dict(zip(COLUMNS, pair, strict=True)), "note": 'é, "x"\n'} for n, pair in enumerate(pairs)]


def write_rows(path: Path, found: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_each_row_has_the_measured_answer_its_probability_and_whether_it_is_sure(place: Path) -> None:
    done = typed(place, *GENERATE)
    answers = load_answerer(place / "task", threads=1).answer([prompt for prompt, _ in texts(30, 5)])
    summary = f"30 lines: 30 answered, {sum(one.sure for one in answers)} sure, 0 refused"
    assert done.code == 0 and summary in done.out and "Warning" not in done.out, done.err
    assert lines_of(place / "out.jsonl") == [
        {"line": n, **row, "answer": answer.text, "probability": answer.probability, "sure": answer.sure}
        for n, (row, answer) in enumerate(zip(rows(30), answers, strict=True), start=1)
    ]
    assert {answer.sure for answer in answers} == {True, False}
    again = typed(place, *GENERATE)
    assert again.code == 0 and "already complete" in again.out and summary in again.out


def test_a_table_gives_a_table_with_the_same_answers(place: Path) -> None:
    assert typed(place, *GENERATE).code == 0
    found = [
        {name: str(value) for name, value in row.items()} for row in [*rows(30), {"id": 30, "subject": "", "body": ""}]
    ]
    with open(place / "rows.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, [*found[0]])
        table.writeheader()
        table.writerows(found)
    words = ("generate", "rows.csv", "run=task", "out=out.csv", "quiet=true", "prompt=Subject,body")
    done = typed(place, *words)
    assert done.code == 1 and "line 31: subject: the prompt is empty" in done.out and done.err == ""
    with open(place / "out.csv", encoding="utf-8", newline="") as file:
        made = list(csv.DictReader(file))
    assert [*made[0]] == ["id", *COLUMNS, "note", "answer", "probability", "sure", "error"]
    whole = lines_of(place / "out.jsonl")
    assert [(row["answer"], float(row["probability"]), row["sure"] == "true") for row in made[:-1]] == [
        (line["answer"], line["probability"], line["sure"]) for line in whole
    ]
    assert [{name: row[name] for name in found[0]} for row in made[:-1]] == found[:-1]
    assert made[-1]["answer"] == "" and json.loads(made[-1]["error"])["key"] == "subject"
    before = listing(place)
    again = typed(place, *words)
    summary = f"31 lines: 30 answered, {sum(line['sure'] for line in whole)} sure, 1 refused"
    assert again.code == 1 and summary in again.out and "already complete" in again.out
    assert listing(place) == before


@pytest.mark.parametrize(
    ("separator", "end", "begin", "name"),
    [
        (";", "\r\n", b"\xef\xbb\xbf", "csv"),
        (";", "\n", b"", "csv"),
        (",", "\r\n", b"", "csv"),
        ("\t", "\n", b"", "tsv"),
    ],
)
def test_a_table_keeps_its_separator_line_ends_and_byte_order_mark(
    place: Path, separator: str, end: str, begin: bytes, name: str
) -> None:
    table = [["subject", "body"], ["my card", "number 1,5"], ["the fee", "charge; or not"]]
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator=end).writerows(table)
    (place / f"rows.{name}").write_bytes(begin + text.getvalue().encode())
    assert typed(place, "generate", f"rows.{name}", "run=task", f"out=out.{name}").code == 0
    made = (place / f"out.{name}").read_bytes()
    assert made.startswith(begin + separator.join(["subject", "body", "answer", "probability", "sure"]).encode())
    lines = made.removeprefix(begin).decode().split(end)
    assert [row[:2] for row in csv.reader(lines[:-1], delimiter=separator)] == table and lines[-1] == ""
    assert made.count(b"\r") == (3 if end == "\r\n" else 0)
    assert typed(place, "generate", "rows.jsonl", "run=task", "out=plain.csv").code == 0
    assert (place / "plain.csv").read_bytes().startswith(b"id,subject,body,note,answer,")


def test_an_unknown_ending_is_refused(place: Path) -> None:
    refused(
        place, *GENERATE[:3], "out=out.xlsx", says=["out.xlsx: unknown ending", ".jsonl, .ndjson, .json, .csv, .tsv"]
    )


def test_a_task_that_refuses_every_prompt_says_so(place: Path) -> None:
    write_task(place / "mute", texts(90), promise=None, asked=0.95)
    done = typed(place, *GENERATE[:2], "run=mute", "out=out.jsonl")
    assert "30 answered, 0 sure, 0 refused" in done.out
    assert "Warning: every prompt is refused, because an accuracy of 0.95 could not be promised." in done.out
    said = typed(place, "chat", "mute", stdin=json.dumps({"subject": "my card", "body": ""}) + "\n")
    assert said.out == "no prompt is answered: an accuracy of 0.95 could not be promised for this task\n"


def test_killed_three_times_it_gives_the_same_file(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (tmp_path / "rule.py").write_text(SLOW, encoding="utf-8")
    rule = UserRule(lambda _: "", f"{tmp_path / 'rule.py'}:rule")
    write_task(
        place / "task", texts(9), steps=[Step(rung="rule", calibration=PlattCalibration())], rungs=[rule], promise=None
    )
    write_rows(place / "rows.jsonl", rows(400))
    assert typed(place, *(word.replace("out=out", "out=whole") for word in GENERATE)).code == 0
    partial, kept = place / "out.jsonl.partial", b""
    for goal in (1, 120, 240):
        process = started(place, *GENERATE)
        while process.is_alive() and (not partial.exists() or partial.read_bytes().count(b"\n") < goal):
            time.sleep(0.005)
        assert process.is_alive() and process.pid is not None, "it was over before it could be killed"
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        now = partial.read_bytes()
        assert now.startswith(kept), "a line that was there was made again"
        kept = now[: now.rfind(b"\n") + 1]
    assert typed(place, *GENERATE).code == 0
    assert (place / "out.jsonl").read_bytes() == (place / "whole.jsonl").read_bytes()
    assert "sure" not in lines_of(place / "out.jsonl")[0], "nothing is promised"


def test_another_answerer_does_not_go_on_with_the_file(place: Path) -> None:
    assert typed(place, *GENERATE).code == 0
    file = TeachPaths(place / "task").rung_file("logistic regression")
    file.write_bytes(file.read_bytes() + b"\0")
    refused(place, *GENERATE, says=["different input or settings: run was"])


def test_conversations_are_answered_as_they_were_taught(place: Path) -> None:
    steps = [Step(rung="nearest neighbour", calibration=PlattCalibration())]
    write_task(
        place / "talk", [("user: fee?\n\nassistant: no\n\nuser: pin?", "pin"), ("fee", "fee")] * 2,
        steps=steps, promise=None, columns=(),
    )  # fmt: skip
    turns = [("system", "s"), ("user", "fee?"), ("assistant", "no"), ("user", "pin?"), ("assistant", "gold")]
    talk = {"messages": [{"role": role, "content": text} for role, text in turns]}
    write_rows(place / "talk.jsonl", [talk, {"messages": []}])
    done = typed(place, "generate", "talk.jsonl", "run=talk", "out=out.jsonl")
    first, second = lines_of(place / "out.jsonl")
    assert done.code == 1 and (first["answer"], first["messages"]) == ("pin", talk["messages"])
    assert first["probability"] > 0.99 and second["error"]["key"] == "messages"


BAD: list[tuple[dict[str, Any], tuple[str, ...], list[str]]] = [
    # a row, words of the command, and what is said
    (
        {"subject": "a", "body": "b", "answer": "x"},
        (),
        ["rows.jsonl: the file has a column 'answer'", "Rename the column."],
    ),
    ({"subject": "a", "bodi": "b"}, (), ["the file has no column 'body'", "Did you mean 'bodi'?"]),
    ({"subject": "a", "body": "b"}, ("prompt=bodi",), ["the file has no column 'bodi'"]),
    ({"subject": "", "body": None}, ("strict=true",), ["rows.jsonl:1: the prompt is empty"]),
    ({"subject": "a", "body": "b"}, ("run=none",), ["none"]),
]


@pytest.mark.parametrize(("row", "words", "says"), BAD)
def test_bad_input_is_refused_and_nothing_is_written(
    place: Path, row: dict[str, Any], words: tuple[str, ...], says: list[str]
) -> None:
    write_rows(place / "rows.jsonl", [row])
    given = {word.partition("=")[0] for word in words}
    refused(place, *(word for word in GENERATE if word.partition("=")[0] not in given), *words, says=says)
    write_rows(place / "rows.jsonl", [{"subject": "a", "body": "b"}])
    assert typed(place, *GENERATE, "strict=true").code == 0


def test_settings_of_the_language_model_have_no_effect_and_are_refused(place: Path) -> None:
    values = {
        "device": "cpu",
        "dtype": "float32",
        "thinking": "on",
        "raw": "true",
        "token_ids": "true",
        "logprobs": "true",
    }
    values |= {"backend": "torch", "model": "x", "grammar": "{kind: json}", "ignore_eos": "true", "min_p_first": "true"}
    values |= {"calculator": "true", "logit_bias": "{5: 1}", "stop": "a", "stop_token_ids": "[1]", "min_p": "0.5"}
    names = (GenerateSettings.model_fields.keys() | RowSampling.model_fields.keys()) - {*TAUGHT, "min_tokens"}
    for name in sorted(names)[::6]:
        word = f"{name}={values.get(name, '1')}"
        refused(place, *GENERATE, word, says=[f"key '{name}': it has no effect on what `rorqual teach` chose in task"])


# ---- chat


def test_chat_gives_answer_probability_and_rung_or_says_why_not(place: Path) -> None:
    prompts = [json.dumps(dict(zip(COLUMNS, prompt.split("\n\n"), strict=True))) for prompt, _ in texts(30, 5)]
    done = typed(place, "chat", "task", "threads=1", stdin="".join(f"{prompt}\n" for prompt in prompts))
    assert done.code == 0, done.err
    answers = load_answerer(place / "task", threads=1).answer([prompt for prompt, _ in texts(30, 5)])
    refusal = "not sure enough: probability {:.3g}, the promise of 0.95 needs 0.7"
    assert done.out.splitlines() == [one.text if one.sure else refusal.format(one.probability) for one in answers]
    assert done.err.splitlines() == [f"(probability {one.probability:.3g}, {one.rung})" for one in answers]
    refused(place, "chat", "task", "temperature=1", says=["key 'temperature': it has no effect"])
    refused(place, "chat", "task", stdin='{"subject": "a"}\n', says=["column 'body' is missing"])
