"""A remote address behind the engine's interface, against a real HTTP server on loopback."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from remote_server import Server, ask, fault, remote, reply

from rorqual.core.errors import ConfigError, DataError
from rorqual.engine import SamplingParams
from rorqual.engine.remote.engine import RemoteEngine, RemoteError, openai_fields
from rorqual.engine.request import Grammar
from rorqual.engine.seeds import sample_key, sample_seed


def test_answers_come_in_the_order_of_the_requests(server: Server) -> None:
    def answer(body: dict[str, Any], number: int) -> tuple[int, Any, dict[str, str]]:
        if number == 0:
            assert later.wait(60), "only one request was sent at a time"
        elif number == 3:
            later.set()
        return reply(body["messages"][-1]["content"] + f" {body['seed']}")

    later = threading.Event()
    server.answer = answer
    seen: list[tuple[int, int]] = []
    asked = [ask(f"q{i}", n=1 + i % 3, seed=i, temperature=1.0) for i in range(9)]
    results = remote(server, concurrency=4).generate(asked, progress=lambda *at: seen.append(at))
    assert [len(group) for group in results] == [1 + i % 3 for i in range(9)]
    assert [group[0].text.split()[0] for group in results] == [f"q{i}" for i in range(9)]
    assert all(len({c.text for c in group}) == len(group) for group in results)  # samples have seeds of their own
    assert seen == [(done, 18) for done in range(1, 19)]
    assert 1 < server.most_at_once <= 4


@pytest.mark.parametrize("seed", [0, 3, 2**31, 2**53 - 1, 2**63, 2**64 - 1, -1, -(2**63), 2**70 + 5])
def test_a_seed_that_is_sent_draws_what_its_sample_draws_here(seed: int) -> None:
    keys = [sample_key(seed, sample) for sample in (0, 1, 2, 4095)]
    sent = [sample_seed(seed, sample) for sample in (0, 1, 2, 4095)]
    assert all(-(2**63) <= one < 2**63 for one in sent)
    assert [sample_key(one, 0) for one in sent] == keys
    assert (sent[0] - seed) % 2**64 == 0
    assert [sample_seed(seed, sample, 31) for sample in (0, 1, 2, 4095)] == [key >> 33 for key in keys]


def test_seeds_for_a_server_that_takes_shorter_ones(server: Server) -> None:
    def picky(body: dict[str, Any], number: int) -> tuple[int, Any, dict[str, str]]:
        return (400, {"error": {"message": "seed: not an int32"}}, {}) if body["seed"] >= 2**31 else reply("ok")

    server.answer = picky
    with pytest.raises(RemoteError, match="seed_bits=31"):
        remote(server).generate([ask(seed=2**40)])
    assert remote(server, seed_bits=31).generate([ask(seed=2**40, n=3)])[0][2].text == "ok"


def test_a_grammar_of_calls_is_refused_as_an_address_gets_no_tools(server: Server) -> None:
    source = '{"tools": [{"name": "add", "parameters": {}}], "many": false}'
    with pytest.raises(DataError, match="carries no tools"):
        remote(server).generate([ask(grammar=Grammar("calls", source))])
    assert remote(server).generate([ask(grammar=Grammar("json_schema", "{}"))])[0][0].text


def test_what_is_sent(server: Server) -> None:
    asked = ask("hi", max_tokens=9, temperature=0.5, top_p=0.9, top_k=4, seed=3)
    (completion,) = remote(server, api_key="secret").generate([asked])[0]
    (body,) = server.bodies
    assert (server.paths, server.headers[0]["Authorization"]) == (["/v1/chat/completions"], "Bearer secret")
    assert body["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    sent = {"model": "m", "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "top_k": 4, "seed": 3}
    assert {name: body[name] for name in sent} == sent
    assert "chat_template_kwargs" not in body
    assert (completion.usage, completion.finish_reason) == ({"prompt_tokens": 7, "completion_tokens": 3}, "stop")
    remote(server).generate([ask(thinking="on"), ask(thinking="off")])
    assert sorted(b["chat_template_kwargs"]["thinking"] for b in server.bodies[1:]) == [False, True]
    assert "Authorization" not in server.headers[1]


SENT: dict[str, tuple[Any, dict[str, Any]]] = {
    "max_tokens": (9, {"max_tokens": 9}),
    "temperature": (0.5, {"temperature": 0.5}),
    "top_p": (0.9, {"top_p": 0.9}),
    "top_k": (4, {"top_k": 4}),
    "seed": (3, {"seed": 3}),
    "ignore_eos": (True, {"ignore_eos": True}),
    "min_p": (0.1, {"min_p": 0.1}),
    "repetition_penalty": (1.2, {"repetition_penalty": 1.2}),
    "presence_penalty": (0.3, {"presence_penalty": 0.3}),
    "frequency_penalty": (0.4, {"frequency_penalty": 0.4}),
    "logit_bias": (((5, -1.0), (7, 2.0)), {"logit_bias": {"5": -1.0, "7": 2.0}}),
    "stop": (("a", "b"), {"stop": ["a", "b"]}),
    "stop_token_ids": ((5, 7), {"stop_token_ids": [5, 7]}),
    "top_logprobs": (2, {"logprobs": True, "top_logprobs": 2}),
    "grammar": (Grammar("regex", "[ab]"), {"guided_regex": "[ab]"}),
    "min_tokens": (6, {"min_tokens": 6}),
    "min_p_first": (True, {"min_p_first": True}),
    "prompt_logprobs": (0, {"prompt_logprobs": 0}),
    "think_budget": (5, {"think_budget": 5}),
    "calculator": (True, {"calculator": True}),
}
"""What is asked by each sampling parameter, and what it alone changes in the body."""


def test_every_sampling_parameter_is_sent(server: Server) -> None:
    assert set(SENT) == {field.name for field in fields(SamplingParams)} - {"n"}, "`n` is as many requests"
    for name in ("", *SENT):
        remote(server).generate([ask(**{name: SENT[name][0]} if name else {})])
    plain = server.bodies[0]
    for (name, (_, change)), body in zip(SENT.items(), server.bodies[1:], strict=True):
        assert body == plain | change, name
    always = openai_fields(SamplingParams())
    assert always == {"max_tokens": 64, "temperature": 0, "top_p": 1}
    kinds: dict[Grammar, dict[str, Any]] = {
        Grammar("json", ""): {"response_format": {"type": "json_object"}},
        Grammar("choice", '["a", "b"]'): {"guided_choice": ["a", "b"]},
        Grammar("json_schema", '{"type": "null"}'): {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "reply", "schema": {"type": "null"}, "strict": True},
            }
        },
    }
    for grammar, asked in kinds.items():
        assert openai_fields(SamplingParams(grammar=grammar)) == always | asked


@pytest.mark.parametrize(
    ("message", "text", "reasoning"),
    [
        ({"content": "4"}, "4", None),
        ({"content": "4", "reasoning_content": "2+2"}, "4", "2+2"),
        ({"content": "4", "reasoning": "2+2"}, "4", "2+2"),
        ({"content": "</think>\n\n4", "reasoning_content": "2+2"}, "4", "2+2"),
        ({"content": None, "reasoning_content": "2+"}, "", "2+"),
        ({"content": "<think>\n2+2\n</think>\n\n4"}, "4", "2+2"),
        ({"content": "2+2</think>4"}, "4", "2+2"),
        ({"content": "<think>2+"}, "", "2+"),
        ({"content": "<think></think>4"}, "4", ""),
        ({"content": ""}, "", None),
        ({"content": None}, "", None),
    ],
)
def test_reasoning_is_found_wherever_the_server_puts_it(
    server: Server, message: dict[str, Any], text: str, reasoning: str | None
) -> None:
    server.answer = lambda *_: reply(**message, finish="length")
    (completion,) = remote(server).generate([ask()])[0]
    assert (completion.text, completion.reasoning, completion.finish_reason) == (text, reasoning, "length")


def test_retry_after_is_obeyed(server: Server) -> None:
    server.answer = lambda body, number: fault(429, **{"Retry-After": "0.3"}) if number == 0 else reply("x")
    start = time.monotonic()
    remote(server).generate([ask()])
    assert time.monotonic() - start >= 0.3


@pytest.mark.parametrize("said", ["nan", "-1", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_wait_that_is_no_time_leaves_the_backoff(server: Server, said: str) -> None:
    server.answer = lambda body, number: fault(429, **{"Retry-After": said}) if number == 0 else reply("x")
    start = time.monotonic()
    remote(server, backoff=0.4).generate([ask()])
    assert time.monotonic() - start >= 0.4


def test_a_wait_of_an_hour_is_cut(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rorqual.engine.remote.engine.LONGEST_WAIT", 0.2)
    server.answer = lambda body, number: fault(429, **{"Retry-After": "3600"}) if number == 0 else reply("x")
    assert remote(server).generate([ask()])[0][0].text == "x"


def test_the_key_does_not_follow_a_redirect_and_is_in_no_message(server: Server) -> None:
    elsewhere = Server()
    server.answer = lambda *_: (302, b"", {"Location": elsewhere.url + "/chat/completions"})
    with pytest.raises(RemoteError, match="HTTP 302") as caught:
        remote(server, api_key="secret").generate([ask()])
    assert elsewhere.paths == []
    assert "secret" not in str(caught.value)
    elsewhere.close()


ENDED: tuple[Any, ...] = (
    "insufficient_system_resource",
    "abort",
    "SAFETY",
    "RECITATION",
    "timeout",
    ["stop"],
    {},
    [],
    0,
    False,
)
"""Finish reasons of what is no whole answer, as servers spell them, and some that no server should send."""


@pytest.mark.parametrize(
    "answer",
    [
        reply(None, finish="content_filter"),
        reply("", finish="tool_calls"),
        reply("half", finish="error"),
        reply(None, refusal="I will not"),
        *(reply("half", finish=finish) for finish in ENDED),
    ],
)
def test_what_is_no_answer_says_so(server: Server, answer: tuple[int, Any, dict[str, str]]) -> None:
    server.answer = lambda body, number: answer if number else reply("fine")
    first, second = remote(server, concurrency=1).generate([ask(n=2)])[0]
    assert (first.error, first.text) == ("", "fine")
    assert second.error.startswith("the server gave no answer: ")
    assert second.usage["completion_tokens"] == 3, "its bill is known"


@pytest.mark.parametrize(
    "finish", ["length", "LENGTH", "max_tokens", "MAX_TOKENS", "model_length", "stop", "STOP", "eos", None]
)
def test_an_answer_is_whole_or_cut_off_in_any_spelling(server: Server, finish: str | None) -> None:
    server.answer = lambda *_: reply("4", finish=finish)
    (completion,) = remote(server).generate([ask()])[0]
    cut_off = finish is not None and finish.casefold() not in ("stop", "eos")
    assert (completion.error, completion.finish_reason) == ("", "length" if cut_off else "stop")


def test_half_a_surrogate_pair_can_be_written_down(server: Server) -> None:
    server.answer = lambda body, number: reply("a\ud83d", reasoning_content="\udc0bb \ud83d\udc0b")
    found = remote(server).generate([ask()])[0][0]
    assert (found.text, found.reasoning) == ("a\ufffd", "\ufffdb \U0001f40b")


DRIPS: dict[str, tuple[bytes, bytes]] = {
    "interim replies": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a header": (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "a body": (b"HTTP/1.1 200 OK\r\n\r\n", b" "),
    "a body in chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "the body of an error": (b"HTTP/1.1 500 No\r\n\r\n", b" "),
}
"""What a server sends first, and then ten times a second."""


@pytest.mark.parametrize("what", DRIPS)
def test_an_answer_that_trickles_without_end_is_not_waited_for(what: str) -> None:
    """Each piece comes within the time of one, and the whole never; the client closes the connection."""
    pieces, gone = [0], threading.Event()

    class Trickle(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            with contextlib.suppress(OSError):
                self.wfile.write(DRIPS[what][0])
                for pieces[0] in range(600):  # a minute
                    self.wfile.write(DRIPS[what][1])
                    time.sleep(0.1)
            gone.set()

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Trickle)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, daemon=True).start()
    began = time.monotonic()
    try:
        said = "HTTP 500" if "error" in what else "not complete in time|timed out"
        with pytest.raises(RemoteError, match=f"({said}).*tried 1 times"):
            RemoteEngine(f"http://127.0.0.1:{http.server_port}/v1", "m", retries=0, timeout=1.0).generate([ask()])
        assert 0.9 < time.monotonic() - began < 20
        assert gone.wait(30) and pieces[0] < 599, "it was left"
    finally:
        http.shutdown()
        http.server_close()


@pytest.mark.parametrize("url", ["localhost:8000", "file:///etc/passwd", "", "http://", "ftp://host/v1"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="address"):
        RemoteEngine(url, "m")
