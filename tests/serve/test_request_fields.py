"""No field of a request is dropped or swapped on its way to the engine, to the prompt or to the answer."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from pydantic import BaseModel
from shapes import CHAT, HELLO, MAX_LEN, chat_of, service_of, text_of

from rorqual.core.content_parts import ImagePart, ImageURL, TextPart
from rorqual.core.records import Message, Thinking, Tool, ToolCall
from rorqual.core.sampling import SERVER_DEFAULTS, Grammar, SamplingParams
from rorqual.serve.answer import ResponseBuilder, prepare
from rorqual.serve.errors import ApiError
from rorqual.serve.limits import MAX_VALUES
from rorqual.serve.message_schemas import (
    CalledFunction,
    ChatMessage,
    FunctionSpec,
    RequestToolCall,
    ToolFields,
    ToolSpec,
)
from rorqual.serve.routes.chat import ChatResponseBuilder
from rorqual.serve.routes.completions import TextResponseBuilder
from rorqual.serve.schemas import ChatRequest, StreamOptions, TemplateOptions, TextRequest
from rorqual.serve.service import GENERATION, ModelService
from rorqual.serve.wire import EngineRequest, PackedRequest, SampledToken

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}
ADD: dict[str, Any] = {
    "type": "function",
    "function": {"name": "add", "description": "a + b", "parameters": SCHEMA, "strict": True},
}
SCHEMA_TEXT = '{"type":"object","properties":{"a":{"type":"integer"}}}'

# field: a value, what it needs beside it, and the fields of `EngineRequest` and its params that it changes, with their values
SAMPLED: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "max_tokens": (7, {}, {"max_tokens": 7}),
    "temperature": (0.25, {}, {"temperature": 0.25}),
    "top_p": (0.5, {}, {"top_p": 0.5}),
    "top_k": (9, {}, {"top_k": 9}),
    "min_p": (0.125, {}, {"min_p": 0.125}),
    "repetition_penalty": (1.5, {}, {"repetition_penalty": 1.5}),
    "presence_penalty": (0.75, {}, {"presence_penalty": 0.75}),
    "frequency_penalty": (-0.5, {}, {"frequency_penalty": -0.5}),
    "logit_bias": ({"5": -3.5, "262": 4}, {}, {"logit_bias": ((5, -3.5), (262, 4.0))}),
    "seed": (11, {}, {"seed": 11}),
    "n": (3, {}, {"n": 3}),
    "stop": (["x", "y"], {}, {"stop": ("x", "y")}),
    "stop_token_ids": ([8, 9], {}, {"stop_token_ids": (8, 9)}),
    "ignore_eos": (True, {}, {"ignore_eos": True}),
    "min_tokens": (2, {}, {"min_tokens": 2}),
    "min_p_first": (True, {}, {"min_p_first": True}),
    "prompt_logprobs": (4, {}, {"prompt_logprobs": 4}),
    "think_budget": (5, {}, {"think_budget": 5}),
    "calculator": (True, {}, {"calculator": True}),
    "priority": (6, {}, {"priority": -6}),
    "response_format": ({"type": "json_object"}, {}, {"grammar": Grammar("json")}),
    "guided_json": (SCHEMA, {}, {"grammar": Grammar("json_schema", SCHEMA_TEXT)}),
    "guided_regex": ("a+", {}, {"grammar": Grammar("regex", "a+")}),
    "guided_choice": (["yes", "no"], {}, {"grammar": Grammar("choice", '["yes","no"]')}),
}
OF_CHAT: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "max_completion_tokens": (6, {"max_tokens": 9}, {"max_tokens": 6}),
    "top_logprobs": (5, {"logprobs": True}, {"top_logprobs": 5}),
    "tool_choice": ("none", {"tools": [ADD], "stop": ["x"]}, {"prompt": CHAT.prompt([Message("user", "hello")]), "stop": ("x",)}),
    "tools": ([ADD], {"stop": ["x"]}, {"prompt": CHAT.prompt([Message("user", "hello")], "auto", [Tool("add", "a + b", SCHEMA)]), "stop": ()}),
    "messages": ([{**HELLO, "content": "b"}], {}, {"prompt": CHAT.prompt([Message("user", "b")])}),
    "chat_template_kwargs": ({"thinking": False}, {}, {"prompt": CHAT.prompt([Message("user", "hello")], "off")}),
    "reasoning_effort": ("low", {}, {"prompt": CHAT.prompt([Message("user", "hello")], "on"), "think_budget": 5}),
    "thinking": ({"type": "disabled"}, {}, {"prompt": CHAT.prompt([Message("user", "hello")], "off")}),
}  # fmt: skip
OF_TEXT: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "prompt": ([5, 6], {}, {"prompt": (5, 6)}),
    "logprobs": (5, {}, {"top_logprobs": 5}),
    "echo": (True, {"logprobs": 3}, {"prompt_logprobs": 3}),
}
OF_THE_ANSWER = {"model", "stream", "stream_options"}
"""What does nothing to the engine: `test_every_answer.py` looks at these, and a test below at the model."""
CASES = [(shape, name) for shape, more in ((chat_of, OF_CHAT), (text_of, OF_TEXT)) for name in {**SAMPLED, **more}]


def asked(shape: ResponseBuilder[Any]) -> EngineRequest:
    [found] = shape.engine_requests()
    return found


def all_of(ask: EngineRequest) -> dict[str, Any]:
    return {"prompt": ask.prompt, "priority": ask.priority, **vars(ask.params)}


def differs(one: EngineRequest, other: EngineRequest) -> dict[str, Any]:
    before = all_of(other)
    return {name: value for name, value in all_of(one).items() if value != before[name]}


@pytest.mark.parametrize(("shape", "name"), CASES)
def test_a_field_changes_what_it_is_for_and_nothing_else(shape: Any, name: str) -> None:
    value, beside, changes = {**SAMPLED, **OF_CHAT, **OF_TEXT}[name]
    beside = {"max_tokens": 20, **beside}
    expected = {key: tuple(there) if key == "prompt" else there for key, there in changes.items()}
    assert differs(asked(shape(**beside | {name: value})), asked(shape(**beside))) == expected


def test_all_fields_at_once_are_all_there() -> None:
    given = {name: value for name, (value, _, _) in SAMPLED.items() if not name.startswith("guided")}
    there = {key: value for _, _, changes in SAMPLED.values() for key, value in changes.items()}
    found = asked(text_of(**given, logprobs=5))
    assert {field.name for field in fields(EngineRequest)} == {"prompt", "priority", "params", "plain", "adapter"}
    assert {field.name for field in fields(SamplingParams)} == {"top_logprobs", *there} - {"priority"}
    assert found.plain and not asked(chat_of()).plain, "a completion has no place for reasoning"
    assert all_of(found) == {"prompt": found.prompt, **there, "grammar": Grammar("json"), "top_logprobs": 5}


@pytest.mark.parametrize(
    ("server", "fields_", "budget"),
    [
        # No budget of the server: shares of the longest reply, here of 20 tokens.
        (0, {}, None),
        (0, {"reasoning_effort": "none"}, None),
        (0, {"reasoning_effort": "minimal"}, 5),
        (0, {"reasoning_effort": "low"}, 5),
        (0, {"reasoning_effort": "medium"}, 10),
        (0, {"reasoning_effort": "high"}, None),
        # The server's budget is the whole of which the effort takes a share.
        (12, {}, 12),
        (12, {"reasoning_effort": "none"}, None),
        (12, {"reasoning_effort": "low"}, 3),
        (12, {"reasoning_effort": "medium"}, 6),
        (12, {"reasoning_effort": "max"}, 12),
        (1, {"reasoning_effort": "low"}, 1),
        # It leaves room for `</think>` and an answer.
        (19, {}, 18),
        (1000, {}, 18),
        (12, {"max_tokens": 2}, None),
        # The request's own comes first.
        (12, {"think_budget": 15, "reasoning_effort": "low"}, 15),
        (12, {"think_budget": 18}, 18),
        (12, {"think_budget": 19, "thinking": {"type": "disabled"}}, None),
        (12, {"thinking": {"type": "disabled"}}, None),
        (12, {"thinking": {"type": "enabled"}}, 12),
    ],
)
def test_the_budget_of_thinking(server: int, fields_: dict[str, Any], budget: int | None) -> None:
    service = service_of(think_budget=server)
    assert asked(chat_of(service, **{"max_tokens": 20} | fields_)).params.think_budget == budget
    if "think_budget" not in fields_ and not {"reasoning_effort", "thinking"} & {*fields_}:
        assert asked(text_of(service, max_tokens=20)).params.think_budget is None, "a text is not a conversation"


def test_without_a_length_the_context_is_the_longest_reply() -> None:
    ask = asked(chat_of(service_of(), reasoning_effort="medium"))
    assert ask.params.think_budget == (MAX_LEN - len(ask.prompt)) // 2


@pytest.mark.parametrize("tokens", [1, 2])
def test_a_reply_too_short_for_any_budget_is_refused(tokens: int) -> None:
    with pytest.raises(ApiError, match=rf"the reply has at most {tokens} tokens.*answer\. Raise `max_tokens`\."):
        asked(chat_of(max_tokens=tokens, think_budget=1))


def test_a_budget_without_room_for_an_answer_is_refused() -> None:
    with pytest.raises(
        ApiError, match=r"`think_budget` is 19, but the reply has at most 20 tokens.*Set `think_budget` to 18"
    ):
        asked(chat_of(max_tokens=20, think_budget=19))


def known(schema: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in schema.model_fields.items()}


def test_no_field_is_forgotten_here() -> None:
    assert known(ChatRequest) == {*SAMPLED, *OF_CHAT} | OF_THE_ANSWER | {"logprobs", "parallel_tool_calls"}
    assert known(TextRequest) == {*SAMPLED, *OF_TEXT} | OF_THE_ANSWER
    assert known(StreamOptions) == {"include_usage", "include_obfuscation"}
    assert known(TemplateOptions) == {"thinking", "enable_thinking"}
    assert known(ToolFields) == {"tools", "tool_choice", "parallel_tool_calls"}
    values = [str(value) for value, _, _ in SAMPLED.values() if not isinstance(value, bool)]
    assert len(set(values)) == len(values), "a swap of two would not be seen"


def test_without_a_seed_one_is_drawn_and_a_negative_one_is_kept() -> None:
    assert asked(text_of(seed=-1)).params.seed == 2**64 - 1 and asked(text_of(seed=0)).params.seed == 0
    assert len({asked(text_of(seed=None)).params.seed for _ in range(3)}) == 3


def test_what_a_request_does_not_say_the_run_says_field_by_field() -> None:
    said = {"temperature": 0.25, "top_p": 0.5, "top_k": 9, "min_p": 0.125, "repetition_penalty": 1.5}
    assert {*GENERATION} == {*said}
    told = service_of(defaults=replace(SERVER_DEFAULTS, **said))
    assert differs(asked(text_of(told)), asked(text_of())) == said
    assert differs(asked(text_of()), asked(text_of(**dict.fromkeys(said)))) == {}
    nothing = {"temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1}
    for name, value in nothing.items():  # a nought is said, too
        there = {key: getattr(asked(text_of(told, **{name: value})).params, key) for key in said}
        assert there == {**said, name: value}
    assert asked(text_of(told, top_k=-1)).params.top_k == 0, "off, as vLLM has it"


# ---- conversations

LOOK = {"type": "image_url", "image_url": {"url": "http://x/", "detail": "high"}}
PICTURE = ImagePart(image_url=ImageURL(url="http://x/", detail="high"))
TURNS: dict[str, tuple[dict[str, Any], Message]] = {
    "content": ({"role": "user", "content": "a"}, Message("user", "a")),
    "parts": (
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        Message("user", [TextPart(text="a"), TextPart(text="b")]),
    ),
    "a picture": (
        {"role": "user", "content": [{"type": "text", "text": "a"}, LOOK]},
        Message("user", [TextPart(text="a"), PICTURE]),
    ),
    "refusal and empty parts": (
        {"role": "assistant", "content": [{"type": "text", "text": ""}], "refusal": "no"},
        Message("assistant", "no"),
    ),
    "role": ({"role": "system", "content": "a"}, Message("system", "a")),
    "developer": ({"role": "developer", "content": "a"}, Message("system", "a")),
    "reasoning_content": (
        {"role": "assistant", "content": "a", "reasoning_content": "b"},
        Message("assistant", "a", "b"),
    ),
    "tool_calls": (
        {
            "role": "assistant",
            "tool_calls": [
                {"id": f"c{n}", "type": "function", "function": {"name": f"f{n}", "arguments": f'{{"a":{n}}}'}}
                for n in (1, 2)
            ],
        },
        Message("assistant", "", None, (ToolCall("c1", "f1", '{"a":1}'), ToolCall("c2", "f2", '{"a":2}'))),
    ),
    "tool_call_id": (
        {"role": "tool", "content": "a", "tool_call_id": "c2"},
        Message("tool", "a", tool_call_id="c2"),
    ),
    "refusal": ({"role": "assistant", "refusal": "no"}, Message("assistant", "no")),
    "refusal and content": ({"role": "assistant", "content": "a", "refusal": "no"}, Message("assistant", "a")),
}
TEXT_PART = {"type": "text", "text": "What is it?"}
CHANGES_NOTHING = {"name": "me", "parsed": {"a": 1}, "annotations": [], "audio": None, "function_call": None}


@pytest.mark.parametrize("name", TURNS)
def test_a_turn_is_what_the_chat_format_gets(name: str) -> None:
    given, there = TURNS[name]
    assert ChatMessage.model_validate(given).to_message() == there
    assert ChatMessage.model_validate(given | CHANGES_NOTHING).to_message() == there


def test_a_picture_is_for_the_chat_format_to_take() -> None:
    messages = [HELLO, {"role": "assistant", "content": "hi"}, {"role": "user", "content": [TEXT_PART, LOOK]}]
    with pytest.raises(ApiError) as caught:
        chat_of(messages=messages)
    error = caught.value.body()["error"]
    assert (caught.value.status, error["param"], error["code"]) == (400, "messages[2].content[1]", "unsupported_value")
    assert error["message"] == (
        "This model does not accept images: `messages[2].content[1]` is of type 'image_url'. Send parts of type text."
    )


def test_no_field_of_a_turn_is_forgotten_here() -> None:
    assert known(ChatMessage) == {key for given, _ in TURNS.values() for key in given} | {*CHANGES_NOTHING}
    assert (known(TextPart), known(ImagePart), known(RequestToolCall), known(CalledFunction)) == (
        {"type", "text"},
        {"type", "image_url"},
        {"id", "index", "type", "function"},
        {"name", "arguments", "parsed_arguments"},
    )
    assert known(FunctionSpec) == {"name", "description", "parameters", "strict"}


def test_a_function_is_what_the_chat_format_gets() -> None:
    assert ToolSpec.model_validate(ADD).to_tool() == Tool("add", "a + b", SCHEMA)
    assert ToolSpec.model_validate({"type": "function", "function": {"name": "f"}}).to_tool() == Tool("f", "", {})


@pytest.mark.parametrize(
    ("options", "mode"),
    [({"thinking": True}, "on"), ({"thinking": False}, "off"), ({"enable_thinking": True}, "on"), ({"thinking": None}, "auto")],
)  # fmt: skip
def test_either_name_of_the_template_is_heard(options: dict[str, Any], mode: Thinking) -> None:
    expected = CHAT.prompt([Message("user", "hello")], mode)
    assert list(asked(chat_of(chat_template_kwargs=options)).prompt) == expected


# ---- the reader of an answer


def letters(text: str) -> list[int]:
    return CHAT.tokenizer.encode(text)


@pytest.mark.parametrize("shape", [chat_of, text_of])
def test_what_ends_an_answer_reaches_its_reader(shape: Any) -> None:
    def said(text: str, **fields: Any) -> tuple[str, str | None]:
        options = {"chat_template_kwargs": {"thinking": False}} if shape is chat_of else {}
        choice = shape(**options, **fields).new_choice()
        for id_ in letters(text):
            choice.add_token(SampledToken(0, id_))
        choice.add_token(SampledToken(0, CHAT.stop_ids[0], "stop"))
        return choice.content, choice.reason

    [b] = letters("b")
    assert said("abcd") == ("abcd", "stop")
    assert said("abcd", stop="c") == ("ab", "stop") and said("abcd", stop=["d", "b"]) == ("a", "stop")
    assert said("abcb", stop="b", min_tokens=2) == ("abc", "stop")
    assert said("abcd", stop_token_ids=[7, b]) == ("acd", "stop"), "it is not shown"


@pytest.mark.parametrize(("given", "tell"), [({}, None), ({"top_logprobs": 2}, 2), ({"top_logprobs": None}, 0)])
def test_log_probabilities_come_where_they_were_asked_for(given: dict[str, Any], tell: int | None) -> None:
    wanted = {} if tell is None else {"logprobs": True, **given}
    chat, text = chat_of(**wanted), text_of(logprobs=tell)
    [a] = letters("a")
    for shape in (chat, text):
        assert asked(shape).params.top_logprobs == (tell or 0)
        choice = shape.new_choice()
        choice.add_token(SampledToken(0, a, "length", -0.5, ((a, -0.5), (7, -2.0))[: tell or 0]))
        found = shape.complete_choice_json(0, choice)["logprobs"]
        if tell is None:
            assert found is None
        elif shape is chat:
            [entry] = found["content"]
            assert (entry["token"], entry["logprob"], len(entry["top_logprobs"])) == ("a", -0.5, tell)
        else:
            assert (found["tokens"], found["token_logprobs"], len(found["top_logprobs"][0])) == (["a"], [-0.5], tell)


def test_calls_are_one_where_no_more_were_wanted() -> None:
    for parallel in (None, True, False):
        assert chat_of(tools=[ADD], parallel_tool_calls=parallel).new_choice().one_call == (parallel is False)


# ---- limits, to the last one that is allowed


def prepared(service: ModelService, **given: Any) -> list[PackedRequest] | str | None:
    """What the engine is asked for a request of completions, or the parameter that is refused."""
    try:
        return prepare(
            service, TextRequest, TextResponseBuilder, json.dumps({"model": "m", **given}).encode(), "a"
        ).asks
    except ApiError as error:
        return error.param


def asks_of(count: int, service: ModelService | None = None, **given: Any) -> bool:
    """Whether a request is taken, which then has so many prompts."""
    found = prepared(service or service_of(), **given)
    return isinstance(found, list) and len(found) == count


def test_a_prompt_leaves_room_for_one_token_and_an_answer_takes_what_is_left() -> None:
    assert asked(text_of(prompt=[5] * (MAX_LEN - 1))).params.max_tokens == 1
    assert prepared(service_of(), prompt=[5] * MAX_LEN) == "prompt"
    assert asked(text_of(prompt=[5] * 10)).params.max_tokens == MAX_LEN - 10
    assert asked(text_of(prompt=[5] * 10, max_tokens=MAX_LEN)).params.max_tokens == MAX_LEN - 10
    assert asked(text_of(prompt=[5] * 10, min_tokens=MAX_LEN - 10)).params.min_tokens == MAX_LEN - 10
    assert prepared(service_of(), prompt=[5] * 10, min_tokens=MAX_LEN - 9) == "min_tokens"
    assert prepared(service_of(), prompt="a", max_tokens=5, min_tokens=6) == "min_tokens"
    assert asks_of(2, prompt=[[5], [6]]) and prepared(service_of(), prompt=[[5], [6] * MAX_LEN]) == "prompt"


def test_a_token_is_one_of_the_vocabulary() -> None:
    last = CHAT.tokenizer.vocab_size - 1
    assert asks_of(1, prompt=[last], logit_bias={str(last): 1})
    assert prepared(service_of(), prompt=[5, last + 1]) == "prompt"
    assert prepared(service_of(), prompt=[5], logit_bias={"5": 1, str(last + 1): 1}) == "logit_bias"


@pytest.mark.parametrize("prompts", [1, 2])
@pytest.mark.parametrize(
    ("given", "values"),
    [
        ({"prompt_logprobs": 3}, 4),
        ({"prompt_logprobs": 3, "n": 4}, 16),
        ({"echo": True, "logprobs": 1, "n": 4}, 8),
        ({"echo": True, "logprobs": 1, "n": 4, "stream": True}, 8),
        ({"echo": True, "logprobs": 2, "prompt_logprobs": 4, "n": 2}, 16),
    ],
)
def test_log_probabilities_of_prompts_have_a_number(given: dict[str, Any], values: int, prompts: int) -> None:
    """`values`: how many the response has for each token of a prompt, in all choices."""
    service, most = service_of(max_len=MAX_VALUES), MAX_VALUES // (prompts * values)
    full = [[5] * most] * prompts
    assert asks_of(prompts, service, prompt=full, max_tokens=0, **given)
    assert prepared(service, prompt=[*full[1:], [5] * (most + 1)], max_tokens=0, **given) == "prompt"


def test_log_probabilities_of_prompts_and_replies_have_a_number_together() -> None:
    """Two in each of two choices, for each of 100 tokens of the prompt and each token of the reply."""
    service, given = service_of(max_len=MAX_VALUES), {"prompt": [5] * 100, "echo": True, "logprobs": 1, "n": 2}
    most = MAX_VALUES // 4 - 100
    assert asks_of(1, service, max_tokens=most, **given)
    assert prepared(service, max_tokens=most + 1, **given) == "logprobs"
    assert asks_of(1, service, max_tokens=most + 1, stream=True, **given), "a stream holds none of the reply's"
    assert asks_of(1, service, max_tokens=most + 100, **given | {"echo": False})


def test_a_chats_prompt_has_its_log_probabilities_once_for_all_choices() -> None:
    service, most = service_of(max_len=MAX_VALUES), MAX_VALUES // 4

    def taken(tokens: int) -> bool:
        messages = [{"role": "user", "content": "a" * (tokens - len(CHAT.prompt([Message("user", "")])))}]
        body = {"model": "m", "messages": messages, "prompt_logprobs": 3, "n": 4}
        return bool(prepare(service, ChatRequest, ChatResponseBuilder, json.dumps(body).encode(), "a").asks)

    assert taken(most)
    with pytest.raises(ApiError, match="262,148 log-probabilities") as caught:
        taken(most + 1)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(("prompts", "n", "top"), [(1, 1, 0), (1, 4, 1), (2, 2, 1), (1, 1, 3)])
def test_log_probabilities_of_a_whole_answer_have_a_number(prompts: int, n: int, top: int) -> None:
    service = service_of(max_len=2 * MAX_VALUES)
    given = {"prompt": [[5]] * prompts, "n": n, "logprobs": top, "max_tokens": MAX_VALUES // (prompts * n * (1 + top))}
    assert asks_of(prompts, service, **given)
    more = given | {"max_tokens": given["max_tokens"] + 1}
    assert prepared(service, **more) == "logprobs"
    assert asks_of(prompts, service, **more | {"stream": True}), "a stream holds none of them"
    assert asks_of(prompts, service, **more | {"logprobs": None})


def test_several_prompts_together_have_a_number_of_tokens() -> None:
    service, half = service_of(max_len=2 * MAX_VALUES), MAX_VALUES // 2
    text = "a" * (half - 1)  # with the mark before it
    assert asks_of(2, service, prompt=[text, text])
    assert prepared(service, prompt=[text, text + "a"]) == "prompt"
    assert asks_of(1, service, prompt="a" * (MAX_VALUES + 1)), "one may fill the context"


def test_a_request_to_a_model_that_is_not_served_is_refused() -> None:
    assert prepared(service_of(), model="other", prompt="a") == "model"


def test_what_was_ignored_is_named_in_order() -> None:
    found = prepare(
        service_of(), TextRequest, TextResponseBuilder, b'{"model":"m","prompt":"a","user":"x","store":true}', "a"
    )
    assert found.headers == {"x-rorqual-ignored": "store,user"}
    bound = prepare(
        service_of(), TextRequest, TextResponseBuilder, b'{"model":"m","prompt":"a","guided_regex":"a+"}', "a"
    )
    assert (bound.bound, bound.headers) == ("guided_regex", {})
