"""What reaches a client while its request waits, begins again, or cannot be taken."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from contextlib import ExitStack, aclosing, nullcontext
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rorqual.core.records import Tool
from rorqual.data.chat import chat_format
from rorqual.data.chat.stops import StopStringMatcher
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.request import SamplingParams
from rorqual.serve import logprobs
from rorqual.serve.bridge import BEHIND, EngineBridge, ServerJob
from rorqual.serve.errors import ApiError
from rorqual.serve.keys import ApiKeys
from rorqual.serve.metrics import ServerMetrics
from rorqual.serve.replies import Choice, Reply
from rorqual.serve.service import ModelService
from rorqual.serve.wire import EngineArguments, EngineRequest, SampledToken, pack

CHAT = chat_format(Tokenizer.byte_level())
CALLS = {
    "deepseek": '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    "deepseek-r1": '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{"a": 1}\n```<｜tool▁call▁end｜>',
    "deepseek-v3.2": (
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="add">\n<｜DSML｜parameter name="a" string="false">1</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n</｜DSML｜function_calls>"
    ),
}
"""A call of `add` in formats of DeepSeek."""
ASK = EngineRequest((0, 3, 4), SamplingParams(max_tokens=9))
PACKED = pack(ASK)


def reply_to(job: ServerJob) -> Reply:
    return Reply(job, CHAT, lambda: Choice(CHAT.reader("auto", plain=True), StopStringMatcher([])), ServerMetrics())


def test_silence_is_told_while_a_request_waits_and_changes_nothing() -> None:
    async def told() -> tuple[list[object], Reply]:
        job = ServerJob((PACKED,), "default")
        reply, found = reply_to(job), []
        async for step in reply.stream_pieces(0.01):
            found.append(step if step is None else step[1].content)
            if len(found) == 2:
                for token in CHAT.tokenizer.encode("ab"):
                    job.events.put_nowait(SampledToken(0, token))
                job.events.put_nowait(SampledToken(0, CHAT.stop_ids[0], "stop"))
        return found, reply

    found, reply = asyncio.run(told())
    assert found == [None, None, "a", "b", ""]
    assert (reply.choices[0].content, reply.choices[0].reason, reply.usage()["completion_tokens"]) == ("ab", "stop", 3)


def test_silence_is_told_while_tokens_come_that_have_no_text() -> None:
    """A proxy closes a connection without writes."""

    async def told() -> object:
        job = ServerJob((PACKED,), "default")
        reply, silent = reply_to(job), 204  # a first byte of two: repeated, it never completes a character

        async def sample() -> None:
            while True:
                job.events.put_nowait(SampledToken(0, silent))
                await asyncio.sleep(0.001)

        sampling = asyncio.create_task(sample())
        try:
            async with aclosing(reply.stream_pieces(0.05)) as pieces:
                async with asyncio.timeout(60):
                    return await anext(pieces)
        except TimeoutError:
            return "nothing for a minute"
        finally:
            sampling.cancel()

    assert asyncio.run(told()) is None


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_max_tokens_cuts_off_leaves_no_markup_in_the_content(name: str) -> None:
    """At every token, streamed as whole; the client sees by `finish_reason` that something is missing."""
    chat = chat_format(Tokenizer.byte_level(), name)
    ids = chat.tokenizer.encode_trusted(f"Hm.</think>I add.{CALLS[name]}")
    start = len(chat.tokenizer.encode_trusted("Hm.</think>I add."))
    for cut in range(start, len(ids)):
        choice = Choice(chat.reader("on", [Tool("add")]), StopStringMatcher([]))
        pieces = [
            choice.add_token(SampledToken(0, id_, "length" if n == cut else None))
            for n, id_ in enumerate(ids[: cut + 1])
        ]
        assert choice.content == "I add." == "".join(piece.content for piece in pieces), chat.tokenizer.decode(
            ids[:cut]
        )
        assert choice.content == chat.parse(ids[: cut + 1], "on", [Tool("add")]).content
        assert choice.reason == "length"
    assert len(choice.calls) == 1


def test_a_tenant_that_floods_leaves_each_other_its_share() -> None:
    async def taken() -> list[str]:
        bridge, found = EngineBridge(EngineArguments("nowhere"), queue=6, tenants=3), []
        with ExitStack() as held:
            for tenant in [*["flood"] * 7, *["a"] * 3, *["b"] * 3]:  # alone, it may have every place
                try:
                    held.enter_context(bridge.submitted_job([PACKED], tenant))
                    found.append(tenant)
                except ApiError as error:
                    found.append(f"{tenant}: {error.code}")
        with bridge.submitted_job([PACKED], "flood"):
            return found

    full = "{}: queue_full".format
    assert asyncio.run(taken()) == [*["flood"] * 6, full("flood"), "a", "a", full("a"), "b", "b", full("b")]


def test_long_texts_are_cut_beside_the_loop_and_none_for_who_has_left() -> None:
    """One after another for each tenant, and no tenant behind another."""
    service = ModelService(
        "m", 0, ApiKeys(Path("none"), {}), 1, chat=CHAT, bridge=EngineBridge(EngineArguments("nowhere"))
    )
    began, go = threading.Event(), threading.Event()
    done: list[str] = []

    def cut(name: str, *, wait: bool = False) -> Callable[[], str]:
        def work() -> str:
            if wait:
                began.set()
                assert go.wait(60)
            done.append(f"{name} {threading.current_thread() is threading.main_thread()}")
            return name

        return work

    async def told() -> None:
        first = asyncio.ensure_future(service.run_in_thread("a", cut("first", wait=True)))
        gone = asyncio.ensure_future(service.run_in_thread("a", cut("gone")))
        last = asyncio.ensure_future(service.run_in_thread("a", cut("last")))
        await asyncio.to_thread(began.wait, 60)
        assert await service.run_in_thread("b", cut("other")) == "other", "and the loop goes on meanwhile"
        gone.cancel()
        await asyncio.sleep(0)
        go.set()
        assert await asyncio.gather(first, last) == ["first", "last"]

    asyncio.run(told())
    service.close()
    assert done == ["other False", "first False", "last False"]


def test_several_prompts_are_one_request_whose_samples_are_counted_through() -> None:
    async def told() -> tuple[Reply, int]:
        bridge = EngineBridge(EngineArguments("nowhere"))
        with bridge.submitted_job([replace(PACKED, n=2), PACKED], "a") as job:
            reply = reply_to(job)
            first, second = job.numbers
            for number, sample, letter, hit in ((second, 0, "c", 1), (first, 1, "b", 3), (first, 0, "a", 2)):
                bridge._deliver(number, SampledToken(sample, *CHAT.tokenizer.encode(letter), "length", hit=hit))
            await reply.run_to_end()
        return reply, len(bridge.jobs)

    reply, left = asyncio.run(told())
    assert ([choice.content for choice in reply.choices], left) == (["a", "b", "c"], 0)
    usage = reply.usage()
    # A prompt counts once however many answers it has; its hits are what the first to compute it found.
    assert (usage["prompt_tokens"], usage["prompt_cache_hit_tokens"], usage["prompt_cache_miss_tokens"]) == (6, 3, 3)
    assert reply.metrics.tokens == {("a", "prompt_hit"): 3, ("a", "prompt_miss"): 3, ("a", "completion"): 3}


def test_what_was_drawn_and_not_read_is_billed() -> None:
    async def told() -> Reply:
        bridge = EngineBridge(EngineArguments("nowhere"))
        with bridge.submitted_job([replace(PACKED, n=2)], "a", streamed=True) as job:
            reply = reply_to(job)
            [letter] = CHAT.tokenizer.encode("a")
            for sample in (0, 0, 1, 1, 1):
                bridge._deliver(job.numbers[0], SampledToken(sample, letter, hit=2))
            async with aclosing(reply.stream_pieces()) as pieces:
                assert (await anext(pieces)) is not None  # and then its client leaves
        return reply

    reply = asyncio.run(told())
    assert reply.metrics.tokens == {("a", "prompt_hit"): 2, ("a", "prompt_miss"): 1, ("a", "completion"): 5}
    assert reply.choices[0].content == "a"


@pytest.mark.parametrize(("streamed", "top"), [(True, 0), (True, 20), (False, 20)])
def test_a_stream_whose_tokens_nobody_takes_ends(streamed: bool, top: int) -> None:
    """A whole answer takes its tokens as they come, whether its client reads or not."""

    async def told() -> tuple[int, int]:
        bridge = EngineBridge(EngineArguments("nowhere"))
        with bridge.submitted_job([PACKED], "a", streamed=streamed) as job:
            most = BEHIND // (1 + top)
            for _ in range(2 * most):
                bridge._deliver(job.numbers[0], SampledToken(0, 100, top=((1, 0.0),) * top))
            waiting = job.events.qsize()
            assert bool(bridge.jobs) != streamed, "a reply that nobody ends would be read without end"
            with pytest.raises(ApiError, match="too slowly") if streamed else nullcontext():
                await reply_to(job).run_to_end() if streamed else None
        return waiting, most

    waiting, most = asyncio.run(told())
    assert waiting == (most + 2 if streamed else 2 * most)


CALLED = "<｜tool▁call▁begin｜>add<｜tool▁sep｜>{}<｜tool▁call▁end｜>"


@pytest.mark.parametrize(("one_call", "calls"), [(False, 2), (True, 1)])
def test_calls_end_a_reply_at_the_first_where_one_is_allowed(one_call: bool, calls: int) -> None:
    choice = Choice(
        CHAT.reader("off", [Tool("add")], calls="c"), StopStringMatcher(["add"]), one_call=one_call
    )  # which stands in the calls, where it is not looked for
    ids = CHAT.tokenizer.encode(f"so <｜tool▁calls▁begin｜>{CALLED * 2}<｜tool▁calls▁end｜>")
    for id_ in ids:
        choice.add_token(SampledToken(0, id_))
    choice.add_token(SampledToken(0, CHAT.stop_ids[0], "stop"))
    assert (choice.content.strip(), choice.reason) == ("so", "tool_calls")
    assert [(call.name, call.arguments) for call in choice.calls] == [("add", "{}")] * calls
    assert len({call.id for call in choice.calls}) == calls
    assert (choice.n_sampled < len(ids)) == one_call


def test_log_probabilities_name_every_token_and_their_bytes_are_the_text() -> None:
    whale = CHAT.tokenizer.encode("a🐋")
    drawn = [SampledToken(0, id_, logprob=-0.5, top=((id_, -0.5), (7, -inf))) for id_ in whale]
    told = logprobs.chat_logprobs(CHAT.tokenizer, drawn)["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in told).decode() == "a🐋"
    assert [entry["top_logprobs"][1]["logprob"] for entry in told] == [-9999.0] * 5
    json.dumps(told, allow_nan=False)
    assert logprobs.chat_logprobs(CHAT.tokenizer, [SampledToken(0, CHAT.stop_ids[0])])["content"][0]["bytes"] is None
    text = logprobs.text_logprobs(CHAT.tokenizer, drawn[:1], logprobs.TextOffsets(CHAT.tokenizer, 3))
    assert text == {
        "tokens": ["a"],
        "token_logprobs": [-0.5],
        "top_logprobs": [{"a": -0.5, CHAT.tokenizer.token(7): -9999.0}],
        "text_offset": [3],
    }


def test_of_two_tokens_with_one_name_the_likelier_is_told() -> None:
    """Halves of characters are all called U+FFFD."""
    half, other = [id_ for id_ in range(CHAT.tokenizer.vocab_size) if CHAT.tokenizer.token(id_) == "\ufffd"][:2]
    drawn = SampledToken(0, half, logprob=-0.5, top=((half, -0.5), (other, -2.0)))
    told = logprobs.text_logprobs(CHAT.tokenizer, [drawn], logprobs.TextOffsets(CHAT.tokenizer))
    assert told["top_logprobs"] == [{"\ufffd": -0.5}]


@given(st.lists(st.integers(0, CHAT.tokenizer.vocab_size)))
def test_an_offset_is_the_place_of_the_tokens_first_byte_in_the_text(ids: list[int]) -> None:
    """Also where bytes are no characters, and where an id is unknown."""
    offsets, tokenizer = logprobs.TextOffsets(CHAT.tokenizer), CHAT.tokenizer
    for place, id_ in enumerate(ids):
        until = tokenizer.decode(ids[: place + 1], specials=True)
        assert offsets.next_offset(id_) == len(until) - len(tokenizer.token(id_))
