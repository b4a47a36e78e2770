"""A real server on loopback: OpenAI's own client, keys, clients that leave, an engine that is killed, a graceful stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest

from rorqual.core.records import Message
from rorqual.engine.engine import Engine
from rorqual.engine.remote.engine import RemoteEngine
from rorqual.engine.request import Request, SamplingParams
from rorqual.serve.app import LIVEZ, create_app
from served import CONTEXT, ENDLESS, Server, command, running, start, write_run

HELLO = [{"role": "user", "content": "hello"}]
LONG = {"model": "tiny", "messages": HELLO, "temperature": 1, "seed": 1, "chat_template_kwargs": {"thinking": False}}
CLOSED = 60
ROUTES = (
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tiny"),
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
)
ROLLOUT = (("POST", "/rollout/generate"), ("GET", "/rollout/weights"), ("POST", "/rollout/weights"))
"""With `rollout_dir=` alone, and with a key of their own: tests/serve/test_rollout.py."""
OPEN = (("GET", "/livez"),)
"""The one route without a key: it says nothing."""


def chat_body(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": HELLO, "max_tokens": 8, "seed": 1} | fields


def events_of(text: str) -> list[Any]:
    return [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: {")]


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    http = httpx.Client(trust_env=False, timeout=600)
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, http_client=http, max_retries=0)


# ---- answers


@pytest.mark.parametrize("thinking", [None, True, False])
def test_pieces_joined_are_the_whole_and_what_the_engine_says(
    run: Path, client: openai.OpenAI, thinking: bool | None
) -> None:
    options = {} if thinking is None else {"chat_template_kwargs": {"thinking": thinking}}
    given: dict[str, Any] = {
        "model": "tiny",
        "messages": HELLO,
        "max_tokens": 40,
        "seed": 5,
        "n": 2,
        "temperature": 0.9,
    }
    whole = client.chat.completions.create(**given, extra_body=options)
    parts: dict[tuple[int, str], str] = {}
    reasons: dict[int, str] = {}
    usage = None
    stream = client.chat.completions.create(
        **given, stream=True, stream_options={"include_usage": True}, extra_body=options
    )
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            for name in ("content", "reasoning_content"):
                parts[choice.index, name] = parts.get((choice.index, name), "") + (
                    getattr(choice.delta, name, None) or ""
                )
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    engine = Engine(run, record_experts=False, slots=2)
    mode = "auto" if thinking is None else "on" if thinking else "off"
    prompt = tuple(engine.chat.prompt([Message("user", "hello")], mode))
    params = SamplingParams(max_tokens=40, seed=5, n=2, temperature=0.9)
    [alone] = engine.generate([Request(prompt_ids=prompt, params=params)])
    for choice, completion in zip(whole.choices, alone):
        reasoning = getattr(choice.message, "reasoning_content", None)
        assert (choice.message.content, reasoning) == (completion.text, completion.reasoning)
        assert parts[choice.index, "content"] == completion.text
        assert parts[choice.index, "reasoning_content"] == (reasoning or "")
        assert reasons[choice.index] == choice.finish_reason == completion.finish_reason
    assert usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.completion_tokens == sum(len(completion.token_ids) for completion in alone)
    assert whole.usage.prompt_tokens == len(prompt)


def test_usage_adds_up(client: openai.OpenAI) -> None:
    usage = client.chat.completions.create(
        **chat_body(n=3, extra_body={"chat_template_kwargs": {"thinking": True}})
    ).usage
    assert usage is not None
    extra = usage.model_extra or {}
    assert extra["prompt_cache_hit_tokens"] + extra["prompt_cache_miss_tokens"] == usage.prompt_tokens
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens_details is not None
    assert 0 < (usage.completion_tokens_details.reasoning_tokens or 0) <= usage.completion_tokens


def test_where_no_length_is_named_an_answer_may_fill_what_is_left_of_the_context(client: openai.OpenAI) -> None:
    prompt = [65] * (CONTEXT - 5)
    for named, there in (({}, 5), ({"max_tokens": None}, 5), ({"max_tokens": 3}, 3)):
        given: dict[str, Any] = {"model": "tiny", "prompt": prompt, "extra_body": {"ignore_eos": True}, **named}
        answer = client.completions.create(**given)
        assert answer.usage is not None and answer.usage.completion_tokens == there
        assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("seed", [5, 2**63 + 11, -3])
def test_our_own_client_gets_the_draws_of_the_engine_for_every_seed_and_sample(
    run: Path, server: Server, seed: int
) -> None:
    marks = ((5, -100.0), (6, -100.0))  # of thinking: a client takes them for what other servers leave in a text
    params = SamplingParams(max_tokens=24, temperature=1.0, seed=seed, n=3, logit_bias=marks)
    request = Request((Message("user", "hello"),), params, "off")
    [there] = RemoteEngine(f"{server.url}/v1", "tiny", api_key=server.key).generate([request])
    [here] = Engine(run, record_experts=False, slots=1).generate([request])
    assert [one.text for one in there] == [one.text for one in here]
    assert len({one.text for one in here}) == 3


# ---- what is refused


@pytest.mark.parametrize(
    "path", [*(path for _, path in ROUTES), "//v1/models", "/v1/../health", "/v1/%6dodels", "/nothing", "/docs"]
)
def test_nothing_is_answered_without_a_key(server: Server, path: str) -> None:
    attempts: tuple[dict[str, str], ...] = (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Basic {server.key}"},
        {"authorization": "Bearer"},
        {"host": "localhost", "x-forwarded-for": "127.0.0.1"},
    )
    for headers in attempts:
        for method in ("GET", "POST", "OPTIONS", "HEAD", "DELETE"):
            answer = httpx.request(method, server.url + path, headers=headers, trust_env=False, timeout=60)
            assert answer.status_code == 401, (method, headers)


def test_every_route_is_in_the_list_above(server: Server) -> None:
    found: set[tuple[str, str]] = set()

    def walk(routes: Any) -> None:
        for route in routes:
            if getattr(route, "methods", None):
                found.update((method, route.path.replace("{name:path}", "tiny")) for method in route.methods)
            for inner in ("routes", "original_router"):
                child = getattr(route, inner, None)
                walk(getattr(child, "routes", child) or ())

    for uploads, more in ((None, set()), (object(), set(ROLLOUT))):
        edge: Any = create_app(SimpleNamespace(uploads=uploads, cors=()))  # type: ignore[arg-type]
        found.clear()
        walk(edge.app.routes)
        assert {pair for pair in found if pair[0] != "HEAD"} == set(ROUTES) | more
    with server.client as client:
        for method, path in ROUTES:
            assert client.request(method, path).status_code in ((400,) if method == "POST" else (200,))
    for method, path in OPEN:
        assert path == LIVEZ
        answer = httpx.request(method, server.url + path, trust_env=False, timeout=60)
        assert (answer.status_code, answer.content) == (200, b"")


# ---- clients that leave, an engine that dies


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(server: Server, stream: bool) -> None:
    cancelled = server.metric("cancelled_total")
    body = LONG | {"stream": stream, "n": 2}
    with server.client as client:
        if stream:
            with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                lines = answer.iter_lines()  # whose end would close the stream
                assert any("content" in line for line in lines)
                server.wait(r'engine\{what="running"\}', 2)
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/chat/completions", json=body, timeout=httpx.Timeout(60, read=0.5))
    server.wait("cancelled_total", cancelled + 1)
    assert server.metric("running") == 0
    server.wait(r'engine\{what="running"\}', 0, seconds=30)
    with server.client as client:
        assert client.post("/v1/chat/completions", json=chat_body(n=4)).status_code == 200


def misses(server: Server) -> float:
    """Prompt tokens of the tenant that the engine computed."""
    return server.metric(r'tokens_total\{tenant="default",kind="prompt_miss"\}', 0)


def request_of(server: Server, **fields: Any) -> bytes:
    body = json.dumps(LONG | fields)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def test_a_client_that_closes_at_once_starts_no_work(server: Server) -> None:
    """The server is stopped meanwhile, so that it finds all requests and all ends of connections at once."""
    gone = r'requests_total\{route="/v1/chat/completions",status="499"\}'
    before, cancelled, left = misses(server), server.metric("cancelled_total"), server.metric(gone, 0)
    address = ("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
    server.process.send_signal(signal.SIGSTOP)
    try:
        for number in range(CLOSED):
            with socket.create_connection(address, timeout=60) as door:
                door.sendall(request_of(server, guided_regex=f"a{{{number + 1}}}", stream=bool(number % 2)))
    finally:
        server.process.send_signal(signal.SIGCONT)
    server.wait(gone, left + CLOSED, default=0)
    assert (misses(server), server.metric("cancelled_total")) == (before, cancelled), "the engine has heard of none"


def test_what_was_refused_or_had_no_token_yet_is_not_billed(server: Server) -> None:
    lines = []
    before, cancelled, failed = misses(server), server.metric("cancelled_total"), server.metric("failed_total")
    with server.client as client, ExitStack() as held:
        refused = client.post("/v1/chat/completions", json=chat_body(guided_regex="(a|b)(?=c)"))
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "guided_regex"
        assert misses(server) == before and server.metric("failed_total") == failed, "a refusal is no failure"
        assert server.metric("cancelled_total") == cancelled
        for number in range(4):  # all slots
            said = {"messages": [{"role": "user", "content": f"{number} hello"}], "ignore_eos": True}
            body = LONG | said | {"stream": True}
            other = held.enter_context(client.stream("POST", "/v1/chat/completions", json=body))
            lines.append(other.iter_lines())  # whose end would close the stream
            assert any("content" in line for line in lines[-1])
        with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), timeout=60) as door:
            door.sendall(request_of(server))
            server.wait("waiting", 1)  # and only then does it leave
        server.wait("cancelled_total", cancelled + 1)
        assert misses(server) == before, "what runs is billed at its end"
    server.wait("cancelled_total", cancelled + 5)
    assert misses(server) > before


@pytest.mark.parametrize("chat", [False, True])
def test_a_prompt_that_cannot_fit_is_refused(server: Server, chat: bool) -> None:
    """However long; and one whose letters alone do not say so, too."""
    with server.client as client:
        for length, model, status in ((8_000_000, "tiny", 400), (8_000_000, "other", 404), (4095, "tiny", 400)):
            text = ("hello, " * length)[:length]
            given = {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
            answer = client.post(
                "/v1/chat/completions" if chat else "/v1/completions", json={"model": model, "max_tokens": 1, **given}
            )
            assert answer.status_code == status
            if status == 400:
                error = answer.json()["error"]
                assert error["code"] == "context_length_exceeded"
                assert f"This model's maximum context length is {CONTEXT} tokens" in error["message"], (
                    "the words that LiteLLM knows"
                )
                assert ("has at least" in error["message"]) == (length > 1_000_000), "what is told before it is cut"


def test_the_engine_is_killed_and_the_server_answers_on(server: Server) -> None:
    """A reply of which the client had a part ends with an error; one that was whole to come is the one it would have been."""
    quiet = chat_body(max_tokens=800, temperature=1, chat_template_kwargs={"thinking": False})
    with server.client as client:
        expected = client.post("/v1/chat/completions", json=quiet).json()["choices"]
        found: list[Any] = []

        def ask() -> None:
            with server.client as other:
                found.append(other.post("/v1/chat/completions", json=quiet).json())

        restarts = server.metric("engine_restarts_total")
        with client.stream("POST", "/v1/chat/completions", json=LONG | {"stream": True}) as answer:
            lines = answer.iter_lines()
            assert any("content" in line for line in lines)
            engine = server.engine()
            os.kill(engine, signal.SIGSTOP)  # so that neither is done before the other has come
            waiting = threading.Thread(target=ask)
            waiting.start()
            server.wait("waiting", 1)
            os.kill(engine, signal.SIGKILL)
            rest = list(lines)
        codes = [event["error"]["code"] for event in events_of("\n".join(rest)) if "error" in event]
        assert codes == ["engine_died"]
        assert "data: [DONE]" not in rest
        waiting.join()
        assert found[0]["choices"] == expected
        assert server.metric("engine_restarts_total") == restarts + 1
        assert client.get("/health").status_code == 200


# ---- start and stop


def test_a_server_that_stops_finishes_what_it_began_and_shows_a_key_once(run: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    server = start(run, keys, tmp_path / "log")
    assert server.key not in keys.read_text(encoding="utf-8")
    assert keys.stat().st_mode & 0o777 == 0o600
    with server.client as client:
        port = server.url.rpartition(":")[2]
        taken = subprocess.run(
            command(run, keys, f"port={port}"), capture_output=True, text=True, encoding="utf-8", check=False
        )
        assert taken.returncode == 2
        assert "Another program uses this port" in taken.stderr and "Traceback" not in taken.stderr
        assert "key of tenant" not in taken.stdout
        with client.stream("POST", "/v1/chat/completions", json=LONG | {"stream": True, "max_tokens": 200}) as answer:
            lines = answer.iter_lines()
            assert any("content" in line for line in lines)
            server.process.send_signal(signal.SIGTERM)
            rest = list(lines)
        assert "data: [DONE]" in rest
    engine_gone = time.monotonic() + 30
    assert server.process.wait(60) == 0
    assert time.monotonic() < engine_gone
    assert "Traceback" not in server.log.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("grace", "signals"), [("grace=1", [signal.SIGTERM]), ("grace=900", [signal.SIGTERM, signal.SIGINT])]
)
def test_what_a_stopping_server_does_not_finish_ends_with_an_error(
    tmp_path: Path, grace: str, signals: list[signal.Signals]
) -> None:
    """A whole reply, a stream, and a request whose body has not arrived. The second signal is one not to wait."""
    body = {"model": "tiny", "prompt": "a", "ignore_eos": True}
    with running(write_run(tmp_path / "tiny", context=ENDLESS), tmp_path, grace) as server, server.client as client:
        port = int(server.url.rsplit(":", 1)[1])
        with ThreadPoolExecutor(1) as pool, socket.create_connection(("127.0.0.1", port), timeout=60) as slow:
            slow.sendall(request_of(server)[:-1])
            whole = pool.submit(client.post, "/v1/completions", json=body)
            with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as stream:
                lines = stream.iter_lines()
                assert any("text" in line for line in lines)
                server.wait("running", 2)
                for number in signals:
                    server.process.send_signal(number)
                assert events_of("\n".join(lines))[-1]["error"]["code"] == "stopping"
            answer = whole.result(60)
            late = slow.makefile("rb").read()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "stopping")
        assert answer.json()["request_id"] == answer.headers["x-request-id"] and server.process.wait(60) == 0
        assert late.startswith(b"HTTP/1.1 503") and b"x-request-id" in late and b'"code":"stopping"' in late


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("port=99999",), "port"),
        (("tenant=a/b", "port=0"), "tenant"),
        (("max_len=5000", "port=0"), "context"),
        (("prot=1",), "port"),
    ],
)
def test_a_server_that_cannot_start_says_why(run: Path, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    done = subprocess.run(
        command(run, tmp_path / "k", *words), capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert done.returncode == 2
    assert said in done.stderr and "Traceback" not in done.stderr
