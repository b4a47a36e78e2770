"""Fields of other servers' APIs: ignored and named where they change nothing, refused with a reason where they would change the answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rorqual.serve import unsupported_fields as fields
from rorqual.serve.errors import ApiError
from rorqual.serve.schemas import ChatRequest, GenerationRequest, TextRequest, parse_request
from served import Server

HELLO = [{"role": "user", "content": "hello"}]
ROUTES: dict[str, tuple[type[GenerationRequest], dict[str, Any]]] = {
    "chat": (ChatRequest, {"model": "m", "messages": HELLO}),
    "completions": (TextRequest, {"model": "m", "prompt": "hello"}),
}
NOTHING: dict[str, dict[str, Any]] = {
    "OpenAI": {
        "user": "me", "store": True, "metadata": {"a": "b"}, "service_tier": "flex", "safety_identifier": "x",
        "prompt_cache_key": "k", "prompt_cache_retention": "24h", "parallel_tool_calls": True, "modalities": ["text"],
        "verbosity": "medium", "functions": [], "function_call": "none", "best_of": 1, "suffix": "",
    },
    "vLLM": {
        "request_id": "r", "cache_salt": "s", "use_beam_search": False, "length_penalty": 1.0, "skip_special_tokens": True,
        "spaces_between_special_tokens": True, "include_stop_str_in_output": False, "add_generation_prompt": True,
        "continue_final_message": False, "return_tokens_as_token_ids": False, "guided_decoding_backend": "xgrammar",
        "include_reasoning": True, "bad_words": [], "mm_processor_kwargs": {"a": 1}, "truncation_side": "left",
    },
    "llama.cpp": {
        "cache_prompt": True, "id_slot": -1, "n_probs": 0, "n_keep": 5, "n_predict": -1, "typical_p": 1.0, "mirostat": 0,
        "mirostat_tau": 5.0, "repeat_penalty": 1.0, "timings_per_token": False, "dry_multiplier": 0.0, "dry_base": 1.75,
        "xtc_probability": 0, "t_max_predict_ms": 0, "samplers": None, "speculative.n_max": 16, "top_n_sigma": -1.0,
        "reasoning_format": "auto",
    },
}  # fmt: skip
CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "modalities": ({"modalities": ["text", "audio"]}, "only text"),
    "verbosity": ({"verbosity": "low"}, "length you want"),
    "suffix": ({"suffix": "x"}, "middle"),
    "best_of": ({"best_of": 2}, "use n"),
    "prediction": ({"prediction": {"type": "content", "content": "x"}}, "predicted"),
    "use_beam_search": ({"use_beam_search": True}, "beam search"),
    "include_stop_str_in_output": ({"include_stop_str_in_output": True}, "stop string"),
    "bad_words": ({"bad_words": ["x"]}, "logit_bias"),
    "allowed_token_ids": ({"allowed_token_ids": [1]}, "logit_bias"),
    "truncate_prompt_tokens": ({"truncate_prompt_tokens": 5}, "never truncated"),
    "structured_outputs": ({"structured_outputs": {"regex": "a"}}, "guided_regex"),
    "n_probs": ({"n_probs": 3}, "logprobs"),
    "n_probs true": ({"n_probs": True}, "logprobs"),
    "n_predict": ({"n_predict": 7}, "max_tokens"),
    "mirostat": ({"mirostat": 2}, "top_p"),
    "typical_p": ({"typical_p": 0.9}, "top_p"),
    "repeat_penalty": ({"repeat_penalty": 1.1}, "repetition_penalty"),
    "samplers": ({"samplers": ["top_k"]}, "order"),
    "grammar": ({"grammar": "root ::= x"}, "guided_regex"),
    "lora": ({"lora": [{"id": 0, "scale": 1}]}, "merged"),
    "t_max_predict_ms": ({"t_max_predict_ms": 50}, "max_tokens"),
    "max_new_tokens": ({"max_new_tokens": 5}, "max_tokens"),
}


def asked(route: str, **given: Any) -> tuple[GenerationRequest, list[str]]:
    cls, base = ROUTES[route]
    return parse_request(cls, json.dumps(base | given).encode())


@pytest.mark.parametrize("api", NOTHING)
@pytest.mark.parametrize("route", ROUTES)
def test_what_changes_nothing_is_ignored_and_named(route: str, api: str) -> None:
    given = NOTHING[api]
    found, ignored = asked(route, **given)
    assert set(ignored) == {name for name, value in given.items() if value is not None}
    assert found == asked(route)[0] or found == asked(route, parallel_tool_calls=True)[0]


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("route", ROUTES)
def test_what_would_change_the_answer_is_refused_with_a_reason(route: str, name: str) -> None:
    given, reason = CHANGES[name]
    with pytest.raises(ApiError) as caught:
        asked(route, **given)
    [field] = given
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, field, "unsupported_parameter")
    assert f"`{field}` is not supported: " in caught.value.message and reason in caught.value.message


def test_parallel_calls_are_named_only_where_they_change_nothing() -> None:
    request, ignored = asked("chat", parallel_tool_calls=False)
    assert isinstance(request, ChatRequest) and request.parallel_tool_calls is False and ignored == []
    assert asked("completions", parallel_tool_calls=False)[1] == ["parallel_tool_calls"]


def test_what_belongs_to_the_other_route_is_refused_by_its_name() -> None:
    for route, given, other in (
        ("chat", {"prompt": "x"}, "/v1/completions"),
        ("chat", {"echo": True}, "/v1/completions"),
        ("completions", {"messages": HELLO}, "/v1/chat/completions"),
        ("completions", {"tool_choice": "required"}, "/v1/chat/completions"),
        ("completions", {"max_completion_tokens": 4}, "max_tokens"),
        ("completions", {"top_logprobs": 2}, "logprobs"),
        ("completions", {"chat_template_kwargs": {"thinking": True}}, "/v1/chat/completions"),
    ):
        with pytest.raises(ApiError, match=other):
            asked(route, **given)
    assert asked("chat", echo=False)[1] == ["echo"]
    assert asked("completions", tools=[], tool_choice="none", top_logprobs=0)[1] == [
        "tool_choice",
        "tools",
        "top_logprobs",
    ]


def test_what_changes_nothing_within_a_request_is_named_without_its_number() -> None:
    call = {
        "id": "c",
        "index": 0,
        "type": "function",
        "function": {"name": "add", "arguments": "{}", "parsed_arguments": {}},
    }
    part = {"type": "text", "text": "x", "prompt_cache_breakpoint": {"mode": "explicit"}}
    said = {
        "role": "assistant",
        "content": None,
        "tool_calls": [call],
        "annotations": [],
        "audio": None,
        "prefix": False,
    }
    tool = {"type": "function", "function": {"name": "add", "strict": True}, "defer_loading": False}
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": {}, "strict": False, "description": "d"}}
    request, ignored = asked(
        "chat",
        messages=[{"role": "user", "name": "Ann", "content": [part, part]}, said, {"role": "user", "name": "Bo", "content": "x"}],
        tools=[tool],
        response_format=form,
        stream=True,
        stream_options={"include_usage": True, "include_obfuscation": False, "continuous_usage_stats": False},
        chat_template_kwargs={"thinking": True, "add_generation_prompt": True},
    )  # fmt: skip
    assert ignored == [
        "chat_template_kwargs.add_generation_prompt", "messages[].annotations", "messages[].content[].prompt_cache_breakpoint",
        "messages[].name", "messages[].prefix", "messages[].tool_calls[].function.parsed_arguments", "messages[].tool_calls[].index",
        "response_format.json_schema.description", "response_format.json_schema.strict", "stream_options.continuous_usage_stats",
        "stream_options.include_obfuscation", "tools[].defer_loading", "tools[].function.strict",
    ]  # fmt: skip
    assert isinstance(request, ChatRequest) and request.thinking == "on" and len(request.messages) == 3


def test_a_schemas_own_words_are_not_taken_for_fields() -> None:
    """A property may be called `user`, or `strict`."""
    schema = {"type": "object", "properties": {"user": {"type": "string"}, "strict": {"type": "boolean"}}, "strict": 5}
    tool = {"type": "function", "function": {"name": "add", "parameters": schema}}
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    request, ignored = asked("chat", tools=[tool], response_format=form)
    assert ignored == [] and isinstance(request, ChatRequest) and request.response_format is not None
    assert (
        request.tools is not None and request.tools[0].function.parameters == schema == request.response_format.schema_
    )


def test_every_field_of_openais_client_is_known() -> None:
    """Each parameter that the client's own types list is taken, ignored or refused with a reason."""
    from openai.types.chat.completion_create_params import CompletionCreateParamsBase as Chat
    from openai.types.completion_create_params import CompletionCreateParamsBase as Text

    for route, theirs, cls in (("chat", Chat, ChatRequest), ("completions", Text, TextRequest)):
        names = {field.alias or name for name, field in cls.model_fields.items()}
        rules = {**fields.TOP, **fields.ROUTES["chat" if route == "chat" else "completions"]}
        assert set(theirs.__annotations__) <= names | rules.keys() | fields.IGNORED
        assert not names & (rules.keys() - {"parallel_tool_calls"}) and not names & fields.IGNORED


def test_the_header_names_what_was_ignored(server: Server) -> None:
    for route, base in (("chat/completions", {"messages": HELLO}), ("completions", {"prompt": "hello"})):
        body = base | {"model": "tiny", "max_tokens": 2, "user": "me", "n_probs": 0, "cache_prompt": False}
        with server.client as client:
            for stream in (False, True):
                answer = client.post(f"/v1/{route}", json=body | {"stream": stream})
                assert answer.status_code == 200, answer.text
                assert answer.headers.get("x-rorqual-ignored") == "cache_prompt,n_probs,user"
            refused = client.post(f"/v1/{route}", json=body | {"temprature": 1})
            assert refused.status_code == 400 and "Did you mean 'temperature'?" in refused.json()["error"]["message"]
