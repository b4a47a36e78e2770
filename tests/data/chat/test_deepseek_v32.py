"""DeepSeek-V3.2: prompts are those of the published encoder, and calls in DSML read back as they were written."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from chat_families import made
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tool_families import ADDED, ASKED, BOTH, CALLED, SAID, TOOLS, with_marks, without_marks
from v32_golden import CASES, FILE, SCHEMA, SHORT, WITH_SCHEMA, Row

from rorqual.core.errors import DataError
from rorqual.core.records import Message, Tool, ToolCall
from rorqual.data.chat import ChatFormat, guess_chat_name
from rorqual.data.chat.dsml import CLOSE, END_PARAMETER, OPEN, PARAMETER, format_invoke
from rorqual.data.chat.special_tokens import restore_token_names

NAME = "deepseek-v3.2"
GOLD = json.loads(FILE.read_text(encoding="utf-8"))
BOTH_TOKENIZERS = pytest.mark.parametrize("chat", [with_marks(NAME), without_marks(NAME)], ids=["token", "text"])


def message_of(row: Row) -> Message:
    calls = tuple(
        ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"])
        for call in row.get("tool_calls", ())
    )
    return Message(row["role"], row["content"], row.get("reasoning_content"), calls, row.get("tool_call_id"))


def ids_of(chat: ChatFormat, case: str, thinking: Any, *, schema: bool = False) -> list[int]:
    rows, tools = CASES[case][0], [Tool(**tool["function"]) for tool in CASES[case][1]]
    messages = [message_of(row) for row in rows]
    if schema:
        return chat.prompt_with_schema(messages, thinking, tools, SCHEMA)
    if messages[-1].role != "assistant":
        return chat.prompt(messages, thinking, tools)
    last = messages[-1] if thinking == "on" else replace(messages[-1], reasoning=None)
    return chat.render([*messages[:-1], last], thinking=thinking).ids


@BOTH_TOKENIZERS
@pytest.mark.parametrize(
    "gold", GOLD["written"], ids=[f"{g['case']}, {g['thinking']}, {g['schema']}" for g in GOLD["written"]]
)
def test_text_and_ids_are_those_of_the_published_encoder(chat: ChatFormat, gold: dict[str, Any]) -> None:
    text = gold["text"].replace(SHORT, GOLD["instructions"])
    ids = ids_of(chat, gold["case"], gold["thinking"], schema=gold["schema"])
    assert chat.tokenizer.decode(ids, specials=True) == text
    assert ids == chat.tokenizer.encode_trusted(text)


def test_every_case_was_asked() -> None:
    asked = {(gold["case"], gold["thinking"], gold["schema"]) for gold in GOLD["written"]}
    cases = [*((case, False) for case in CASES), *((case, True) for case in WITH_SCHEMA)]
    assert asked == {(case, thinking, schema) for case, schema in cases for thinking in ("on", "off")}
    assert len({gold["text"] for gold in GOLD["written"]}) == len(asked)


def test_the_model_chooses_where_nothing_is_asked() -> None:
    """`auto`: each reply has the tag that it was written with, and the last one is the model's to write."""
    chat = with_marks(NAME)
    quiet = Message("assistant", "", None, CALLED.tool_calls)
    texts = [
        chat.tokenizer.decode(chat.prompt([ASKED, said, SAID], "auto"), specials=True)
        for said in (quiet, replace(quiet, reasoning="Hm."))
    ]
    assert texts[0].split("<｜Assistant｜>")[1].startswith("</think>\n\n<｜DSML｜function_calls>")
    assert texts[1].split("<｜Assistant｜>")[1].startswith("<think>Hm.</think>\n\n<｜DSML｜function_calls>")
    assert all(text.endswith("</function_results>\n\n") for text in texts)


@pytest.mark.parametrize("case", ["a system turn after a user turn", "a call without a result"])
def test_where_the_published_encoder_fails_the_prompt_is_still_whole(case: str) -> None:
    chat = with_marks(NAME)
    messages = {
        "a system turn after a user turn": [Message("user", "A"), Message("system", "B")],
        "a call without a result": [ASKED, BOTH, ADDED],
    }[case]
    end = {
        "a system turn after a user turn": "<｜User｜>AB<｜Assistant｜><think>",
        "a call without a result": "<result>3.5</result>\n</function_results>\n\n<think>",
    }[case]
    assert chat.tokenizer.decode(chat.prompt(messages, "on"), specials=True).endswith(end)


def test_a_schema_that_is_no_text_is_refused() -> None:
    chat = with_marks(NAME)
    with pytest.raises(DataError, match="lone surrogate"):
        chat.prompt_with_schema([ASKED], "on", (), {"const": "\ud800"})
    assert chat.prompt_with_schema([ASKED], "on", (), {"const": "🐋"})
    assert with_marks("deepseek").prompt_with_schema([ASKED], "on", (), SCHEMA) == with_marks("deepseek").prompt(
        [ASKED], "on"
    )


# ---- calls that are written and read

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=4), below, max_size=3),
    max_leaves=6,
)  # fmt: skip
TRICKY = st.sampled_from(
    ["</", "<", '" string="true">', "\n", "</parameter>", "true", "</｜DSML｜parameter>", "｜DSML｜", "<｜"]
)
STRING = st.lists(TRICKY | st.text(max_size=4), max_size=3).map("".join)
ARGUMENTS = st.dictionaries(
    st.text(max_size=8).filter(lambda key: '" string="' not in key), STRING | ANY_JSON, max_size=4
)


@BOTH_TOKENIZERS
@settings(deadline=None, max_examples=150)
@given(
    content=st.sampled_from(["", "Let me see.", "A < B\n", "</"]),
    reasoning=st.none() | st.sampled_from(["", "Hm.\n\n", "a <think"]),
    calls=st.lists(st.tuples(st.sampled_from(["get_weather", "add"]), ARGUMENTS), min_size=1, max_size=3),
    cut=st.integers(0, 10_000),
)
def test_any_calls_read_back(
    chat: ChatFormat, content: str, reasoning: str | None, calls: list[tuple[str, dict[str, Any]]], cut: int
) -> None:
    """The text of a call is not kept where it is no canonical JSON, but what it says is."""
    spelt = json.dumps(calls, ensure_ascii=False)
    assume(chat is with_marks(NAME) or "｜DSML｜" not in spelt)  # as text, a mark in a string is a mark
    written = tuple(
        ToolCall(f"call_{number}", name, json.dumps(arguments, ensure_ascii=False))
        for number, (name, arguments) in enumerate(calls)
    )
    message = Message("assistant", content, reasoning, written)
    results = [Message("tool", "ok", tool_call_id=call.id) for call in written]
    prompt = chat.prompt([ASKED, message, *results], "auto", TOOLS)
    start = len(chat.prompt([ASKED], "auto", TOOLS))
    ids = prompt[start : prompt.index(chat.stop_ids[0], start) + 1]
    assert chat.parse(ids, "auto", TOOLS) == message
    cut %= len(ids)
    reader = chat.reader("auto", TOOLS)
    pieces = [reader.feed(*ids[:cut]), reader.feed(*ids[cut:]), reader.finish()]
    assert reader.message() == message
    assert "".join(piece.content for piece in pieces) == content
    assert [delta.arguments for piece in pieces for delta in piece.tools] == [call.arguments for call in written]


def test_a_parameter_that_is_written_twice_is_no_call() -> None:
    chat = with_marks(NAME)
    for keys, count in ((("a", "b"), 1), (("a", "a"), 0)):
        given = "\n".join(f'{PARAMETER}{key}" string="false">1{END_PARAMETER}' for key in keys)
        ids = chat.tokenizer.encode_trusted(restore_token_names(f"{OPEN}\n{format_invoke('add', given)}\n{CLOSE}"))
        message = chat.parse(ids, "off", TOOLS)
        assert len(message.tool_calls) == count and bool(message.content) == (not count)


def test_a_tag_that_a_string_spells_ends_nothing_where_the_mark_is_a_token() -> None:
    """Where it is none, a tag is told by its text alone, as the published parser tells it."""
    spelt = "a</｜DSML｜parameter>\n</｜DSML｜invoke>b"
    call = ToolCall("call_0", "add", json.dumps({"a": spelt}, ensure_ascii=False))
    for chat, reads in ((with_marks(NAME), True), (without_marks(NAME), False)):
        before = [ASKED, Message("assistant", "", tool_calls=(call,)), replace(SAID, tool_call_id="call_0")]
        prompt = chat.prompt(before, "off")
        ids = prompt[prompt.index(chat.tokenizer.special_id("</think>")) + 1 : prompt.index(chat.stop_ids[0])]
        written = chat.tokenizer.decode(ids, specials=True)
        message = chat.parse(ids, "off", TOOLS)
        assert message.tool_calls == (call if reads else replace(call, arguments='{"a": "a"}'),)
        assert message.content == ("" if reads else written[written.index("b</｜DSML｜") :])


@pytest.mark.parametrize(
    ("poison", "what"),
    [
        ("", "the arguments of a call of 'add' are not a JSON object"),
        ("[1]", "the arguments of a call of 'add' are not a JSON object"),
        ('{"a": NaN}', "the arguments of a call of 'add' are not a JSON object"),
        ('{"a": ' + "[" * 100 + "]" * 100 + "}", "the arguments of a call of 'add' are not a JSON object"),
        ('{"a": "\\ud800"}', "lone surrogate"),
        ('{"a": ["\\udbff"]}', "lone surrogate"),
        ('{"\\ud80f": 1}', "lone surrogate"),
    ],
)
def test_arguments_that_cannot_be_written_are_refused(poison: str, what: str) -> None:
    chat = with_marks(NAME)

    def prompt(arguments: str) -> list[int]:
        called = Message("assistant", "", tool_calls=(ToolCall("call_0", "add", arguments),))
        return chat.prompt([ASKED, called, SAID], "auto", TOOLS)

    with pytest.raises(DataError, match=what):
        prompt(poison)
    assert prompt('{"a": "\\ud83d\\udc0b", "b": ' + "[" * 99 + "]" * 99 + "}")


# ---- checkpoints


def test_the_token_of_calls_tells_the_format_of_a_checkpoint_without_a_template() -> None:
    assert guess_chat_name("deepseek_v3", with_marks(NAME).tokenizer, None) == NAME
    assert guess_chat_name("deepseek_v3", made("deepseek").tokenizer, None) == "deepseek"
    assert guess_chat_name("deepseek_v32", made("smollm2").tokenizer, None) == "chatml-plain", (
        "marks of turns come first"
    )


def test_v32_exp_keeps_the_template_that_it_came_with() -> None:
    """Its model type is V3.2's, and its template V3.1's."""
    tokenizer = made("deepseek").tokenizer
    assert guess_chat_name("deepseek_v32", tokenizer, made("deepseek").template) == "deepseek"
    assert guess_chat_name("deepseek_v32", tokenizer, made(NAME).template) == NAME
