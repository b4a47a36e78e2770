"""A teacher behind an address writes reasons: which replies count, what is marked, and which key is sent."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from example_files import Write, labelled
from typer.testing import CliRunner

sys.path.append(str(Path(__file__).parents[1] / "factory"))
from distil_server import Adder, Reply, fault, says

from rorqual.cli.main import app
from rorqual.core.journal import read_lines
from rorqual.core.ledger import Ledger
from rorqual.tasks.examples import AnswerKind, ExamplesTask
from rorqual.tasks.task import Problem, Verdict
from rorqual.teach.config import TeachConfig
from rorqual.teach.paths import TeachPaths
from rorqual.teach.plan import ExampleLengths, lengths_of
from rorqual.teach.reasons import TeacherReasons
from rorqual.teach.stages import TeachStages

RIGHT = [
    "card",
    "x\ncard",
    "So:\n**Answer: Card.**",
    "x\nThe answer is **card**.\n",
    "- card",
    '"card"',
    "x\n$\\boxed{card}$",
]


@pytest.fixture
def server() -> Iterator[Adder]:
    made = Adder()
    made.start()
    yield made
    made.stop()


@pytest.mark.parametrize(
    ("kind", "gold", "right", "wrong"),
    [
        (
            "label",
            "card",
            RIGHT,
            ["card\npin", "Answer: card or pin", "card\nSo it is lost."],
        ),
        ("label", "#bug", ["#bug", "x\n#bug", "x\nAnswer: #bug"], ["bug tracker"]),
        (
            "JSON",
            '{"a": [1]}',
            ['{"a": [1.0]}', 'x\n{"a": [1]}', 'x\nAnswer: `{"a": [1]}`', 'x\n```json\n{"a": [1]}\n```', 'x\n{\n "a": [1]\n}'],
            ['{"a": [1]}\nDone.', '{"a": [2]}'],
        ),
        ("text", "See you soon.", ["A farewell.\nSee you  soon.", "x\nAnswer:\nSee you soon."], ["See you soon.\nBye.", "x\nSee you"]),
        ("text", "# Title\n\n`ls`", ["# Title\n`ls`", "Two lines.\n# Title\n`ls`"], ["`ls`", "# Title"]),
        ("label", "1", ["x\n1"], ["It is bad.\n-1"]),
        ("number", "1234", ["6 * 2 = 12\nThe answer is 1,234."], ["1234 - 4 = 1230"]),
    ],
)  # fmt: skip
def test_the_last_line_of_a_reply_with_reasons_is_its_answer(
    tmp_path: Path, kind: AnswerKind, gold: str, right: list[str], wrong: list[str]
) -> None:
    task, problem = ExamplesTask(tmp_path, kind=kind, last_line=True), Problem("a", "a", gold, "examples")
    assert [task.grade(problem, reply) for reply in right] == [Verdict.RIGHT] * len(right)
    assert [task.grade(problem, reply) for reply in wrong] == [Verdict.WRONG] * len(wrong)
    if kind != "number":
        assert ExamplesTask(tmp_path, kind=kind).grade(problem, right[-1]) is Verdict.WRONG, "a model answers alone"


def prepared(config: TeachConfig, out: Path, api_key: str) -> TeachPaths:
    paths = TeachPaths(out)
    with closing(Ledger(out.with_suffix(".ledger"))) as ledger:
        TeachStages(config, paths, 1, ledger, lambda *_: None, api_key).prepare_data()
    return paths


@pytest.mark.parametrize("kind", ["label", "JSON"])
def test_reasons_of_a_server_are_kept_if_right_and_marked_if_it_was_told_the_answer(
    tiny: Path, tmp_path: Path, write: Write, server: Adder, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = labelled(90)
    if kind == "JSON":
        rows = [{"text": row["text"], "slots": json.dumps({"thing": row["label"]})} for row in rows]
    gold = {row["text"]: row["label" if kind == "label" else "slots"] for row in rows}

    def rule(body: dict[str, Any], number: int) -> Reply:
        """It solves problems with an even last digit by itself."""
        question = body["messages"][-1]["content"]
        text = next(text for text in gold if text in question.split("\n"))
        told = "The right answer is" in question
        return says(f"I read: {text}.\n{gold[text] if told or int(text[-1]) % 2 == 0 else 'none'}")

    server.rule = rule
    config = TeachConfig(
        file=str(write("a.jsonl", rows)), base=str(tiny), teacher=server.url, model="large", quiet=True
    )
    paths = prepared(config, tmp_path / "out", "secret")

    def noted(base: object, data: object, lengths: list[ExampleLengths], **settings: object) -> None:
        assert data == paths.sft_rows
        assert lengths == lengths_of(stages.train_examples, stages.model.chat), "the plan has room for the reasons"
        assert lengths != lengths_of(stages.dataset.splits["train"], stages.model.chat)
        raise KeyboardInterrupt

    monkeypatch.setattr("rorqual.teach.model_stages.make_plan", noted)
    with closing(Ledger(tmp_path / "second.ledger")) as ledger, pytest.raises(KeyboardInterrupt):
        stages = TeachStages(config, paths, 1, ledger, lambda *_: None, "secret")
        stages.model.find_base_and_plan()
    train = list(read_lines(paths.sft_rows))
    assert len(train) > 50
    for row in train:
        assert row.get("reasoning") == f"I read: {row['prompt']}.\n{gold[row['prompt']]}"
        assert row.get("told", False) == bool(int(row["prompt"][-1]) % 2), row
    reasons = TeacherReasons(**json.loads(paths.reasons.read_bytes()))
    assert {*reasons.given} == {row["key"] for row in train if row.get("told")} and len(reasons.texts) == len(train)
    assert {*server.keys} == {"Bearer secret"} and {body["model"] for body in server.asked} == {"large"}


@pytest.mark.parametrize("where", ["command", "environment", "both"])
def test_the_key_that_is_typed_reaches_the_teacher(
    tiny: Path, tmp_path: Path, write: Write, server: Adder, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.delenv("RORQUAL_API_KEY", raising=False)
    if where != "command":
        monkeypatch.setenv("RORQUAL_API_KEY", "mine" if where == "environment" else "another")
    server.rule = lambda body, number: fault(401, "no such key")
    file, out = write("a.jsonl", labelled(60)), tmp_path / "out"
    words = ["teach", str(file), f"base={tiny}", f"teacher={server.url}", "model=x", f"out={out}"]
    done = CliRunner().invoke(app, [*words, *(["api_key=mine"] * (where != "environment"))])
    assert done.exit_code and "Will check" in done.output and f"The teacher {server.url} is asked" in done.output
    assert {*server.keys} == {"Bearer mine"}
