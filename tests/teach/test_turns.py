"""Conversations of several turns: the language model is trained on their turns, and asked with them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from example_files import Write, labelled

from rorqual.core.conversations import text_to_turns, turns_to_text
from rorqual.core.errors import DataError
from rorqual.core.records import Message, RunDir
from rorqual.data.chat import load_chat
from rorqual.data.source.conversations import read_conversations
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.engine import Engine
from rorqual.engine.request import Request, SamplingParams
from rorqual.tasks.examples import ExamplesTask, write_examples
from rorqual.teach.answerer import Answerer, AnswererConfig, Step, load_answerer
from rorqual.teach.check import check_file
from rorqual.teach.config import TeachConfig
from rorqual.teach.contract import abstention, check_length, prompt_of_turns
from rorqual.teach.dataset import divide_examples, rows_of
from rorqual.teach.examples import Example
from rorqual.teach.plan import lengths_of
from rorqual.teach.promise import PlattCalibration
from rorqual.teach.rungs.language_model import LanguageModel
from rorqual.teach.rungs.rung import TrainingRows
from rorqual.teach.rungs.simple import Majority
from rorqual.teach.stages import teach


def talk(*turns: tuple[str, str]) -> tuple[Message, ...]:
    return tuple(Message(role, content) for role, content in turns)  # type: ignore[arg-type]


THREE = talk(("user", "Hello.\n\nI lost it."), ("assistant", "What?"), ("user", "my card"))


@pytest.mark.parametrize("turns", [THREE, (*talk(("system", "Be brief.")), *THREE), talk(("user", "user: my card"))])
def test_turns_become_a_text_and_turns_again(turns: tuple[Message, ...]) -> None:
    assert text_to_turns(turns_to_text(turns)) == turns


@pytest.mark.parametrize(
    "text",
    [
        "my card",
        "user: my card",
        "I wrote\n\nuser: hello\n\nassistant: hi\n\nuser: my card",
        "user: hello\n\nassistant: hi",
        "user: hello\n\nuser: my card",
        "assistant: hi\n\nuser: my card",
        "user:  \n\nassistant: hi\n\nuser: my card",
        "user: hello\nassistant: hi\nuser: my card",
    ],
)
def test_another_text_is_one_user_turn(text: str) -> None:
    """A chat format cannot render turns in any order, and training refuses an empty one."""
    assert text_to_turns(text) == talk(("user", text))


def test_training_and_questions_have_the_turns_of_the_file(write: Write, tmp_path: Path, tiny: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": role, "content": content} for role, content in
                      (("user", "Hello."), ("assistant", "What?"), ("user", row["text"]), ("assistant", row["label"]))]}
        for row in labelled(60)
    ]  # fmt: skip
    data = divide_examples(check_file(write("a.jsonl", rows), len), None, count=100)
    write_examples(
        tmp_path / "data", {split: rows_of(some) for split, some in data.splits.items()}, {"kind": data.kind}
    )
    dev, given = (
        data.splits["dev"],
        [tuple((turn["role"], turn["content"]) for turn in row["messages"]) for row in rows],
    )
    trained = read_conversations(tmp_path / "data" / "train.jsonl").conversations
    assert [tuple((turn.role, turn.label) for turn in one) for one in trained] == [
        given[one.line - 1] for one in data.splits["train"]
    ]
    problems = {one.key: one for one in ExamplesTask(tmp_path / "data").problems("dev", 0)}
    assert [problems[one.key].messages for one in dev] == [talk(*given[one.line - 1][:3]) for one in dev]
    run, params = RunDir(tiny), SamplingParams(temperature=0.0, max_tokens=4)
    turns = talk(*given[dev[0].line - 1])
    chat = load_chat(run, Tokenizer.load(run.tokenizer_file))
    [length] = lengths_of(dev[:1], chat)
    prompt = chat.prompt(turns[:3], "auto")
    assert (length.prompt, length.total_tokens) == (len(prompt), len(chat.render(turns).ids))
    [guess] = LanguageModel("language model", run, params, "off", threads=1).predict([dev[0].prompt])
    [[reply]] = Engine(tiny, threads=1).generate([Request(turns[:3], params, thinking="off")])
    assert guess.answer == reply.text and reply.logprobs
    assert guess.probability == math.exp(math.fsum(reply.logprobs) / len(reply.logprobs))


def test_a_served_prompt_has_the_system_turns_that_the_examples_have() -> None:
    """A shared system message is left out of the prompts of all examples, and other ones only where no example has one."""
    turns = [
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message("assistant", "Yes?"),
        Message("user", "Bye"),
    ]
    own = AnswererConfig(steps=(), has_system_turns=True)
    assert prompt_of_turns(turns, own) == turns_to_text(turns)
    for config in (AnswererConfig(steps=()), own.model_copy(update={"system": "Be brief."})):
        assert prompt_of_turns(turns, config) == turns_to_text(turns[1:])


@pytest.mark.parametrize("system", ["own", "shared", "none"])
def test_the_answerer_knows_the_system_turns_of_the_examples(tmp_path: Path, system: str) -> None:
    rows = []
    for number, row in enumerate(labelled(80)):
        first = {"own": f"Rule {number}", "shared": "Be brief."}.get(system)
        turns = [("user", row["text"]), ("assistant", row["label"])]
        opening = [("system", first)] if first else []
        rows.append({"messages": [{"role": role, "content": text} for role, text in (*opening, *turns)]})
    file = tmp_path / "talk.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = TeachConfig(file=str(file), base="none", encoder="none", quiet=True)
    teach(config, tmp_path / "out", threads=1, import_progress=lambda *_: None)
    made = load_answerer(tmp_path / "out", threads=1).config
    assert (made.system, made.has_system_turns) == ("Be brief." if system == "shared" else "", system == "own")


def test_a_prompt_much_longer_than_the_examples_is_refused() -> None:
    """One prompt of megabytes would hold up the prompts of all others."""
    for longest, most in ((10, 20_000), (2_000, 40_000)):
        config = AnswererConfig(steps=(), longest=longest)
        assert check_length("a" * most, config) == "a" * most
        with pytest.raises(DataError, match=f"has {most + 1:,} characters, and at most {most:,} are answered"):
            check_length("a" * (most + 1), config)


def test_an_accuracy_that_could_not_be_promised_leaves_no_answer_sure() -> None:
    rung = Majority()
    rung.fit(TrainingRows([Example(1, "a", "b"), Example(2, "c", "b")], "label"))
    for asked in (0.0, 0.9):
        config = AnswererConfig(steps=(Step(rung="majority", calibration=PlattCalibration()),), asked=asked)
        [answer] = Answerer(config, [rung]).answer(["x"])
        assert answer.text == "b" and answer.sure is not bool(asked) and config.may_abstain is bool(asked)
        assert ("0.9 could not be promised" in abstention(answer, config)) is bool(asked)
