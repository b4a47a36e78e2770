"""Clients as people have them, against a real server: OpenAI's for Python and for Node, lm-eval, our own `eval`, schemathesis."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from caller import ANSWER, ARGUMENTS, NAME, QUESTION, RESULT, SPEC, write_caller

from rorqual.core.records import Message
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.engine import Engine
from rorqual.engine.request import Grammar, Request, SamplingParams
from served import Server, running, write_run

CLIENTS = Path(__file__).parent / "clients"
HELLO: list[Any] = [{"role": "user", "content": "hello"}]
AT_ONCE = {"chat_template_kwargs": {"thinking": False}}


def openai_client(server: Server) -> openai.OpenAI:
    http = httpx.Client(trust_env=False, timeout=600)
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, http_client=http, max_retries=0)


@pytest.fixture(scope="session")
def client(server: Server) -> openai.OpenAI:
    return openai_client(server)


@pytest.fixture(scope="session")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("caller")
    with running(write_caller(folder / "caller"), folder, "ui=false") as found:
        yield found


def environment(**values: str) -> dict[str, str]:
    """Ours, with loopback asked directly."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return kept | {"NO_PROXY": "127.0.0.1", "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"} | values


# ---- tools


def test_a_tool_is_called_and_its_result_answered(caller: Server) -> None:
    client = openai_client(caller)
    given: dict[str, Any] = {
        "model": "caller",
        "temperature": 0,
        "max_tokens": 80,
        "tools": [SPEC],
        "extra_body": AT_ONCE,
    }
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    first = client.chat.completions.create(messages=messages, **given).choices[0]
    assert first.finish_reason == "tool_calls"
    assert first.message.content is None
    [call] = first.message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == (NAME, json.loads(ARGUMENTS))
    result = {"role": "tool", "tool_call_id": call.id, "content": RESULT}
    second = client.chat.completions.create(messages=[*messages, first.message, result], **given).choices[0]
    assert (second.message.content, second.finish_reason, second.message.tool_calls) == (ANSWER, "stop", None)


def test_a_streamed_call_is_the_whole_one(caller: Server) -> None:
    client = openai_client(caller)
    given: dict[str, Any] = {
        "model": "caller",
        "temperature": 0,
        "max_tokens": 80,
        "tools": [SPEC],
        "extra_body": AT_ONCE,
    }
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    name, arguments, ids, reasons, content = "", "", [], [], ""
    for chunk in client.chat.completions.create(messages=messages, stream=True, **given):
        for choice in chunk.choices:
            content += choice.delta.content or ""
            reasons += [choice.finish_reason] if choice.finish_reason else []
            for delta in choice.delta.tool_calls or ():
                assert delta.index == 0 and delta.function is not None
                ids += [delta.id] if delta.id else []
                name += delta.function.name or ""
                arguments += delta.function.arguments or ""
    assert (name, arguments, reasons, content, len(ids)) == (NAME, ARGUMENTS, ["tool_calls"], "", 1)


def test_what_the_clients_helpers_give_goes_back_as_it_is(caller: Server) -> None:
    """`stream()` and `parse()` of openai's client add fields of their own to the message that the next request sends."""
    client = openai_client(caller)
    given: dict[str, Any] = {"model": "caller", "temperature": 0, "max_tokens": 80, "extra_body": AT_ONCE}
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    with client.chat.completions.stream(messages=messages, tools=[SPEC], **given) as stream:
        streamed = stream.get_final_completion().choices[0].message
    strict = {**SPEC, "function": {**SPEC["function"], "strict": True}}
    parsed = client.chat.completions.parse(messages=messages, tools=[strict], **given).choices[0].message
    for said in (streamed, parsed):
        [call] = said.tool_calls or []
        result = {"role": "tool", "tool_call_id": call.id, "content": RESULT}
        second = client.chat.completions.create(messages=[*messages, said, result], tools=[SPEC], **given)
        assert second.choices[0].message.content == ANSWER


def test_without_tools_or_with_none_to_be_called_nothing_is_read_as_a_call(caller: Server) -> None:
    client = openai_client(caller)
    none = client.chat.completions.create(
        model="caller", messages=[{"role": "user", "content": QUESTION}], tools=[SPEC], tool_choice="none", max_tokens=8,
        extra_body=AT_ONCE,
    )  # fmt: skip
    assert none.choices[0].message.tool_calls is None
    assert none.usage is not None
    bare = client.chat.completions.create(
        model="caller", messages=[{"role": "user", "content": QUESTION}], max_tokens=8, extra_body=AT_ONCE
    )
    assert bare.usage is not None and bare.usage.prompt_tokens == none.usage.prompt_tokens  # the tools were not shown


SIZE: dict[str, Any] = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "kind": {"enum": ["whale", "seal"]}},
    "required": ["n", "kind"],
    "additionalProperties": False,
}
OTHER: dict[str, Any] = {"type": "function", "function": {"name": "size", "parameters": SIZE}}
BARE: dict[str, Any] = {"type": "function", "function": {"name": "now"}}


def named(name: str) -> Any:
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("choice", ["required", named("size"), named("now")])
def test_a_model_of_random_weights_must_call_whole_and_streamed(
    client: openai.OpenAI, choice: Any, thinking: bool
) -> None:
    kept: dict[str, Any] = {"thinking": thinking}
    given: dict[str, Any] = {
        "model": "tiny", "messages": HELLO, "tools": [OTHER, BARE], "tool_choice": choice, "temperature": 1, "seed": 3,
        "parallel_tool_calls": False, "max_tokens": 3000, "logit_bias": {"6": 4 if thinking else 0},
        "extra_body": {"chat_template_kwargs": kept},
    }  # fmt: skip
    whole = client.chat.completions.create(**given).choices[0]
    assert whole.finish_reason == "tool_calls", whole
    assert whole.message.content is None
    assert bool(getattr(whole.message, "reasoning_content", "")) == thinking
    [call] = whole.message.tool_calls or []
    assert call.type == "function"
    if choice != "required":
        assert call.function.name == choice["function"]["name"]
    arguments = json.loads(call.function.arguments)
    jsonschema.validate(arguments, SIZE if call.function.name == "size" else {"const": {}})
    streamed, reasons = "", []
    for chunk in client.chat.completions.create(stream=True, **given):
        reasons += [part.finish_reason for part in chunk.choices if part.finish_reason]
        for part in chunk.choices:
            assert not part.delta.content
            streamed += "".join(
                delta.function.arguments or "" for delta in part.delta.tool_calls or () if delta.function
            )
    assert (streamed, reasons) == (call.function.arguments, ["tool_calls"])


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Of a family whose calls begin with a token of their own."""
    folder = tmp_path_factory.mktemp("qwen")
    tokenizer = Tokenizer.load(CLIENTS.parents[1] / "data" / "chat" / "golden" / "tokenizer-qwen.json")
    with running(write_run(folder / "qwen", tokenizer=tokenizer, chat="qwen3"), folder, "ui=false") as found:
        yield found


def test_json_that_may_be_calls_is_one_or_the_other_whole_and_streamed(qwen: Server, client: openai.OpenAI) -> None:
    """What an agent sends: tools, and the form of its last answer."""
    asked, seen = openai_client(qwen), set[str]()
    form: Any = {"type": "json_schema", "json_schema": {"name": "size", "schema": SIZE, "strict": True}}
    for seed in range(12):
        given: dict[str, Any] = {
            "model": "qwen", "messages": HELLO, "tools": [OTHER, BARE], "response_format": form, "temperature": 1.5, "seed": seed,
            "max_tokens": 500, "extra_body": {"chat_template_kwargs": {"enable_thinking": False}},
        }  # fmt: skip
        whole = asked.chat.completions.create(**given).choices[0]
        seen.add(whole.finish_reason)
        content, calls = "", dict[int, str]()
        for chunk in asked.chat.completions.create(stream=True, **given):
            for part in chunk.choices:
                content += part.delta.content or ""
                for delta in part.delta.tool_calls or ():
                    calls[delta.index] = calls.get(delta.index, "") + (
                        (delta.function and delta.function.arguments) or ""
                    )
        assert content == (whole.message.content or "")
        assert list(calls.values()) == [
            one.function.arguments for one in whole.message.tool_calls or () if one.type == "function"
        ]
        if whole.finish_reason == "stop":
            assert not whole.message.tool_calls
            jsonschema.validate(json.loads(content), SIZE)
        elif whole.finish_reason == "tool_calls":
            assert whole.message.content is None and whole.message.tool_calls
            for one in whole.message.tool_calls:
                assert one.type == "function"
                jsonschema.validate(
                    json.loads(one.function.arguments), SIZE if one.function.name == "size" else {"const": {}}
                )
    assert {"stop", "tool_calls"} <= seen
    # Where calls are spelt out as text, a text of JSON could hold one.
    with pytest.raises(openai.BadRequestError, match="without a special token"):
        client.chat.completions.create(model="tiny", messages=HELLO, tools=[OTHER], response_format=form, max_tokens=8)
    with pytest.raises(openai.BadRequestError, match="`tools` cannot be combined with `guided_regex`"):
        asked.chat.completions.create(
            model="qwen", messages=HELLO, tools=[OTHER], extra_body={"guided_regex": "a+"}, max_tokens=8
        )


def test_a_forced_call_that_is_cut_off_is_none_and_says_length(client: openai.OpenAI) -> None:
    cut = client.chat.completions.create(
        model="tiny", messages=HELLO, tools=[OTHER], tool_choice="required", max_tokens=12, extra_body=AT_ONCE
    ).choices[0]
    assert (cut.finish_reason, cut.message.tool_calls) == ("length", None)


# ---- JSON and other grammars

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}, "kind": {"enum": ["whale", "seal"]}},
    "required": ["age", "kind"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_an_answer_matches_its_schema_whole_and_streamed(run: Path, client: openai.OpenAI, seed: int) -> None:
    schema = {"name": "person", "schema": PERSON}
    given: dict[str, Any] = {
        "model": "tiny", "messages": HELLO, "temperature": 1, "seed": seed, "max_tokens": 80, "extra_body": AT_ONCE,
        "response_format": {"type": "json_schema", "json_schema": schema},
    }  # fmt: skip
    whole = client.chat.completions.create(**given).choices[0]
    found = json.loads(whole.message.content or "")
    assert set(found) == {"age", "kind"} and 0 <= found["age"] <= 99 and found["kind"] in ("whale", "seal")
    streamed = client.chat.completions.create(**given, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == whole.message.content
    params = SamplingParams(80, 1.0, seed=seed, grammar=Grammar("json_schema", json.dumps(PERSON)))
    engine = Engine(run, record_experts=False, slots=1, backend="auto")
    [[alone]] = engine.generate([Request((Message("user", "hello"),), params, "off")])
    assert (whole.message.content, whole.finish_reason) == (alone.text, alone.finish_reason)


# ---- log-probabilities


def test_log_probabilities_are_the_engines_whole_and_streamed(run: Path, client: openai.OpenAI) -> None:
    given: dict[str, Any] = {
        "model": "tiny", "messages": HELLO, "temperature": 0.8, "seed": 6, "max_tokens": 12, "logprobs": True,
        "top_logprobs": 3, "extra_body": AT_ONCE,
    }  # fmt: skip
    whole = client.chat.completions.create(**given).choices[0]
    assert whole.logprobs is not None and whole.logprobs.content is not None
    streamed = []
    for chunk in client.chat.completions.create(**given, stream=True):
        told = chunk.choices[0].logprobs
        streamed += (told.content or []) if told is not None else []
    assert streamed == whole.logprobs.content
    engine = Engine(run, record_experts=False, slots=1, backend="auto")
    params = SamplingParams(12, 0.8, seed=6, top_logprobs=3)
    [[alone]] = engine.generate([Request((Message("user", "hello"),), params, "off")])
    told = whole.logprobs.content
    assert [entry.logprob for entry in told] == alone.logprobs
    assert [bytes(entry.bytes or ()) for entry in told] == [
        engine.tokenizer.token_bytes(id_) for id_ in alone.token_ids
    ]
    assert alone.top_logprobs is not None
    assert [[top.logprob for top in entry.top_logprobs] for entry in told] == [
        [value for _, value in row] for row in alone.top_logprobs
    ]


def test_several_prompts_are_answered_as_each_alone(client: openai.OpenAI) -> None:
    given: dict[str, Any] = {"model": "tiny", "max_tokens": 6, "temperature": 1, "seed": 3, "n": 2, "logprobs": 1}
    both = client.completions.create(prompt=["one", "two"], **given).choices
    assert [choice.index for choice in both] == [0, 1, 2, 3]
    for start_at, prompt in ((0, "one"), (2, "two")):
        alone = client.completions.create(prompt=prompt, **given).choices
        for here, there in zip(both[start_at : start_at + 2], alone):
            assert (here.text, here.logprobs) == (there.text, there.logprobs)
    pieces = dict.fromkeys(range(4), "")
    for chunk in client.completions.create(prompt=["one", "two"], echo=True, stream=True, **given | {"logprobs": None}):
        pieces[chunk.choices[0].index] += chunk.choices[0].text
    assert list(pieces.values()) == [prompt + choice.text for prompt, choice in zip(("one", "one", "two", "two"), both)]


def test_a_prompt_that_was_seen_is_a_hit_of_its_own_tenant(server: Server) -> None:
    body = {"model": "tiny", "prompt": list(range(7, 207)), "max_tokens": 1}
    with server.client as client:
        first, second = (client.post("/v1/completions", json=body).json()["usage"] for _ in range(2))
        assert first["prompt_cache_hit_tokens"] == 0
        assert 128 <= second["prompt_cache_hit_tokens"] < 200
        assert second["prompt_cache_hit_tokens"] + second["prompt_cache_miss_tokens"] == 200
        text = client.get("/metrics").text
    assert re.search(r'rorqual_tokens_total\{tenant="default",kind="prompt_hit"\} [1-9]', text)
    assert 0 < server.metric("prompt_hit_ratio") < 1


# ---- others' programs


@pytest.mark.browser
def test_openai_for_node(caller: Server, tmp_path: Path) -> None:
    npm, node = shutil.which("npm"), shutil.which("node")
    assert npm and node, "npm and node are needed: apt-get install npm"
    shutil.copy(CLIENTS / "two_rounds.mjs", tmp_path)
    (tmp_path / "package.json").write_text('{"private": true, "type": "module"}', encoding="utf-8")
    installed = subprocess.run(
        [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "openai@^6"],
        cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=False, timeout=300,
    )  # fmt: skip
    assert installed.returncode == 0, (
        f"npm could not install `openai`; is a registry within reach? {installed.stderr[-2000:]}"
    )
    done = subprocess.run(
        [node, "two_rounds.mjs", f"{caller.url}/v1", caller.key, QUESTION, json.dumps(SPEC)],
        cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=False, timeout=600, env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(json.loads(found.pop("json"))["ok"], bool)
    call = {"name": NAME, "arguments": ARGUMENTS}
    assert found == {
        "calls": [call], "finish_reason": "tool_calls", "parts": {"0": call}, "ended": "tool_calls", "answer": ANSWER,
        "refused": {"status": 400, "param": "n", "kind": "BadRequestError"}, "models": ["caller"],
    }  # fmt: skip


def test_our_own_eval_finds_the_same_over_the_address_and_in_the_run(run: Path, server: Server, tmp_path: Path) -> None:
    settings = ("task=families:add", "count=6", "max_tokens=24", "thinking=off", "seed=3")
    answers = []
    for model, extra in ((f"{server.url}/v1", ("model=tiny",)), (str(run), ())):
        out = tmp_path / f"{len(answers)}.json"
        done = subprocess.run(
            [sys.executable, "-m", "rorqual", "eval", model, *settings, *extra, f"out={out}"],
            capture_output=True, text=True, encoding="utf-8", check=False, env=environment(RORQUAL_API_KEY=server.key),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(out.read_text(encoding="utf-8")))
    there, here = (answer["samples"] for answer in answers)
    assert [without_counts(row) for row in there] == [without_counts(row) for row in here]
    assert len(here) == 6 and any(row["reply"] for row in here)


def without_counts(sample: dict[str, Any]) -> dict[str, Any]:
    """What was asked, said, and judged: a client does not see tokens and log-probabilities, and counts another way."""
    return {name: value for name, value in sample.items() if "tokens" not in name and name != "logprob"}
