"""A reply with calls is read as docs/how-to/tools.md says, whole or token by token, however it is broken; nothing of it is lost."""

from __future__ import annotations

import copy
import json
import random
import re
from functools import cache
from typing import Any

import pytest
from chat_families import tokenizer
from stream_fixtures import files
from tool_families import TOOLS, with_marks, without_marks

from rorqual.core.records import Message, Thinking, Tool, ToolCall
from rorqual.data.chat import ChatFormat, TemplateChat
from rorqual.data.chat.calls import WHITE
from rorqual.data.chat.reply import ReplyPart
from rorqual.data.chat.special_tokens import CHARS
from rorqual.data.chat.stream import ReplyDelta, ReplyReader
from rorqual.data.tokenizer import REPLACEMENT

FIXTURES = files()
EACH = [(name, case["case"]) for name, cases in FIXTURES.items() for case in cases]
MODES: tuple[Thinking, ...] = ("auto", "on", "off")
DROPPED = re.compile("|".join(["</?｜DSML｜function_calls>", *map(re.escape, CHARS), r"[\s;]"]))
"""What may go nowhere."""


def text_of(name: str, text: str) -> str:
    """R1's prompt has written the first `<think>` already."""
    return text.removeprefix("<think>") if name == "deepseek-r1" else text


def by_characters(chat: ChatFormat, text: str) -> list[int]:
    """Ids of a text in which each character is spelt alone, and each mark is the one token that it is."""
    names = sorted(map(re.escape, chat.tokenizer.special_names), key=len, reverse=True)
    parts = re.findall("|".join([*names, "(?s:.)"]), text)
    return [id_ for part in parts for id_ in chat.tokenizer.encode_trusted(part)]


def read(
    chat: ChatFormat, ids: list[int], mode: Thinking, tools: tuple[Tool, ...] = TOOLS
) -> tuple[str, str, list[ToolCall], list[ReplyPart]]:
    """A stream read, with its laws checked."""
    reader = chat.reader(mode, tools)
    return finished(chat, reader, [reader.feed(id_) for id_ in ids])


def finished(
    chat: ChatFormat, reader: ReplyReader, pieces: list[ReplyDelta]
) -> tuple[str, str, list[ToolCall], list[ReplyPart]]:
    """What a reader that was fed has read when nothing more comes, and its laws."""
    ids, pieces = reader.ids, [piece for piece in (*pieces, reader.finish()) if piece]
    calls = joined_calls(pieces)
    reasoning, content = ("".join(getattr(piece, kind) for piece in pieces) for kind in ("reasoning", "content"))
    stop = next((place for place, id_ in enumerate(ids) if id_ in chat.stop_ids), len(ids))
    assert "".join(part.text for part in reader.parts) == chat.tokenizer.decode(ids[:stop], specials=True)
    for kind, text in (("reasoning", reasoning), ("content", content)):
        assert "".join(part.text for part in reader.parts if part.kind == kind) == text
    assert [part.kind for part in reader.parts].count("call") == len(calls)
    return reasoning, content, calls, reader.parts


def joined_calls(pieces: list[ReplyDelta]) -> list[ToolCall]:
    calls: list[ToolCall] = []
    for delta in (delta for piece in pieces for delta in piece.tools):
        if delta.index == len(calls):
            assert delta.id is not None and delta.name is not None
            calls.append(ToolCall(delta.id, delta.name, delta.arguments))
        else:
            assert delta.index == len(calls) - 1 and delta.id is None and delta.name is None
            last = calls.pop()
            calls.append(ToolCall(last.id, last.name, last.arguments + delta.arguments))
    return calls


def check(chat: ChatFormat, ids: list[int], mode: Thinking, tools: tuple[Tool, ...] = TOOLS) -> Message:
    """The stream gives what the whole gives, however it is cut, and every part of the reply is somewhere; what was read."""
    rng, reader, pieces = random.Random(len(ids)), chat.reader(mode, tools), list[ReplyDelta]()
    while len(reader.ids) < len(ids):
        pieces.append(reader.feed(*ids[len(reader.ids) :][: rng.choice((1, 2, 3, 7, 30))]))
    agrees(chat, ids, mode, tools, finished(chat, reader, pieces))
    return agrees(chat, ids, mode, tools, read(chat, ids, mode, tools))


def agrees(
    chat: ChatFormat,
    ids: list[int],
    mode: Thinking,
    tools: tuple[Tool, ...],
    streamed: tuple[str, str, list[ToolCall], list[ReplyPart]],
) -> Message:
    reasoning, content, calls, parts = streamed
    message = chat.parse(ids, mode, tools)
    assert (reasoning, content, tuple(calls)) == (message.reasoning or "", message.content, message.tool_calls)
    for call in calls:
        assert call.name in {tool.name for tool in tools} and isinstance(json.loads(call.arguments), dict)
        assert any(part.kind == "call" and call.name in part.text for part in parts)
    for part in parts:
        if part.kind == "mark":
            rest = DROPPED.sub("", part.text).rstrip(REPLACEMENT)
            assert not rest or any(name.startswith(rest) for name in CHARS), part
    return message


@pytest.mark.parametrize(("name", "case"), EACH)
def test_a_reply_is_read_as_its_rule_says(name: str, case: str) -> None:
    fixture = next(one for one in FIXTURES[name] if one["case"] == case)
    calls = tuple(ToolCall(f"call_{n}", one["name"], one["arguments"]) for n, one in enumerate(fixture["calls"]))
    text = text_of(name, fixture["text"])
    for chat in (with_marks(name), without_marks(name)):
        for ids in (chat.tokenizer.encode_trusted(text), by_characters(chat, text)):
            message = chat.parse(ids, "auto", TOOLS)
            assert (message.reasoning, message.content, message.tool_calls) == (
                fixture["reasoning"], fixture["content"], calls,
            )  # fmt: skip
            check(chat, ids, "auto")


def check_cuts(chat: ChatFormat, ids: list[int], cuts: range) -> None:
    """The laws, for a reply cut off at each of `cuts`. One reader is fed; a copy of it is told at each cut that this was all.

    What is cut off has no content but the whole's: a call that is cut off leaves nothing in it.
    """
    reader, whole = chat.reader("auto", TOOLS), chat.parse(ids, "auto", TOOLS)
    pieces: list[ReplyDelta] = []
    for cut in range(len(ids)):
        if cut in cuts:
            known: dict[int, Any] = {id(each): each for each in (chat, chat.tokenizer, chat.call_form)}
            known |= {id(reader.ids): list(reader.ids), id(reader.parts): list(reader.parts)}
            message = agrees(chat, ids[:cut], "auto", TOOLS, finished(chat, copy.deepcopy(reader, known), pieces))
            if (message.reasoning is None) == (whole.reasoning is None):
                assert whole.content.startswith(message.content.rstrip(WHITE + REPLACEMENT)), (
                    chat.tokenizer.decode(ids[:cut], specials=True),
                    message,
                )
        pieces.append(reader.feed(ids[cut]))


@pytest.mark.parametrize("name", FIXTURES)
def test_a_reply_cut_off_anywhere_is_read_by_the_same_rules(name: str) -> None:
    """After every fifth character or token, one reply a step later than the one before."""
    for number, fixture in enumerate(FIXTURES[name]):
        text = text_of(name, fixture["text"])
        if len(text) > 300:
            continue
        ids = by_characters(with_marks(name), text)
        check_cuts(with_marks(name), ids, range(number % 5, len(ids), 5))
        ids = without_marks(name).tokenizer.encode_trusted(text)
        check_cuts(without_marks(name), ids, range(number % 5, len(ids), 5))


@pytest.mark.parametrize("name", FIXTURES)
def test_without_tools_there_are_no_calls(name: str) -> None:
    for fixture in FIXTURES[name]:
        ids = with_marks(name).tokenizer.encode_trusted(text_of(name, fixture["text"]))
        check(with_marks(name), ids, "auto", ())
        assert with_marks(name).parse(ids).tool_calls == ()


@pytest.mark.parametrize("name", ["qwen3", "deepseek", "llama3.1"])
def test_what_was_called_can_be_written_again_as_the_model_wrote_it(name: str) -> None:
    """The next prompt holds the turn letter for letter, so that a cache of it is found again."""
    chat = with_marks(name)
    for case in ("a call", "text and a call", "two calls"):
        fixture = next((one for one in FIXTURES[name] if one["case"] == case), None)
        if fixture is None:
            continue
        message = chat.parse(chat.tokenizer.encode_trusted(fixture["text"]), "auto", TOOLS)
        said = [Message("tool", "4", tool_call_id=call.id) for call in message.tool_calls]
        prompt = chat.tokenizer.decode(
            chat.prompt([Message("user", "?"), message, *said], "auto", TOOLS), specials=True
        )
        own = fixture["text"].split("</think>")[-1] if name == "deepseek" else fixture["text"]
        assert own in prompt


def test_calls_come_one_by_one_and_text_is_not_held_back() -> None:
    chat = with_marks("qwen3")
    text = next(one["text"] for one in FIXTURES["qwen3"] if one["case"] == "text and two calls")
    reader = chat.reader("auto", TOOLS, calls="call_x_")
    seen: list[tuple[int, str]] = []
    for place, id_ in enumerate(by_characters(chat, text)):
        piece = reader.feed(id_)
        seen += [(place, delta.id or "") for delta in piece.tools]
        if piece.content:
            seen.append((place, "text"))
    places = {what: place for place, what in reversed(seen)}
    assert (
        len(seen) > 8 and places["text"] < places["call_x_0"] < places["call_x_1"] < len(by_characters(chat, text)) - 1
    )
    assert [call.id for call in reader.message().tool_calls] == ["call_x_0", "call_x_1"]


def test_half_a_character_in_a_call_is_one_replacement_and_no_error() -> None:
    for name in ("qwen3", "deepseek"):
        chat = with_marks(name)
        text = text_of(name, next(one["text"] for one in FIXTURES[name] if one["case"] == "a call"))
        head, tail = text.split("Zürich")
        for half in (chat.tokenizer.encode("🐋")[:2], chat.tokenizer.encode("é")[:1]):
            ids = [*chat.tokenizer.encode_trusted(head), *half, *chat.tokenizer.encode_trusted(tail)]
            check(chat, ids, "auto")
            assert len(chat.parse(ids, "auto", TOOLS).tool_calls) == 1


# ---- streams that nobody would write


@cache
def seeds() -> list[tuple[ChatFormat, list[list[int]], list[int]]]:
    """Formats, ids of their fixtures, and ids of their marks."""
    found = []
    for name, cases in FIXTURES.items():
        for chat in (with_marks(name), without_marks(name)):
            marks = [chat.tokenizer.encode_trusted(mark) for mark in CHARS]
            texts = [text_of(name, one["text"]) for one in cases if len(one["text"]) < 300]
            streams = [chat.tokenizer.encode_trusted(text) for text in texts]
            found.append((chat, streams, marks))
    template = TemplateChat(
        with_marks("qwen3").tokenizer,
        "{{ tools }}<tool_call>{% for m in messages %}{{ m.content }}{% endfor %}",
        bos="",
        stop=["<|im_end|>"],
    )
    qwen = next(streams for chat, streams, _ in found if chat is with_marks("qwen3"))
    return [
        *found,
        (
            template,
            qwen,
            [[id_] for id_ in template.tokenizer.encode_trusted("<think></think><tool_call></tool_call>")],
        ),
    ]


def mutated(rng: random.Random) -> tuple[ChatFormat, list[int]]:
    """A fixture of which parts are deleted, doubled, exchanged, replaced by marks, or cut off."""
    chat, streams, marks = rng.choice(seeds())
    ids = list(rng.choice(streams))
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(ids) + 1)
        end = min(len(ids), start + rng.choice((1, 2, 5, 20)))
        match rng.randrange(6):
            case 0:
                del ids[start:end]
            case 1:
                ids[start:start] = ids[start:end]
            case 2:
                other = rng.choice(streams)
                at = rng.randrange(len(other) + 1)
                ids[start:end] = other[at : at + rng.choice((1, 5, 30))]
            case 3:
                ids[start:start] = rng.choice(marks)
            case 4:
                ids[start:end] = rng.choice(marks)
            case 5:
                ids = ids[:start] if rng.random() < 0.5 else ids[start:]
    return chat, ids


def test_two_thousand_mutated_streams_raise_nothing_and_keep_the_laws() -> None:
    rng, called = random.Random(0), 0
    for _ in range(2_000):
        chat, ids = mutated(rng)
        called += bool(check(chat, ids, rng.choice(MODES)).tool_calls)
    assert called > 200, "mutants too broken to show anything"


@pytest.mark.parametrize("family", ["smollm2", "qwen"])
def test_a_template_that_knows_no_thoughts_is_not_held_back(family: str) -> None:
    """Where neither it nor its tokenizer knows `</think>`, an answer comes as it is written; a thought is still told by its `<think>`."""
    chat = TemplateChat(tokenizer(family), "{{ messages[0].content }}", bos="", stop=["<|im_end|>"])
    ids = chat.tokenizer.encode("It is 20. And so on.")
    reader = chat.reader("auto")
    assert any(reader.feed(id_) for id_ in ids) == (family == "smollm2")
    spelt = chat.tokenizer.encode("<think>\nHm.</think>\n\nSeven.")
    check(chat, spelt, "auto")
    assert chat.parse(spelt) == Message("assistant", "Seven.", "Hm.")
