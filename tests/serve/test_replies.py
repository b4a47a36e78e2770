"""What reaches a client while its request waits, begins again, or cannot be taken."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from pathlib import Path

import pytest

from rorqual.data.chat import chat_format
from rorqual.data.tokenizer import Tokenizer
from rorqual.serve.bridge import Bridge, Job, Restarted
from rorqual.serve.errors import ApiError
from rorqual.serve.keys import Keys
from rorqual.serve.metrics import Metrics
from rorqual.serve.reading import Reader
from rorqual.serve.replies import Reply
from rorqual.serve.wire import Ask, Drawn, Placed, ask_of, submit

CHAT = chat_format(Tokenizer.byte_level())
ASK = Ask(prompt=(0, 3, 4), max_tokens=9, temperature=0.0, top_p=1.0, top_k=0, seed=0, n=1)


def reply_to(job: Job) -> Reply:
    return Reply(job, CHAT, lambda: Reader.of_text(CHAT), [], Metrics())


def test_silence_is_told_while_a_request_waits_and_changes_nothing() -> None:
    async def told() -> tuple[list[object], Reply]:
        job = Job(1, ASK, "default", left=1)
        reply, found = reply_to(job), []
        async for step in reply.pieces(0.01):
            found.append(step if step is None else step[1].content)
            if len(found) == 2:
                for token in CHAT.tokenizer.encode("ab"):
                    job.events.put_nowait(Drawn(0, token))
                job.events.put_nowait(Drawn(0, CHAT.stop_ids[0], "stop"))
        return found, reply

    found, reply = asyncio.run(told())
    assert found == [None, None, "a", "b", ""]
    assert (reply.choices[0].content, reply.choices[0].reason, reply.usage()["completion_tokens"]) == ("ab", "stop", 3)


def test_a_reply_that_begins_again_keeps_nothing_of_the_first() -> None:
    async def told() -> Reply:
        job = Job(1, ASK, "default", left=1)
        reply = reply_to(job)
        first, second = CHAT.tokenizer.encode("xy")
        for event in (Drawn(0, first), Restarted(), Drawn(0, second, "length")):
            job.events.put_nowait(event)
        await reply.whole()
        return reply

    reply = asyncio.run(told())
    assert (reply.choices[0].content, reply.usage()["completion_tokens"]) == ("y", 1)


def test_a_cancellation_that_comes_together_with_a_token_is_not_lost() -> None:
    async def ended() -> bool:
        job = Job(1, ASK, "default", left=1)
        reply = reply_to(job)

        async def read() -> None:
            async with aclosing(reply.pieces(5)) as pieces:
                async for _ in pieces:
                    pass

        task = asyncio.create_task(read())
        await asyncio.sleep(0.01)
        job.events.put_nowait(Drawn(0, 100))
        task.cancel()
        await asyncio.wait([task], timeout=1)
        return task.cancelled() and reply.metrics.cancelled == 1

    assert asyncio.run(ended())


def test_more_requests_than_the_queue_takes_are_refused_until_one_has_left() -> None:
    async def taken() -> None:
        bridge = Bridge(Placed("nowhere"), queue=1)
        with bridge.job(ASK, "a"):
            with pytest.raises(ApiError) as caught, bridge.job(ASK, "b"):
                pass
            assert caught.value.status == 429
        with bridge.job(ASK, "b"):
            pass
        await bridge.stop()
        with pytest.raises(ApiError) as stopping, bridge.job(ASK, "b"):
            pass
        assert stopping.value.status == 503

    asyncio.run(taken())


def test_a_request_crosses_the_pipe_as_it_was() -> None:
    assert ask_of(json.loads(submit(7, ASK))) == ASK


def test_each_key_has_its_tenant_and_none_is_shown_twice(tmp_path: Path) -> None:
    keys = Keys.load(tmp_path / "k.json")
    ours, theirs = keys.ensure("ours"), keys.ensure("theirs")
    assert ours is not None and theirs is not None
    again = Keys.load(tmp_path / "k.json")
    assert (again.tenant(ours), again.tenant(theirs), again.tenant("rq-"), again.tenant("")) == (
        "ours",
        "theirs",
        None,
        None,
    )
    assert again.ensure("ours") is None
