"""Conversations with tools are written as the published templates write them, and what is no conversation is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chat_families import GOLDEN, TEMPLATES, made
from tool_families import (
    ADDED,
    ASKED,
    BOTH,
    CALLED,
    CASES,
    NAMES,
    SAID,
    TOOLS,
    WEATHER,
    WRITTEN,
    with_marks,
    without_marks,
)

from rorqual.core.errors import DataError
from rorqual.core.records import Message, Tool
from rorqual.data.chat import TemplateChat, chat_format
from rorqual.train.sources import ConversationsConfig, SourceInputs

GOLD = json.loads((GOLDEN / "tools.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("gold", GOLD, ids=[f"{g['format']}, {g['case']}, {g['thinking']}" for g in GOLD])
def test_ids_are_those_of_the_published_template(gold: dict[str, Any]) -> None:
    chat, (messages, tools) = with_marks(gold["format"]), CASES[gold["case"]]
    ids = chat.prompt(messages, gold["thinking"], tools)
    assert chat.tokenizer.decode(ids, specials=True) == gold["text"]
    assert ids == gold["ids"]


def test_each_template_was_asked() -> None:
    assert {gold["format"] for gold in GOLD} == set(WRITTEN)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CASES)
def test_marks_that_a_tokenizer_lacks_are_spelt_out(name: str, case: str) -> None:
    """Such a tokenizer gives the same text."""
    messages, tools = CASES[case]
    one, other = (
        chat.tokenizer.decode(chat.prompt(messages, "off", tools), specials=True)
        for chat in (with_marks(name), without_marks(name))
    )
    assert one == other
    for message in messages:
        assert all(name == "deepseek-v3.2" or call.arguments in one for call in message.tool_calls)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_that_is_typed_becomes_a_mark(name: str) -> None:
    chat = with_marks(name)

    def specials(text: str) -> list[int]:
        call = replace(CALLED.tool_calls[0], arguments=f'{{"city": "{text}"}}')
        tool = replace(WEATHER, description=text, parameters={"type": "object", "title": text})
        messages = [
            Message("system", text),
            Message("user", text),
            Message("assistant", text, tool_calls=(call,)),
            replace(SAID, content=text),
        ]
        return [id_ for id_ in chat.prompt(messages, "auto", [tool]) if chat.tokenizer.is_special(id_)]

    assert specials("".join(sorted(chat.tokenizer.special_names))) == specials("x")


@pytest.mark.parametrize("name", NAMES)
def test_answers_stand_in_the_order_of_the_calls(name: str) -> None:
    chat = with_marks(name)
    assert chat.prompt([ASKED, BOTH, ADDED, SAID]) == chat.prompt([ASKED, BOTH, SAID, ADDED])


REFUSED: dict[str, tuple[list[Message], str]] = {
    "an answer to no call": (
        [ASKED, Message("assistant", "a"), SAID],
        "the tool turn does not follow an assistant turn with tool calls",
    ),
    "an answer first": ([SAID], "the tool turn does not follow an assistant turn with tool calls"),
    "an answer to another call": (
        [ASKED, CALLED, replace(SAID, tool_call_id="call_9")],
        "a result for unknown call 'call_9'",
    ),
    "two answers to one call": ([ASKED, CALLED, SAID, SAID], "a second result for call 'call_0'"),
    "calls of a user": ([replace(ASKED, tool_calls=CALLED.tool_calls)], "a user turn has calls"),
    "an assistant's last turn": ([ASKED, CALLED], "the last turn is an assistant turn"),
    "an assistant after an assistant": ([ASKED, CALLED, CALLED, SAID], "an assistant turn follows assistant turn"),
    "half of a surrogate pair": ([ASKED, CALLED, replace(SAID, content="\ud802")], "surrogate"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_conversation_with_tools_is_refused(case: str) -> None:
    messages, what = REFUSED[case]
    for name in NAMES:
        with pytest.raises(DataError, match=what):
            with_marks(name).prompt(messages, "auto", TOOLS)
        assert with_marks(name).prompt([ASKED, CALLED, SAID], "auto", TOOLS)


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("tools", "what"),
    [
        ([Tool("")], "not a valid tool name"),
        ([Tool("a b")], "not a valid tool name"),
        ([Tool('a"')], "not a valid tool name"),
        ([WEATHER, WEATHER], "two tools are named 'get_weather'"),
        ([Tool("a", "\ud800")], "surrogate"),
        ([Tool("a", "", {"a": object()})], "cannot be written as JSON"),
        ([Tool("a", "", nested(100))], "nested deeper than 100 levels"),
        ([Tool("a", "", nested(100_000))], "cannot be written as JSON"),
    ],
)
def test_tools_that_no_call_could_name_are_refused(tools: list[Tool], what: str) -> None:
    with pytest.raises(DataError, match=what):
        with_marks("qwen3").prompt([ASKED], "auto", tools)
    assert with_marks("qwen3").prompt([ASKED], "auto", [Tool("a", "", nested(99))])


def test_a_format_without_tools_says_so() -> None:
    for chat in (
        made("llama3"),
        TemplateChat(made("qwen3").tokenizer, "{{ messages[0].content }}", bos="", stop=["<|im_end|>"]),
    ):
        assert not chat.takes_tools
        with pytest.raises(DataError, match=r"does not support tools"):
            chat.prompt([ASKED], "auto", TOOLS)
        assert chat.prompt([ASKED])
    with pytest.raises(DataError, match="chat=none"):
        chat_format(made("qwen3").tokenizer, "none").prompt([ASKED], "auto", TOOLS)


@pytest.mark.parametrize(("file", "name"), [("qwen2.5", "chatml"), ("qwen3", "qwen3"), ("deepseek-v3.1", "deepseek")])
def test_a_template_that_speaks_of_tools_writes_them(file: str, name: str) -> None:
    """A template of an unknown family gets messages and tools as transformers gives them; its calls are found by its marks."""
    chat = with_marks(name)
    bos = "" if chat.bos is None else chat.tokenizer.token(chat.bos)
    source = (TEMPLATES / f"{file}.jinja").read_text(encoding="utf-8") + "{# tools #}"
    theirs = TemplateChat(chat.tokenizer, source, bos=bos, stop=[chat.tokenizer.token(chat.stop_ids[0])])
    assert theirs.takes_tools
    for gold in (gold for gold in GOLD if gold["format"] == name and gold["thinking"] == "off"):
        messages, tools = CASES[gold["case"]]
        assert chat.tokenizer.decode(theirs.prompt(messages, "off", tools), specials=True) == gold["text"]


def test_after_a_tools_turn_deepseek_answers_at_once() -> None:
    for name in ("deepseek", "deepseek-r1", "deepseek-v3"):
        for chat in (with_marks(name), without_marks(name)):
            assert chat.effective_thinking([ASKED, CALLED, SAID], "on") == "off"
            assert chat.thinking_mode_of(chat.prompt([ASKED, CALLED, SAID], "on")) == "off"
            assert (
                chat.effective_thinking([ASKED], "on") == "on"
                and chat.thinking_mode_of(chat.prompt([ASKED], "on", TOOLS)) == "on"
            )
    for name in ("qwen3", "deepseek-v3.2"):
        assert with_marks(name).effective_thinking([ASKED, CALLED, SAID], "on") == "on"
        assert with_marks(name).thinking_mode_of(with_marks(name).prompt([ASKED, CALLED, SAID], "on")) == "on"


def test_a_training_row_has_the_tools_of_its_conversation(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "multiply_numbers", "parameters": {"type": "object"}}}
    call = {"id": "c", "type": "function", "function": {"name": "multiply_numbers", "arguments": '{"a": 2}'}}
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call]}]
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps({"messages": turns, "tools": [tool]}), encoding="utf-8")
    chat = made("qwen3")
    inputs = SourceInputs(model=None, tokenizer=chat.tokenizer, chat=chat, seed=0, threads=1)  # type: ignore[arg-type]
    config = ConversationsConfig(data=str(file), rows=1, row=512)
    [batch] = config.build(inputs).step(0).batches
    text = chat.tokenizer.decode(batch.tokens[0].tolist(), specials=True)
    trained = chat.tokenizer.decode(batch.targets[batch.loss_mask > 0].tolist(), specials=True)
    assert "multiply_numbers" in text and trained.startswith("<tool_call>") and '{"a": 2}' in trained
