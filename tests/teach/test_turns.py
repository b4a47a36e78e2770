"""Conversations of several turns: the language model is trained on their turns, and asked with them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from example_files import Write, labelled

from rorqual.core.conversations import text_to_turns, turns_to_text
from rorqual.core.records import Message, RunDir
from rorqual.data.chat import load_chat
from rorqual.data.source.conversations import read_conversations
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.engine import Engine
from rorqual.engine.request import Request, SamplingParams
from rorqual.tasks.examples import ExamplesTask, write_examples
from rorqual.teach.check import check_file
from rorqual.teach.dataset import divide_examples, rows_of
from rorqual.teach.plan import lengths_of
from rorqual.teach.rungs.language_model import LanguageModel


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
    [[reply]] = Engine(tiny, threads=1, backend="torch-invariant").generate(
        [Request(turns[:3], params, thinking="off")]
    )
    assert guess.answer == reply.text and reply.logprobs
    assert guess.probability == math.exp(math.fsum(reply.logprobs) / len(reply.logprobs))
