"""The defaults of a model that was trained for one task: what a chat request gets that sets nothing, and what it may set itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from test_cascade_server import calibration_file
from test_serve_options import told

from rorqual.cli.serving import start_server as start_here
from rorqual.core.errors import ConfigError
from rorqual.core.records import Message, RunDir, TaskDefaults, Thinking
from rorqual.data.chat import load_chat
from rorqual.data.tokenizer import Tokenizer
from rorqual.serve.routes.chat import ChatResponseBuilder
from rorqual.serve.schemas import ChatRequest, parse_request
from rorqual.serve.wire import EngineLimits
from served import running, write_run

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
CHOICES = ["card", "pin"]
LENGTH = 7
"""More tokens than a choice has, and fewer than a reply of the random model without a grammar."""
TOOL = {"type": "function", "function": {"name": "size", "parameters": {"type": "object", "properties": {}}}}
QUESTION = "where is my card"


def write_defaults(run: Path, **data: Any) -> None:
    RunDir(run).task_defaults_file.write_text(json.dumps(data), encoding="utf-8")


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("taught") / "taught")
    grammar = {"kind": "choice", "source": json.dumps(CHOICES)}
    write_defaults(run, thinking="off", max_tokens=LENGTH, grammar=grammar)
    return run


@pytest.fixture(scope="module")
def http(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with running(taught, tmp_path_factory.mktemp("server"), "slots=2", "ui=false") as server, server.client as client:
        yield client


def ask(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    """The reply's message, with its finish reason and its numbers of tokens."""
    body = {"model": "taught", "messages": [{"role": "user", "content": QUESTION}], "seed": 3, **fields}
    reply = http.post(CHAT, json=body)
    assert reply.status_code == 200, reply.text
    [choice] = reply.json()["choices"]
    return {**choice["message"], **reply.json()["usage"], "finish_reason": choice["finish_reason"]}


def n_prompt(run: Path, thinking: Thinking) -> int:
    chat = load_chat(RunDir(run), Tokenizer.load(RunDir(run).tokenizer_file))
    return len(chat.prompt([Message("user", QUESTION)], thinking))


def test_the_grammar_of_the_run_applies_to_a_request_without_a_form(http: httpx.Client) -> None:
    found = [
        ask(http, seed=seed, **more) for seed in range(4) for more in ({}, {"tools": []}, {"response_format": None})
    ]
    assert {one["content"] for one in found} <= {*CHOICES}
    assert {one["finish_reason"] for one in found} == {"stop"}
    assert {one["content"] for one in (ask(http, seed=seed) for seed in range(8))} == {*CHOICES}


@pytest.mark.parametrize("free", [{"response_format": {"type": "text"}}, {"tools": [TOOL], "tool_choice": "none"}])
def test_a_request_may_switch_the_grammar_off(http: httpx.Client, free: dict[str, Any]) -> None:
    found = ask(http, **free)
    assert found["content"] not in CHOICES and found["completion_tokens"] == LENGTH
    assert found["finish_reason"] == "length", "the other defaults still apply"


@pytest.mark.parametrize(
    ("own", "content"),
    [
        ({"guided_choice": ["no"]}, "no"),
        ({"guided_regex": "x{3}"}, "xxx"),
        ({"guided_json": {"const": 5}}, "5"),
    ],
)
def test_the_form_of_a_request_comes_first(http: httpx.Client, own: dict[str, Any], content: str) -> None:
    assert ask(http, **own)["content"] == content


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_length_of_a_request_comes_first(http: httpx.Client, name: str) -> None:
    text = {"response_format": {"type": "text"}}
    for length in (LENGTH - 2, LENGTH + 2):
        found = ask(http, **text, **{name: length})
        assert (found["completion_tokens"], found["finish_reason"]) == (length, "length")
    assert ask(http, **text)["completion_tokens"] == LENGTH


def test_the_thinking_of_a_request_comes_first(http: httpx.Client, taught: Path) -> None:
    off, on = n_prompt(taught, "off"), n_prompt(taught, "on")
    assert n_prompt(taught, "auto") < off == on
    silent = ask(http)
    assert silent["prompt_tokens"] == off and "reasoning_content" not in silent
    for own in (
        {"reasoning_effort": "high"},
        {"thinking": {"type": "enabled"}},
        {"chat_template_kwargs": {"thinking": True}},
    ):
        thought = ask(http, **own, max_tokens=40, think_budget=5)
        assert thought["reasoning_content"] and thought["content"] in CHOICES, "the grammar applies after the thought"
    assert ask(http, chat_template_kwargs={}) == silent, "this says nothing about thinking"


DEFAULTS: list[tuple[str, Any, list[tuple[dict[str, Any], Any]]]] = [
    # a key of the file, its value, and what requests give with it
    *(
        ("thinking", mode, [({}, mode or "auto"), ({"reasoning_effort": "none"}, "off"), ({"reasoning_effort": "low"}, "on")])
        for mode in ("on", "off", "auto", None)
    ),
    *(
        ("temperature", value, [({}, there), ({"temperature": 0.75}, 0.75), ({"temperature": 0}, 0.0), ({"top_p": 0.5}, there)])
        for value, there in ((0, 0.0), (0.5, 0.5), (None, 1.0))
    ),
    *(
        ("calculator", value, [({}, bool(value)), ({"calculator": True}, True), ({"calculator": False}, False)])
        for value in (True, False, None)
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "requests"), DEFAULTS)
def test_a_key_of_the_file_is_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: Any, requests: list[tuple[dict[str, Any], Any]]
) -> None:
    copy = write_run(tmp_path / "tiny")
    write_defaults(copy, **({} if value is None else {name: value}))
    service = told(copy, [f"keys={tmp_path / 'keys'}"], monkeypatch)[0].service
    service.bridge.info = EngineLimits(4096, service.chat.tokenizer.vocab_size)
    body: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": QUESTION}]}
    for own, there in requests:
        [asked] = ChatResponseBuilder(
            service, parse_request(ChatRequest, json.dumps(body | own).encode())[0]
        ).engine_requests()
        if name == "thinking":
            assert list(asked.prompt) == service.chat.prompt([Message("user", QUESTION)], there)
        else:
            assert getattr(asked.params, name) == there
    if name == "temperature":
        assert service.model_cards("default")[0]["temperature"] == requests[0][1], "the page shows it"


def test_an_invalid_file_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, keys = write_run(tmp_path / "tiny"), tmp_path / "keys.json"
    write_defaults(run, max_tokens=0)
    with pytest.raises(ConfigError, match=r"defaults\.json: key 'max_tokens'"):
        start_here(str(run), ["port=0", f"keys={keys}"])
    assert not keys.exists()
    write_defaults(run, max_tokens=1)
    assert told(run, [f"keys={keys}"], monkeypatch)[0].service.task == TaskDefaults(max_tokens=1)


def test_a_cascade_has_the_defaults_of_neither_model(
    taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_run(tmp_path / "other", head_dim=16)
    write_defaults(other, max_tokens=3)
    file = calibration_file(tmp_path / "c.json", taught, other)
    words = [f"calibration={file}", f"keys={tmp_path / 'keys'}"]
    service = told(Path(f"cascade={taught},{other}"), words, monkeypatch)[0].service
    assert service.teacher is not None and service.task == service.teacher.service.task == TaskDefaults()
    assert told(taught, words[1:], monkeypatch)[0].service.task.max_tokens == LENGTH
