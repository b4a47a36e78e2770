"""`rorqual compare RUN golden=FILE`: a new model beside the kept answers of an old one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from stub_server import StubServer, running, spoken

from in_process import output_of
from rorqual.cli.eval_settings import EvalSettings
from rorqual.cli.evaluating import load_with_cached_answers
from rorqual.core.records import RunDir
from rorqual.evals.evaluation import Evaluation
from rorqual.evals.stats import difference_over_seeds, wilson
from rorqual.evals.table import percent, percent_interval
from rorqual.teach.answer_file import answerer_fingerprint
from rorqual.teach.answerer import load_answerer
from taught_task import PROMISE, texts, write_grammar, write_task


def line(prompt: str, golden: str, **keys: Any) -> dict[str, Any]:
    turns = (("system", "Be brief."), ("user", prompt), ("assistant", golden))
    return {"messages": [{"role": role, "content": text} for role, text in turns], **keys}


@pytest.fixture
def golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that writes the file `golden.jsonl` into the working folder."""
    monkeypatch.chdir(tmp_path)

    def write(*lines: Any) -> None:
        Path("golden.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")

    return write


@pytest.fixture
def server() -> Iterator[StubServer]:
    """It answers with the word after the last colon of the prompt."""
    with running(StubServer(lambda _, body: (200, spoken(body["messages"][-1]["content"].rpartition(":")[2])))) as it:
        yield it


def cells(text: str) -> dict[str, list[str]]:
    """The cells of each row of the printed tables, by the first one."""
    return {row[0]: row[1:] for row in (re.split(r"\s{2,}", one.strip()) for one in text.splitlines())}


SAME = [
    ("number", "18", "18.0"), ("number", "1,000", "1000"), ("number", "18", "19"), ("number", "007", "7"),
    ("JSON", '{"a": 1, "b": "X"}', '{"b": "x", "a": 1.0}'), ("JSON", '{"a": 1}', '{"a": 2}'), ("JSON", '["a"]', "a"),
    ("text", "It is a whale, and it is far away from any ship.", "It is a whale,  and it is far away from any ship."),
    ("text", "It is a whale, and it swims far away from here.", "it is a whale, and it swims far away from here."),
]  # fmt: skip
"""Golden answers and new ones, which are other answers from the third number, the second object and the second text on."""


def test_answers_of_a_server_are_compared_by_their_form(golden: Callable[..., None], server: StubServer) -> None:
    golden(*(line(f"{n}|{new}".replace(":", "\0"), old) for n, (_, old, new) in enumerate(SAME)))
    server.reply = lambda _, body: (200, spoken(body["messages"][-1]["content"].partition("|")[2].replace("\0", ":")))
    words = (
        "compare",
        server.url,
        "golden=golden.jsonl",
        "model=new",
        "max_tokens=7",
        "out=o.json",
        "temperature=0.5",
        "seed=3",
    )
    said = output_of(*words)
    for kind, (same, rows) in {"number": (2, 4), "JSON": (1, 3), "text": (1, 2), "all": (4, 9)}.items():
        shown = cells(said)[kind]
        assert shown == [f"{same}/{rows}", percent(same / rows), percent_interval(wilson(same, rows, 0.99)), "0"], kind
    assert "the first 5 of 5 answers that differ" in said and "line 3" in said and "line 1 " not in said
    assert {(one["model"], one["max_tokens"], one["temperature"]) for one in server.bodies} == {("new", 7, 0.5)}
    assert {tuple(turn["role"] for turn in one["messages"]) for one in server.bodies} == {("system", "user")}
    kept = Evaluation.load(Path("o.json"))
    assert [sample.answer for sample in kept.samples] == [old for _, old, _ in SAME]
    assert percent_interval(wilson(4, 9, 0.5)) in output_of(*words, "confidence=0.5")


def test_an_interrupted_comparison_asks_only_what_is_missing(golden: Callable[..., None], server: StubServer) -> None:
    golden(*(line(f"{n}:yes", "yes" if n % 3 else "no") for n in range(12)))
    answer, words = (
        server.reply,
        ("compare", server.url, "golden=golden.jsonl", "model=m", "out=o.json", "concurrency=1", "seed_bits=31"),
    )
    server.reply = lambda number, body: (
        answer(number, body) if number < 5 else (403, {"error": {"message": "no credit"}})
    )
    assert "no credit" in output_of(*words, code=2)
    server.reply = answer
    server.bodies.clear()
    said = output_of(*words)
    assert len(server.bodies) == 7 and cells(said)["yes"][0] == "8/8" and cells(said)["no"][0] == "0/4"


def test_a_taught_folder_answers_as_it_is_served(golden: Callable[..., None]) -> None:
    """Labels are the kinds, an answer below the promise is none, and `expected` tells which of the two models is right."""
    write_task(Path("task"), [(prompt.replace("\n\n", " "), label) for prompt, label in texts(90)], columns=())
    asked = [prompt.replace("\n\n", " ") for prompt, _ in texts(30, 5)]
    answers = load_answerer(Path("task"), threads=1).answer(asked)
    right = [label for _, label in texts(30, 5)]
    old = ["fee" if n % 4 == 0 else f"{label.upper()}." for n, label in enumerate(right)]
    golden(*(line(one, kept, expected=label) for one, kept, label in zip(asked, old, right, strict=True)))
    said = output_of("compare", "task", "golden=golden.jsonl", "threads=1", "confidence=0.95")
    sure = [(n, one.text) for n, one in enumerate(answers) if one.sure]
    same = [text == old[n].lower().rstrip(".") for n, text in sure]
    assert PROMISE and 0 < sum(same) < len(sure) < 30
    interval = percent_interval(wilson(sum(same), len(sure), 0.95))
    assert cells(said)["all"] == [
        f"{sum(same)}/{len(sure)}",
        percent(sum(same) / len(sure)),
        interval,
        str(30 - len(sure)),
    ]
    assert {"card", "pin", "fee"} <= {*cells(said)}
    first = next(n for (n, _), agrees in zip(sure, same, strict=True) if not agrees)
    assert said.index(asked[first][:20]) < said.index(old[first], said.index(asked[first][:20])) and "expected" in said
    assert cells(said)[f"line {first + 1}"][-1] == right[first]
    before, after = ([one[n].lower().rstrip(".") == right[n] for n, _ in sure] for one in (old, dict(sure)))
    change = difference_over_seeds([np.array(before)], [np.array(after)], 0.95)
    verdict = "the model is better" if change.interval.low > 0 else "either may be better"
    shares = [percent(sum(one) / len(sure)) for one in (before, after)]
    assert (
        shares[0] != shares[1]
        and (
            f"Of {len(sure)} answered rows with an expected answer, {shares[0]} % of the golden answers are right and {shares[1]} % of the "
            f"model's: {100 * change.mean:+.1f} points {percent_interval(change.interval)}: {verdict}."
        )
        in said
    )
    for kept, expected, words in (("fee", "", "the model is"), ("fee", "fee", "the golden answers are")):
        golden(*(line(one, kept, expected=expected or label) for one, label in zip(asked, right, strict=True)))
        assert f"]: {words} better." in output_of("compare", "task", "golden=golden.jsonl", "threads=1")
    assert "agreement with the golden answers, right or wrong" in output_of("compare", "task", "task")
    with load_with_cached_answers("task", EvalSettings(threads=1), None) as cache:
        assert cache.made["run"] == answerer_fingerprint(Path("task"), load_answerer(Path("task"), threads=1).config)
    refused = output_of("compare", "task", "golden=golden.jsonl", "max_tokens=3", "out=o.json", code=2)
    assert "no effect on what `rorqual teach` chose in task" in refused


def test_a_run_answers_with_its_defaults(
    golden: Callable[..., None], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden(line("add 1+1", "two"), line("add 1+2", "three"))
    write_grammar(place / "run", ["two", "ten"], max_tokens=9, thinking="off")
    words = ("compare", str(place / "run"), "golden=golden.jsonl", "threads=1")
    assert "was trained on" not in output_of(*words)
    kept = Evaluation.load(place / "run" / "evals" / "golden-test-off.json")
    assert {sample.reply for sample in kept.samples} <= {"two", "ten"} and kept.params.max_tokens == 9
    run = RunDir(place / "run")
    source = {**run.config()["source"], "data": str(Path("golden.jsonl").absolute())}
    run.config_file.write_text(yaml.safe_dump({**run.config(), "source": source}), encoding="utf-8")
    assert "was trained on this file" in output_of(*words, "max_tokens=2", "out=o.json")
    assert Evaluation.load(Path("o.json")).params.max_tokens == 2


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (line("a", " "), "golden.jsonl:2: key 'messages': the golden answer is empty"),
        ({"messages": line("a", "b")["messages"][:2]}, "golden.jsonl:2: the conversation does not end with a user turn and an assistant turn"),
        ({"mesages": line("a", "b")["messages"]}, "golden.jsonl:2: not a conversation: the keys are mesages\n  Did you mean 'messages'?"),
        ([], "golden.jsonl:2: a JSON list, not an object"),
        (line("a", "b", tools=[{"type": "function", "function": {"name": "f"}}]), "golden.jsonl:2: key 'tools': graded replies call no tools"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named_before_anything_is_asked(
    bad: Any, said: str, golden: Callable[..., None], server: StubServer
) -> None:
    golden(line("a", "b"), bad)
    words = ("compare", server.url, "golden=golden.jsonl", "model=m")
    assert said in output_of(*words, code=2) and not server.bodies
    golden(line("a", "b"), line("say:b", "b", tools=[]))
    said = output_of(*words)
    assert "1/2" in said and "the first 1 of 1" in said
    golden(line("say:b", "b"))
    said = output_of(*words, "out=same.json")
    assert "1/1" in said and "the first" not in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("golden=golden.jsonl", "model=m", "votes=3"), "unknown key 'votes'"),
        (("golden=golden.jsonl",), "model=NAME"),
        (("golden=none.jsonl", "model=m"), "none.jsonl: no such file"),
        (("other", "golden=golden.jsonl", "model=m"), "golden= takes one model, not 2"),
        (("model=m", "golden=golden.jsonl", "confidence=1"), "confidence"),
    ],
)
def test_bad_settings_are_named(
    words: tuple[str, ...], said: str, golden: Callable[..., None], server: StubServer
) -> None:
    golden(line("a", "b"))
    assert said in output_of("compare", server.url, *words, code=2) and not server.bodies
    assert "0/1" in output_of("compare", "model=m", "golden=golden.jsonl", server.url), "in any order"
