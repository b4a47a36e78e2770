"""Conversations from a user's file: read in every form, and each fault named by file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rorqual.core.errors import DataError
from rorqual.core.records import Message, Tool, ToolCall
from rorqual.data.source.conversations import read_conversations

GOOD = b'{"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}'
READ = (Message("user", "2+2?"), Message("assistant", "4"))


def write(folder: Path, content: bytes, name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def line(*messages: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"messages": list(messages), **more}).encode()


USER = {"role": "user", "content": "a"}
CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}


def with_arguments(text: str) -> dict[str, Any]:
    return {**CALL, "function": {"name": "add", "arguments": text}}


POISONS = [
    (GOOD + b"\n{\n", "not JSON", ":2"),
    (b'{"messages": "hello"}', "key 'messages' is a str, not a list", ":1"),
    (b'{"messages": []}', "key 'messages' is an empty list", ":1"),
    (b'{"messages": ["hello"]}', "a str, not an object", ":1: message 1"),
    (b'{"mesages": []}', "the keys are mesages", ":1"),
    (b"{}", "not a conversation: no keys", ":1"),
    (b'{"prompt": "a"}', "the keys are prompt", ":1"),
    (b'{"prompt": "a", "completion": 4}', "key 'completion' is a int, not text", ":1"),
    (line(USER, {"role": "asistant", "content": "b"}), "unknown role 'asistant'", ":1: message 2"),
    (line(USER, {"content": "b"}), "unknown role None", ":1: message 2"),
    (line(USER, {"role": "assistant", "content": "b", "weight": 0.5}), "key 'weight' is 0.5", ":1: message 2"),
    (line(USER, {"role": "assistant", "tool_calls": [{"id": "c"}]}), "key 'tool_calls' is no list", ":1: message 2"),
    (
        line(USER, {"role": "assistant", "tool_calls": [with_arguments("{a: 2}")]}),
        "key 'tool_calls' is no list",
        ":1: message 2",
    ),
    (
        line(USER, {"role": "assistant", "tool_calls": [with_arguments("[2]")]}),
        "key 'tool_calls' is no list",
        ":1: message 2",
    ),
    (
        line(USER, {"role": "assistant", "tool_calls": [with_arguments("[" * 100_000)]}),
        "key 'tool_calls' is no list",
        ":1: message 2",
    ),
    (line({**USER, "tool_calls": [CALL]}), "a user turn has calls", ":1: message 1"),
    (
        line(USER, {"role": "assistant", "content": "b"}, tools=[{"name": "add"}]),
        "key 'tools' is no list of tools",
        ":1",
    ),
    (line(USER, {"role": ["user"], "content": "b"}), "unknown role", ":1: message 2"),
    (line(USER, {"role": "assistant", "content": None}), "key 'content' is null", ":1: message 2"),
    (line(USER, {"role": "assistant"}), "key 'content' is missing", ":1: message 2"),
    (b'{"prompt": null, "completion": "a"}', "key 'prompt' is null", ":1"),
    (b'{"prompt": "a", "completion": null}', "key 'completion' is null", ":1"),
    (b'{"question": ["a"], "answer": "b"}', "key 'question' is a list, not text", ":1"),
    (b'{"prompt": {"a": 1}, "completion": "b"}', "key 'prompt' is a dict, not text", ":1"),
    (line(USER, {"role": "assistant", "content": "b", "reasoning": 1}), "key 'reasoning' is a int", ":1: message 2"),
    (b'{"prompt": " ", "completion": "b"}', "an empty prompt", ":1: message 1"),
    (
        GOOD + b"\n" + line({"role": "user", "content": "\u3000"}, {"role": "assistant", "content": "b"}),
        "an empty prompt",
        ":2: message 1",
    ),
    (
        line(USER, {"role": "assistant", "content": [{"type": "text"}]}),
        "not a content part: text",
        ":1: message 2: content[0]",
    ),
    (line(USER, {"role": "assistant", "content": 5}), "key 'content' is a int", ":1: message 2"),
    (line({**USER, "reasoning": "b"}), "a user turn has reasoning", ":1: message 1"),
    (line(USER, {"role": "assistant", "content": "<think>b"}), "<think> without </think>", ":1: message 2"),
    (
        line(USER, {"role": "assistant", "content": "<think>b</think>c", "reasoning": "d"}),
        "reasoning is given twice",
        ":1: message 2",
    ),
]


@pytest.mark.parametrize(("content", "message", "place"), POISONS, ids=[message for _, message, _ in POISONS])
def test_a_fault_is_named_by_file_and_line(tmp_path: Path, content: bytes, message: str, place: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(DataError) as caught:
        read_conversations(path)
    assert message in caught.value.what
    assert caught.value.where == f"{path}{place}" and caught.value.remedy


def test_the_nearest_right_name_is_offered(tmp_path: Path) -> None:
    for content, name in [(b'{"mesages": []}', "messages"), (line({"role": "usr", "content": "a"}), "user")]:
        with pytest.raises(DataError, match=f"Did you mean '{name}'"):
            read_conversations(write(tmp_path, content))


def test_nothing_to_train_on_is_skipped_and_counted_and_a_file_of_nothing_else_refused(tmp_path: Path) -> None:
    silent = line(USER)
    loaded = read_conversations(write(tmp_path, silent + b"\n" + GOOD + b"\n" + silent))
    assert loaded.conversations == [READ] and loaded.skipped == 2
    with pytest.raises(DataError, match="all 2 conversations lack an assistant turn"):
        read_conversations(write(tmp_path, silent + b"\n" + silent))


SAID = {"role": "assistant", "content": "b"}


@pytest.mark.parametrize("answer", ["", " \n\t", "\u3000\u00a0", "<think>a thought</think>", "<think>a</think> "])
def test_an_empty_answer_is_skipped_and_counted_in_every_form(tmp_path: Path, answer: str) -> None:
    empty = {"role": "assistant", "content": answer}
    rows = [
        line(USER, empty),
        line(USER, SAID, USER, empty),
        line(USER, empty, USER, SAID),
        json.dumps({"prompt": "a", "completion": answer}).encode(),
        json.dumps({"question": "a", "answer": answer}).encode(),
    ]
    loaded = read_conversations(write(tmp_path, b"\n".join([*rows, GOOD])))
    assert loaded.conversations == [READ] and loaded.skipped == len(rows)
    with pytest.raises(
        DataError, match=f"all {len(rows)} conversations lack an assistant turn or have an empty assistant turn"
    ):
        read_conversations(write(tmp_path, b"\n".join(rows)))


def test_openais_fields_of_a_row_are_read(tmp_path: Path) -> None:
    """Weights of turns, calls, results and tools, as OpenAI documents them for supervised fine-tuning."""
    asked = {"role": "assistant", "tool_calls": [CALL]}
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    rows = line(
        USER,
        {"role": "assistant", "content": "b", "weight": 0},
        USER,
        asked,
        {"role": "tool", "content": "4", "tool_call_id": "c"},
        {"role": "assistant", "content": "It is 4.", "weight": 1},
        tools=[tool],
    )
    loaded = read_conversations(write(tmp_path, rows + b"\n" + GOOD))
    assert [turn.in_loss for turn in loaded.conversations[0]] == [True, False, True, True, True, True]
    assert loaded.conversations[0][3] == Message("assistant", "", tool_calls=(ToolCall("c", "add", '{"a": 2}'),))
    assert loaded.conversations[0][4] == Message("tool", "4", tool_call_id="c")
    assert (loaded.tools, loaded.conversations[1]) == ([(Tool("add", "", {"type": "object"}),), ()], READ)
    silent = line(USER, {"role": "assistant", "content": "b", "weight": 0})
    assert read_conversations(write(tmp_path, silent + b"\n" + GOOD)).skipped == 1
