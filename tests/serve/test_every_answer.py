"""What the engine says reaches the answer, the client and the page of metrics that it is for: each prompt's, each sample's, each tenant's."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapes import CHAT, MAX_LEN, chat_of, service_of, text_of

from rorqual.serve import rate_limit
from rorqual.serve.app import create_app
from rorqual.serve.bridge import TRIES, EngineBridge, ServerJob
from rorqual.serve.errors import ApiError
from rorqual.serve.http_responses import _json_parts, compact_json
from rorqual.serve.keys import ApiKeys
from rorqual.serve.metrics import ServerMetrics, ServerSnapshot
from rorqual.serve.rate_limit import RateLimit
from rorqual.serve.replies import Reply
from rorqual.serve.service import ModelService
from rorqual.serve.wire import EngineArguments, EngineLimits, EngineRequest, SampledToken, Score, message_line, pack
from served import Server

ONE, THREE = pack(EngineRequest((5,))), pack(EngineRequest((5, 6, 7)))
TEXT, TALK = "/v1/completions", "/v1/chat/completions"


def letter(text: str) -> int:
    [found] = CHAT.tokenizer.encode(text)
    return found


def reply_to(job: ServerJob, metrics: ServerMetrics | None = None, **fields: Any) -> Reply:
    return Reply(job, CHAT, text_of(**fields).new_choice, metrics or ServerMetrics())


# ---- between server and engine


def written(bridge: EngineBridge) -> list[dict[str, Any]]:
    """What the engine was told since the last call."""
    parts = []
    while not bridge._outbox.empty():
        parts.append(bridge._outbox.get_nowait())
    return [json.loads(text) for text in b"".join(parts).splitlines()]


async def says(bridge: EngineBridge, *messages: bytes) -> None:
    """What an engine's process says, heard to its end."""
    process = await asyncio.create_subprocess_exec("cat", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(b"".join(messages))
    process.stdin.close()
    await bridge._dispatch_messages(process)
    await process.wait()


def alive(**fields: Any) -> EngineBridge:
    bridge = EngineBridge(EngineArguments("nowhere"), **fields)
    bridge._handle_ready(EngineLimits(MAX_LEN, 264))
    return bridge


def told_of(bridge: EngineBridge) -> list[tuple[Any, ...]]:
    return [(one["kind"], one["number"], one.get("tenant"), len(one.get("prompt", ()))) for one in written(bridge)]


def test_every_prompt_of_a_request_is_asked_once_and_cancelled_when_nobody_waits() -> None:
    async def act() -> None:
        bridge = alive()
        with bridge.submitted_job([ONE, THREE], "a"), bridge.submitted_job([THREE, ONE, ONE], "b") as second:
            asked = told_of(bridge)
            assert asked == [
                ("submit", 0, "a", 1), ("submit", 1, "a", 3), ("submit", 2, "b", 3), ("submit", 3, "b", 1), ("submit", 4, "b", 1),
            ]  # fmt: skip
            for number in second.numbers:
                await says(bridge, message_line("drawn", rows=[[number, 0, letter("a"), "stop"]]))
        assert told_of(bridge) == [("cancel", 0, None, 0), ("cancel", 1, None, 0)], "what has ended is not cancelled"

    asyncio.run(act())


def test_what_the_engine_says_of_one_request_is_not_heard_by_another() -> None:
    async def act() -> None:
        bridge = alive()
        with (
            bridge.submitted_job([THREE, replace(ONE, n=2)], "a") as first,
            bridge.submitted_job([ONE, THREE], "b") as second,
        ):
            one, other = (reply_to(job, logprobs=1, echo=True) for job in (first, second))
            scores: list[list[Score]] = [[(-0.5 - n, [(n, -0.25)])] for n in range(4)]
            rows: list[list[Any]] = []
            for at, (number, sample) in enumerate(((3, 0), (1, 1), (0, 0), (2, 0), (1, 0))):
                rows.append([number, sample, letter("abcde"[at]), "length", -float(at), [[at, -0.25]], at])
            await says(
                bridge,
                *(message_line("scored", number=number, scores=scores[number]) for number in (2, 1, 3, 0)),
                message_line("drawn", rows=rows[:2]),
                message_line("beat", stats={"slots": 4}),
                message_line("drawn", rows=rows[2:]),
            )
            assert not bridge.jobs, "both have ended"
            await one.run_to_end()
            await other.run_to_end()
        assert [[choice.content for choice in reply.choices] for reply in (one, other)] == [["c", "e", "b"], ["d", "a"]]
        owners = [[choice.scores[0][0] for choice in reply.choices] for reply in (one, other)]
        assert owners == [[-0.5, -1.5, -1.5], [-2.5, -3.5]]
        logprobs = [
            [(one.logprob, [*map(tuple, one.top)]) for one in choice.pending_logprobs] for choice in one.choices
        ]
        assert logprobs == [[(-2.0, [(2, -0.25)])], [(-4.0, [(4, -0.25)])], [(-1.0, [(1, -0.25)])]]
        assert bridge.stats == {"slots": 4}
        usage = one.usage()
        # Of the two samples of a prompt, the one that found less says what was not computed.
        assert (usage["prompt_tokens"], usage["completion_tokens"], usage["prompt_cache_hit_tokens"]) == (4, 3, 2 + 1)

    asyncio.run(act())


@pytest.mark.parametrize(
    ("status", "param", "code"),
    [(400, "guided_regex", None), (422, "guided_regex", "schema_mismatch"), (500, None, None)],
)
def test_a_refusal_of_one_prompt_ends_the_request_and_names_the_parameter(
    status: int, param: str | None, code: str | None
) -> None:
    async def act() -> None:
        bridge = alive()
        with (
            bridge.submitted_job([ONE, ONE, ONE], "a", "guided_regex") as job,
            bridge.submitted_job([ONE], "b") as other,
        ):
            written(bridge)
            reply = reply_to(job)
            await says(bridge, message_line("refused", number=1, message="no", status=status))
            assert [*bridge.jobs.values()] == [other] and other.events.empty()
            with pytest.raises(ApiError) as caught:
                await reply.run_to_end()
            error = caught.value
            assert (error.status, error.message, error.param, error.code) == (status, "no", param, code)
            assert told_of(bridge) == [("cancel", number, None, 0) for number in job.numbers]
        assert (reply.metrics.failed, reply.metrics.cancelled) == (int(status >= 500), 0), "a refusal is no failure"

    asyncio.run(act())


def test_a_request_begins_again_with_all_its_samples_and_ends_with_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    """One of two had ended when the engine died, and nothing was sent yet."""

    async def act() -> None:
        bridge = alive()
        with bridge.submitted_job([replace(ONE, n=2)], "a") as job, bridge.submitted_job([ONE], "b") as begun:
            begun.sent = True
            reply = reply_to(job)
            await says(
                bridge,
                message_line("beat", stats={"slots": 4}),
                message_line("drawn", rows=[[0, 1, letter("x"), "stop"]]),
            )
            written(bridge)
            bridge.alive = False
            bridge._handle_engine_exit(-9)
            with pytest.raises(ApiError) as caught:
                await begun.next_event(60)
            assert (caught.value.status, caught.value.code) == (503, "engine_died")
            assert bridge.stats == {} and bridge.restarts == 1
            assert told_of(bridge) == [], "there is no engine to be told"
            bridge._handle_ready(EngineLimits(MAX_LEN, 264))
            assert told_of(bridge) == [("submit", 0, "a", 1)]
            await says(bridge, message_line("drawn", rows=[[0, 0, letter("a"), "stop"]]))
            assert [*bridge.jobs.values()] == [job]
            await says(bridge, message_line("drawn", rows=[[0, 1, letter("b"), "stop"]]))
            assert not bridge.jobs
            await reply.run_to_end()
        assert [choice.content for choice in reply.choices] == ["a", "b"]
        assert reply.usage()["completion_tokens"] == 2
        with bridge.submitted_job([ONE], "a") as unlucky:
            for _ in range(TRIES):
                assert bridge.jobs
                bridge._handle_engine_exit(1)
            assert not bridge.jobs and unlucky.tries == TRIES

    asyncio.run(act())
    assert "SIGKILL" in capsys.readouterr().err


def test_a_request_on_its_way_takes_a_place_of_its_own_tenant() -> None:
    async def act() -> None:
        bridge = alive(queue=2, tenants=2)
        with bridge.reserve_queue_place("a"), bridge.reserve_queue_place("a"):
            with pytest.raises(ApiError) as caught, bridge.reserve_queue_place("a"):
                pass
            assert (caught.value.status, caught.value.code) == (429, "queue_full") and "the limit is 2" in str(
                caught.value
            )
            with bridge.reserve_queue_place("b"), pytest.raises(ApiError), bridge.submitted_job([ONE], "b"):
                pass
        with bridge.reserve_queue_place("a"), bridge.reserve_queue_place("a"):  # all of them were given back
            pass

    asyncio.run(act())


# ---- what is counted


def test_tokens_of_thoughts_are_counted_over_all_samples() -> None:
    """Up to the mark that ends each: three, five, and none where it was cut."""
    shape = chat_of(n=3, chat_template_kwargs={"thinking": True})
    bridge = alive()

    async def act() -> Reply:
        with bridge.submitted_job([replace(THREE, n=3)], "a") as job:
            reply = Reply(job, CHAT, shape.new_choice, ServerMetrics())
            for sample, text in enumerate(("abc", "abcde", "")):
                ids = [
                    *CHAT.tokenizer.encode(text),
                    CHAT.tokenizer.special_id("</think>"),
                    *CHAT.tokenizer.encode("so"),
                ]
                for id_ in ids:
                    bridge._deliver(0, SampledToken(sample, id_))
                bridge._deliver(0, SampledToken(sample, CHAT.stop_ids[0], "stop"))
            await reply.run_to_end()
        return reply

    reply = asyncio.run(act())
    usage = reply.usage()
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 3 + 5}
    assert (usage["completion_tokens"], usage["total_tokens"]) == (8 + 3 * 4, 3 + 8 + 3 * 4)
    assert [choice.reasoning for choice in reply.choices] == ["abc", "abcde", ""]
    assert reply.metrics.first_tokens.total() == 1 and reply.metrics.first_token_seconds >= 0


def test_each_figure_of_the_page_is_its_own() -> None:
    metrics = ServerMetrics(cancelled=3, failed=4)
    for seconds in (0.25, 1.25, 1.0, 100.0):
        metrics.record_first_token(seconds)
    metrics.requests["/v1/models", 200] = 5
    metrics.requests["other", 401] = 6
    text = metrics.prometheus_text(
        ServerSnapshot(False, 7, Counter(a=8), Counter(b=9), {"blocks_free": 12345678.0, "waiting": 11.0})
    )
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert sorted(lines) == sorted([
        'rorqual_requests_total{route="/v1/models",status="200"} 5',
        'rorqual_requests_total{route="other",status="401"} 6',
        *(f'rorqual_first_token_seconds_bucket{{le="{bound}"}} {count}' for bound, count in zip(
            ("0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "30", "60", "+Inf"), (0, 0, 1, 1, 2, 3, 3, 3, 3, 3, 4), strict=True
        )),
        "rorqual_first_token_seconds_sum 102.500000",
        "rorqual_first_token_seconds_count 4",
        "rorqual_prompt_hit_ratio 0.000000",
        "rorqual_cancelled_total 3",
        "rorqual_failed_total 4",
        "rorqual_running 8",
        "rorqual_waiting 9",
        'rorqual_tenant_running{tenant="a"} 8',
        'rorqual_tenant_running{tenant="b"} 0',
        'rorqual_tenant_waiting{tenant="a"} 0',
        'rorqual_tenant_waiting{tenant="b"} 9',
        "rorqual_engine_up 0",
        "rorqual_engine_restarts_total 7",
        'rorqual_engine{what="blocks_free"} 12345678',
        'rorqual_engine{what="waiting"} 11',
    ])  # fmt: skip


# ---- HTTP, where no engine is needed


def within(
    folder: Path, act: Callable[[httpx.AsyncClient, ModelService], Awaitable[None]], *, queue: int = 256
) -> None:
    """`act` with a client of tenant `a`, who shares the server with `b`; the engine never starts."""

    async def run() -> None:
        keys = ApiKeys.load(folder / "k")
        key, _ = keys.ensure_key("a"), keys.ensure_key("b")
        service = replace(service_of(), keys=keys, operator="a", created=77)
        service.bridge.queue = service.bridge.share = queue
        transport = httpx.ASGITransport(create_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
            client.headers["authorization"] = f"Bearer {key}"
            async with asyncio.timeout(300):  # whoever waits for the engine waits for ever
                await act(client, service)

    asyncio.run(run())


JSON = st.recursive(
    st.none() | st.integers() | st.text(), lambda part: st.lists(part) | st.dictionaries(st.text(), part)
)


@given(value=JSON, times=st.integers(1, 150))
def test_a_response_in_parts_is_the_same_json_and_no_part_is_long(value: Any, times: int) -> None:
    many = {"a": [{"logprobs": {"content": [value] * times}}], "b": value}
    assert compact_json(many).decode() == json.dumps(many, ensure_ascii=False, separators=(",", ":"))
    row = [{"token": "a", "top_logprobs": [[1, -0.5]] * 20}] * 2000
    assert max(map(len, _json_parts({"choices": [{"logprobs": {"content": row}}]}))) < len(json.dumps(row)) / 20


def test_a_tenant_may_send_so_many_at_once_and_then_so_many_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(rate_limit.time, "monotonic", lambda: clock[0])

    async def act(client: httpx.AsyncClient, service: ModelService) -> None:
        async def ask() -> tuple[int, str | None]:
            answer = await client.get("/v1/models")
            return answer.status_code, answer.headers.get("retry-after")

        object.__setattr__(service, "rate", RateLimit(0.25, 3))
        other = service.keys.ensure_key("c")
        assert [await ask() for _ in range(4)] == [*[(200, None)] * 3, (429, "4")]
        assert (await client.get("/v1/models", headers={"authorization": f"Bearer {other}"})).status_code == 200
        assert (await client.get("/livez")).status_code == 200
        clock[0] += 3.5
        refused = await client.post(TEXT, json={"model": "m"})
        error = refused.json()["error"]
        assert (refused.status_code, error["code"], refused.headers["retry-after"]) == (429, "rate_limit_exceeded", "1")
        assert "Try again after 0.5 seconds" in error["message"], "what is refused does not count"
        clock[0] += 5.0
        assert [await ask() for _ in range(3)] == [(200, None)] * 2 + [(429, "4")]

    within(tmp_path, act)


def test_every_request_is_counted_by_its_route_and_how_it_ended(tmp_path: Path) -> None:
    async def act(client: httpx.AsyncClient, service: ModelService) -> None:
        ended = [
            await client.get("/health"), await client.get("/v1/models"), await client.get("/v1/models"), await client.get("/v1/models/no"),
            await client.get("/v1/messages"), await client.get("/health", headers={"authorization": "x"}), await client.get(TALK),
            await client.post(TEXT, json={}), await client.post(TALK, json={"model": "other", "messages": []}), await client.get("/livez"),
        ]  # fmt: skip
        assert [answer.status_code for answer in ended] == [503, 200, 200, 404, 404, 401, 405, 400, 400, 200]
        assert service.metrics.requests == {
            ("/health", 503): 1, ("/v1/models", 200): 2, ("/v1/models/{name:path}", 404): 1, ("other", 404): 1, ("other", 401): 1,
            (TALK, 405): 1, (TEXT, 400): 1, (TALK, 400): 1, ("other", 200): 1,
        }  # fmt: skip
        lost = ended[4].json()
        assert (lost["error"]["code"], lost["request_id"]) == ("no_such_route", ended[4].headers["x-request-id"])
        assert lost["error"]["message"] == "`/v1/messages` is not a route. GET /openapi.json lists the routes."
        service.metrics.count_tokens("b", 1, 2, 3)
        assert 'tenant="b"' in (await client.get("/metrics")).text, "the operator's"
        other = {**service.keys.tenants}
        service.keys.tenants.update({digest: {"a": "b", "b": "a"}[name] for digest, name in other.items()})
        assert "requests_total" not in (await client.get("/metrics")).text

    within(tmp_path, act)


def test_a_server_says_whether_its_engine_is_ready(tmp_path: Path) -> None:
    async def act(client: httpx.AsyncClient, service: ModelService) -> None:
        for ready in (False, True):
            service.bridge.alive = ready
            health = await client.get("/health")
            assert (health.status_code, health.json()) == (
                (200, {"status": "ok"}) if ready else (503, {"status": "loading"})
            )
            assert f"rorqual_engine_up {int(ready)}" in (await client.get("/metrics")).text
        service.bridge.restarts = 5
        assert "engine_restarts_total 5" in (await client.get("/metrics")).text
        card = {
            "id": "m", "object": "model", "created": 77, "owned_by": "rorqual", "max_model_len": MAX_LEN, "thinks": service.chat.thinks,
            "temperature": 1.0, "examples": [],
        }  # fmt: skip
        assert (await client.get("/v1/models")).json() == {"object": "list", "data": [card]}
        assert "retry-after" not in (await client.post(TEXT, json={"model": "other", "prompt": "a"})).headers

    within(tmp_path, act)


def test_whoever_comes_when_the_queue_is_full_is_told_when_to_come_again(tmp_path: Path) -> None:
    async def act(client: httpx.AsyncClient, service: ModelService) -> None:
        body, now = {"model": "m", "prompt": "a", "max_tokens": 1}, time.monotonic()
        with service.bridge.submitted_job([ONE], "a"):
            full = await client.post(TEXT, json=body)
            assert (full.status_code, full.headers.get("retry-after")) == (429, "1")
            assert full.json()["error"]["type"] == "rate_limit_error"
            assert full.json()["request_id"] == full.headers["x-request-id"]
            assert 'tenant_waiting{tenant="a"} 1' in (await client.get("/metrics")).text
            service.bridge._ended.extendleft([now - 9] * 3)  # three requests have ended in nine seconds
            full = await client.post(TEXT, json=body)
            assert full.headers.get("retry-after") == "4", "3 seconds each, and some more by now"

    within(tmp_path, act, queue=1)


# ---- streams


def events(server: Server, path: str, **body: Any) -> tuple[list[dict[str, Any]], httpx.Headers]:
    with server.client as client:
        answer = client.post(path, json={"model": "tiny", "seed": 5, "temperature": 1, "stream": True, **body})
    assert answer.status_code == 200, answer.text
    assert answer.text.endswith("data: [DONE]\n\n")
    return [json.loads(row[6:]) for row in answer.text.splitlines() if row.startswith("data: {")], answer.headers


@pytest.mark.parametrize("path", [TEXT, TALK])
@pytest.mark.parametrize("usage", [None, False, True])
def test_all_events_of_a_stream_belong_to_one_answer(server: Server, path: str, usage: bool | None) -> None:
    given: dict[str, Any] = {"prompt": "a"} if path == TEXT else {"messages": [{"role": "user", "content": "a"}]}
    options = {} if usage is None else {"stream_options": {"include_usage": usage}}
    found, headers = events(server, path, n=2, max_tokens=6, ignore_eos=True, user="me", **given, **options)
    kind, prefix = ("text_completion", "cmpl") if path == TEXT else ("chat.completion.chunk", "chatcmpl")
    assert len({(one["id"], one["object"], one["created"], one["model"]) for one in found}) == 1
    assert found[0]["object"] == kind and found[0]["model"] == "tiny" and re.fullmatch(rf"{prefix}-\w+", found[0]["id"])
    assert headers.get("x-rorqual-ignored") == "user" and headers["content-type"].startswith("text/event-stream")
    if usage:
        last = found.pop()
        assert last["choices"] == [] and last["usage"]["completion_tokens"] == 12
    assert all(one.get("usage", "none") == (None if usage else "none") for one in found)
    choices = [one["choices"][0] for one in found]
    for index in (0, 1):
        own = [choice for choice in choices if choice["index"] == index]
        assert [choice["finish_reason"] for choice in own] == [None] * (len(own) - 1) + ["length"]
        if path == TALK:
            assert [choice["delta"].get("role") for choice in own] == ["assistant"] + [None] * (len(own) - 1)


def test_pieces_of_several_texts_joined_are_the_whole_with_every_log_probability(server: Server) -> None:
    body: dict[str, Any] = {"prompt": ["one", "two!"], "n": 2, "max_tokens": 8, "echo": True, "logprobs": 2}
    found, _ = events(server, TEXT, **body)
    with server.client as client:
        whole = client.post(TEXT, json={"model": "tiny", "seed": 5, "temperature": 1, **body}).json()["choices"]
    assert [choice["index"] for choice in whole] == [0, 1, 2, 3]
    assert len({choice["text"] for choice in whole}) == 4
    for choice in whole:
        own = [one["choices"][0] for one in found if one["choices"][0]["index"] == choice["index"]]
        assert "".join(one["text"] for one in own) == choice["text"]
        for name, values in choice["logprobs"].items():
            assert [value for one in own for value in one["logprobs"][name]] == values, name
        assert own[-1]["finish_reason"] == choice["finish_reason"]
