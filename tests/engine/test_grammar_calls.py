"""Forced calls: in every format, what ends is read as calls of functions that there are, with arguments that their schemas allow."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "data" / "chat"))  # every family's small tokenizers

from chat_families import TEMPLATES
from tool_families import NAMES, with_marks, without_marks

from rorqual.core.errors import DataError
from rorqual.core.records import Message, Thinking, Tool, ToolCall
from rorqual.data.chat import ChatFormat, TemplateChat
from rorqual.data.chat.dsml import DSML_FRAME
from rorqual.data.chat.special_tokens import restore_token_names
from rorqual.engine.grammar.calls import CallSyntax
from rorqual.engine.grammar.compiler import Constraint, GrammarCompiler
from rorqual.engine.processor import RequestProcessor
from rorqual.engine.request import Grammar, Request, SamplingParams

SIZES: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"enum": ["é", "}", "\n", None]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
NEITHER: dict[str, Any] = {"properties": {"c": {"type": "boolean"}}, "additionalProperties": False}
TOOLS = {"size": SIZES, "size.2": NEITHER, "now": {"type": "object", "properties": {}, "additionalProperties": False}}
OFFERED = [Tool(name, "", schema) for name, schema in TOOLS.items()]


def calls(many: bool = True, **tools: Any) -> Grammar:
    listed = [{"name": name, "parameters": schema} for name, schema in (tools or TOOLS).items()]
    return Grammar("calls", json.dumps({"tools": listed, "many": many}))


def formats() -> Iterator[tuple[str, ChatFormat]]:
    for name in NAMES:
        yield name, with_marks(name)
        yield f"{name}, marks as text", without_marks(name)
    for template, name in (("qwen3", "qwen3"), ("deepseek-r1", "deepseek-r1")):
        source = (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8") + "{#- tools -#}"
        chat = with_marks(name)
        stop = [chat.tokenizer.token(chat.stop_ids[0])]
        yield f"template of {name}", TemplateChat(chat.tokenizer, source, bos="", stop=stop)


FORMATS = dict(formats())


@cache
def grammars(name: str) -> GrammarCompiler:
    chat = FORMATS[name]
    size = chat.tokenizer.vocab_size + 3
    return GrammarCompiler(chat.tokenizer, size, chat.stop_ids, CallSyntax(chat))


def sampled(constraint: Constraint, chat: ChatFormat, seed: int, begin: str = "") -> tuple[list[int], bool]:
    """Ids drawn at random after those of `begin`, and whether a stop id was one: that and what closes is likelier with each token."""
    rng, reply = np.random.default_rng(seed), chat.tokenizer.encode(begin)
    assert allows(constraint, reply)
    closing = [*chat.stop_ids, *(id_ for mark in ('"', "}", "</") for id_ in chat.tokenizer.encode(mark))]
    closing += [id_ for id_ in chat.tokenizer.encode_trusted("｜DSML｜") if chat.tokenizer.is_special(id_)]
    closing += [chat.tokenizer.special_id("</think>")] if "</think>" in chat.tokenizer.special_names else []
    while len(reply) < 400:
        mask = constraint.mask()
        weight = np.ones(chat.tokenizer.vocab_size + 3) if mask is None else mask.astype(np.float64)
        assert not constraint.error, constraint.error
        weight[closing] *= 1 + len(reply)
        token = int(rng.choice(len(weight), p=weight / weight.sum()))
        constraint.accept(token)
        if token in chat.stop_ids:
            return reply, True
        reply.append(token)
    return reply, False


def check(chat: ChatFormat, reply: Sequence[int], many: bool, thinking: Thinking = "off") -> Message:
    """The reply, read whole and token by token: calls, and nothing else but a thought."""
    message = chat.parse([*reply, chat.stop_ids[0]], thinking, OFFERED)
    assert message.content == "", chat.tokenizer.decode(reply, specials=True)
    assert message.tool_calls
    assert many or len(message.tool_calls) == 1
    for call in message.tool_calls:
        jsonschema.validate(json.loads(call.arguments), {"type": "object", **TOOLS[call.name]})
    reader = chat.reader(thinking, OFFERED)
    pieces = [*map(reader.feed, [*reply, chat.stop_ids[0]]), reader.finish()]
    said = [(delta.name, delta.arguments) for piece in pieces for delta in piece.tools]
    assert said == [(call.name, call.arguments) for call in message.tool_calls]
    assert not "".join(piece.content for piece in pieces)
    return message


@pytest.mark.parametrize("many", [True, False])
@pytest.mark.parametrize("name", FORMATS)
def test_what_ends_is_calls_and_nothing_else(name: str, many: bool) -> None:
    chat, compiled, ended, seen = FORMATS[name], grammars(name).compile(calls(many)), 0, set[str]()
    for seed in range(6):
        reply, whole = sampled(compiled.new_constraint(), chat, seed)
        if whole:
            ended += 1
            seen |= {call.name for call in check(chat, reply, many).tool_calls}
    assert ended >= 4
    assert len(seen) >= 2


@pytest.mark.parametrize("name", FORMATS)
def test_what_the_family_writes_itself_is_allowed(name: str) -> None:
    chat = FORMATS[name]
    both = [("size", '{"a": 1, "b": "}"}'), ("now", "{}")]
    for some, many, fits in ((both, True, True), (both[:1], False, True), (both, False, False)):
        assert allows(grammars(name).compile(calls(many)).new_constraint(), written(chat, *some)) == fits
    assert not allows(grammars(name).compile(calls(size=SIZES)).new_constraint(), written(chat, both[1]))
    assert not allows(grammars(name).compile(calls()).new_constraint(), [chat.stop_ids[0]])


def written(chat: ChatFormat, *calls: tuple[str, str]) -> list[int]:
    """The ids of a reply of calls (name, arguments), with its end."""
    frame = chat.call_frame
    assert frame is not None
    if frame is not DSML_FRAME:
        text = frame.begin + frame.gap.join(frame.call(*call) for call in calls) + frame.end
        return [*chat.tokenizer.encode_trusted(restore_token_names(text)), chat.stop_ids[0]]
    made = tuple(ToolCall(f"call_{number}", *call) for number, call in enumerate(calls))
    results = [Message("tool", "", tool_call_id=call.id) for call in made]
    prompt = chat.prompt([Message("user", "?"), Message("assistant", "", tool_calls=made), *results], "off")
    return prompt[prompt.index(chat.end_think_ids[0]) + 1 : prompt.index(chat.stop_ids[0]) + 1]


def allows(constraint: Constraint, ids: Sequence[int]) -> bool:
    for token in ids:
        mask = constraint.mask()
        if mask is not None and not mask[token]:
            return False
        constraint.accept(token)
    return True


@pytest.mark.parametrize("thinking", ["auto", "on", "off"])
@pytest.mark.parametrize("name", [name for name in FORMATS if not name.startswith("template")])
def test_a_thought_may_come_first_where_an_answer_with_a_grammar_may_have_one(name: str, thinking: Thinking) -> None:
    chat = FORMATS[name]
    desk = RequestProcessor(chat.tokenizer.vocab_size + 3, 8, 4096, 4096, chat.tokenizer, chat, reuse=False)
    prompt = tuple(chat.prompt([Message("user", "?")], thinking, OFFERED))
    begins, ended, thought = chat.reply_rules(thinking).begins, 0, 0
    begin = "hm</think>" if begins == "thought" and chat.think_tag_ids is None else ""
    for seed in range(8):
        params = SamplingParams(max_tokens=2000, seed=seed, grammar=calls(False))
        sample = desk.create_sequences(
            seed, desk.validate_request(Request(params=params, prompt_ids=prompt), "request")
        )[0]
        assert sample.constraint is not None
        reply, whole = sampled(sample.constraint, chat, seed, begin)
        if whole:
            ended += 1
            thought += check(chat, reply, False, thinking).reasoning is not None
        if ended == 2:
            break
    assert ended
    assert thought in {"thought": {ended}, "late": range(ended + 1)}.get(begins, {0})


@pytest.mark.parametrize("name", [name for name in FORMATS if not name.startswith("deepseek-v3.2")])
def test_a_call_that_cannot_be_read_is_an_error(name: str) -> None:
    """Some formats read a tag of reasoning in the arguments of a call, too."""
    chat, say = FORMATS[name], calls(say={"type": "object", "properties": {"text": {"type": "string"}}})
    frame, encode = chat.call_frame, chat.tokenizer.encode_trusted
    assert frame is not None
    before, _, after = restore_token_names(frame.begin + frame.call("say", "\0") + frame.end).partition("\0")
    for mark in ("<think>", "</think>", "</think >"):
        ids = [*encode(before), *chat.tokenizer.encode(f'{{"text": "a<{mark}"}}'), *encode(after)]
        constraint = grammars(name).compile(say).new_constraint()
        assert allows(constraint, [*ids, chat.stop_ids[0]])
        called = chat.parse(ids, "off", [Tool("say")]).tool_calls
        assert bool(constraint.error) is not bool(called) and (called or mark != "</think >")


ANSWER: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"enum": ["size", "now"]}, "parameters": {"type": "object", "additionalProperties": False}},
    "required": ["name"],
    "additionalProperties": False,
}
"""It looks like a call as some families write it."""


def or_json(schema: dict[str, Any], many: bool = True) -> Grammar:
    return Grammar("calls", json.dumps({**json.loads(calls(many).source), "answer": schema}))


def starts_with_a_token(name: str) -> bool:
    """A call, so that no text of JSON is one."""
    return not {"<tool_call>", "<｜tool▁calls▁begin｜>"}.isdisjoint(FORMATS[name].tokenizer.special_names)


def after_thought(chat: ChatFormat, reply: Sequence[int]) -> list[int]:
    """A whole reply, as it is where the prompt has opened a thought."""
    opened = chat.reply_rules("off").begins == "thought"
    return [*([chat.tokenizer.special_id("</think>")] if opened else []), *reply, chat.stop_ids[0]]


@pytest.mark.parametrize("name", [name for name in FORMATS if starts_with_a_token(name)])
def test_json_instead_of_calls_is_the_whole_answer(name: str) -> None:
    chat, compiled, seen = FORMATS[name], grammars(name).compile(or_json(ANSWER)), set[bool]()
    for seed in range(16):
        reply, whole = sampled(compiled.new_constraint(), chat, seed)
        if not whole:
            continue
        ids = after_thought(chat, reply)
        message = chat.parse(ids, "off", OFFERED)
        seen.add(bool(message.tool_calls))
        if message.tool_calls:
            check(chat, reply, True)
            continue
        jsonschema.validate(json.loads(message.content), ANSWER)
        reader = chat.reader("off", OFFERED)
        pieces = [*map(reader.feed, ids), reader.finish()]
        assert "".join(piece.content for piece in pieces) == message.content
        assert not any(piece.tools for piece in pieces)
    assert seen == {True, False}


@pytest.mark.parametrize("name", [name for name in FORMATS if not starts_with_a_token(name)])
def test_where_a_call_is_told_from_json_by_text_alone_both_at_once_are_refused(name: str) -> None:
    assert name.startswith(("smollm2", "llama3.1", "deepseek"))
    with pytest.raises(DataError, match="without a special token"):
        grammars(name).compile(or_json(ANSWER))
    assert grammars(name).compile(calls()).new_constraint().mask() is not None


def source(**keys: Any) -> Grammar:
    return Grammar("calls", json.dumps(keys))


ADD = {"name": "add", "parameters": {}}
POISONS: dict[str, tuple[Grammar, Grammar, str]] = {
    "nothing": (Grammar("calls", ""), source(tools=[ADD], many=True), "is empty"),
    "a list": (Grammar("calls", "[]"), source(tools=[ADD], many=False), "is invalid: "),
    "no functions": (source(tools=[], many=True), source(tools=[ADD, ADD], many=True), "is invalid at tools: "),
    "no word on how many": (source(tools=[ADD]), source(tools=[ADD], many=True), "is invalid at many: "),
    "a key of its own": (source(tools=[ADD], many=True, n=1), source(tools=[ADD], many=True), "is invalid at n: "),
    "an answer that is no schema": (
        source(tools=[ADD], many=True, answer=[]),
        source(tools=[ADD], many=True, answer={}),
        "is invalid at answer: ",
    ),
    "an answer that cannot be enforced": (
        or_json({"properties": {"a": {"pattern": "(?>a)"}}}),
        or_json({"properties": {"a": {"not": {}}}}),
        '#/properties/a/pattern: .* is not a "regex"',
    ),
    "a name in quotes": (
        source(tools=[{"name": '"', "parameters": {}}], many=True),
        source(tools=[{"name": "a-b.c_1", "parameters": {}}], many=True),
        "is invalid at tools.0.name: ",
    ),
    "parameters that are a list": (
        source(tools=[{"name": "add", "parameters": []}], many=True),
        source(tools=[ADD], many=True),
        "is invalid at tools.0.parameters: ",
    ),
    "parameters that are a text": (
        calls(add={}, say={"type": "string"}),
        calls(add={}, say={"type": ["string", "object"]}),
        "at tools.1.parameters: .* is 'string'",
    ),
    "a keyword that cannot be enforced": (
        calls(add={}, say={"properties": {"a": {"pattern": "(?>a)"}}}),
        calls(add={}, say={"properties": {"a": {"not": {}}}}),
        "the parameters of 'say': .*#/properties/a/pattern",
    ),
    "arguments that cannot be": (
        calls(say={"required": ["a"], "properties": {"a": False}}),
        calls(say={"properties": {"a": False}}),
        "the parameters of 'say': .*no reply can match",
    ),
    "another document": (
        calls(say={"$ref": "http://127.0.0.1:9/a"}),
        calls(say={"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"type": "null"}, {"type": "object"}]}}}),
        "the parameters of 'say': .* cannot fetch",
    ),
}


@pytest.mark.parametrize("name", POISONS)
def test_a_poison_is_refused_by_name_and_its_twin_runs(name: str) -> None:
    poison, twin, words = POISONS[name]
    with pytest.raises(DataError, match=words) as caught:
        grammars("qwen3").compile(poison, where="request")
    assert caught.value.where == "request"
    assert caught.value.remedy
    mask = grammars("qwen3").compile(twin).new_constraint().mask()
    assert mask is not None
    assert mask.any()
