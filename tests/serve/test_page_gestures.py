"""Gestures on the page that come while another is under way: what is late changes nothing, and they count in their order.

Gradio is real here, the browser is not: `Screen` is what it shows.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import gradio
import pytest
from starlette.types import Receive, Scope, Send

from rorqual.serve.ui_chat import Chat
from rorqual.serve.ui_turn import Row, Wanted, upto_question

LATE = 0.3
"""Seconds, in which everything happens that does not wait for something."""


class Api:
    """Answers word by word, for ever. It keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = json.loads((await receive())["body"])
        self.asked.append([message["content"] for message in body["messages"]])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        self.under_way += 1
        try:
            while True:
                chunk = {"choices": [{"index": 0, "delta": {"content": "la "}, "finish_reason": None}]}
                await send({"type": "http.response.body", "body": b"data: %b\n\n" % json.dumps(chunk).encode()})
                await asyncio.sleep(0.01)
        finally:
            self.under_way -= 1


class Screen:
    """What a visitor does, and sees. As Gradio has it, a picture is sent some time after it was made, and a handler's last one again when the
    handler has ended. What is not sent `at_once` waits for `sending`, and the end of its handler is late."""

    def __init__(self) -> None:
        self.api, self.held = Api(), list[Row]()
        self.chat = Chat(gradio, self.api, "model")
        self.rows: list[Row] = []
        self.seen: list[list[str]] = []
        self.said: list[str] = []
        self.sending = asyncio.Event()
        self.sending.set()

    async def _show(self, pictures: AsyncGenerator[tuple[Any, ...], None], *, at_once: bool) -> None:
        last: tuple[Any, ...] | None = None
        async for last in pictures:
            await self._send(last, at_once)
        if last is not None:
            if not at_once:
                await asyncio.sleep(LATE)
            await self._send(last, at_once)

    async def _send(self, picture: tuple[Any, ...], at_once: bool) -> None:
        if not at_once:
            await self.sending.wait()
        rows, held, _, status = picture
        assert held is self.held or held == gradio.skip()
        if rows != gradio.skip():
            self.rows = rows
            self.seen.append([row["content"] for row in rows])
            self.said.append(status)

    def ask(self, text: str, *, at_once: bool = True) -> asyncio.Task[None]:
        return self._reply(lambda rows: [*rows, {"role": "user", "content": text}], at_once)

    def retry(self) -> asyncio.Task[None]:
        return self._reply(upto_question, True)

    def _reply(self, asked: Callable[[list[Row]], list[Row]], at_once: bool) -> asyncio.Task[None]:
        pictures = self.chat.reply(self.held, asked, Wanted(), "tenant", "session")
        return asyncio.create_task(self._show(pictures, at_once=at_once))

    def clear(self) -> asyncio.Task[None]:
        return asyncio.create_task(self._show(self.chat.clear(self.held, "session"), at_once=True))

    async def until_answered(self) -> None:
        async with asyncio.timeout(300):
            while not any(row["role"] == "assistant" for row in self.rows):
                await asyncio.sleep(0.01)


def on_a_screen(act: Callable[[Screen], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(600):
            await act(Screen())

    asyncio.run(run())


@pytest.mark.parametrize("again", [False, True], ids=["new chat", "new chat, and a question"])
def test_a_late_picture_of_a_reply_does_not_come_back_in_a_new_chat(again: bool) -> None:
    async def act(screen: Screen) -> None:
        old = screen.ask("old", at_once=False)
        await screen.until_answered()
        screen.sending.clear()  # what is made from here on is under way, and stays so for a while
        await asyncio.sleep(LATE)
        clear = screen.clear()
        new = screen.ask("new") if again else None
        await asyncio.sleep(LATE)
        screen.sending.set()
        await clear
        if new:
            await screen.until_answered()
        await old
        began = screen.seen.index([])
        assert all("old" not in rows for rows in screen.seen[began:])
        assert [row["content"] for row in screen.held if row["role"] == "user"] == ["new"] * again
        assert screen.api.asked == [["old"]] + [["new"]] * again
        if new:
            screen.chat.stop("session")
            await new
        assert screen.api.under_way == 0 and screen.rows == screen.held

    on_a_screen(act)


def test_a_retry_that_a_new_chat_overtakes_asks_nothing() -> None:
    async def act(screen: Screen) -> None:
        old = screen.ask("old")
        await screen.until_answered()
        retry, clear = screen.retry(), screen.clear()
        await asyncio.gather(old, retry, clear)
        assert screen.rows == screen.held == [] and screen.api.asked == [["old"]] and screen.api.under_way == 0
        assert sum("Waiting" in status for status in screen.said) == 1, "the retry did not even begin"

    on_a_screen(act)


def test_a_retry_begins_when_the_reply_before_it_has_left_its_place() -> None:
    async def act(screen: Screen) -> None:
        old = screen.ask("old")
        await screen.until_answered()
        retry = screen.retry()
        await old
        assert not any("Stopped" in status for status in screen.said), "nobody stopped it"
        await screen.until_answered()
        assert screen.api.under_way == 1 and screen.api.asked == [["old"]] * 2
        screen.chat.stop("session")
        await retry
        assert [row["role"] for row in screen.rows] == ["user", "assistant"] and screen.rows == screen.held

    on_a_screen(act)


def test_whoever_leaves_in_the_middle_holds_up_nobody() -> None:
    """Gradio closes a handler whose pictures nobody fetches."""

    async def act(screen: Screen) -> None:
        pictures = screen.chat.reply(
            screen.held, lambda rows: [{"role": "user", "content": "old"}], Wanted(), "tenant", "session"
        )
        await anext(pictures)
        clear = screen.clear()
        await asyncio.sleep(LATE)
        assert not clear.done()
        await pictures.aclose()
        await clear
        assert screen.api.under_way == 0 and screen.rows == screen.held == []

    on_a_screen(act)


def test_whoever_leaves_while_it_waits_lets_nobody_pass() -> None:
    """A gesture that comes after it begins when the one that it waited for has left its place, and not before."""

    async def act(screen: Screen) -> None:
        screen.sending.clear()
        old = screen.ask("old", at_once=False)
        await asyncio.sleep(LATE)
        retry = screen.retry()
        await asyncio.sleep(LATE)
        retry.cancel()
        clear = screen.clear()
        await asyncio.sleep(LATE)
        assert not clear.done(), "the first reply is still under way"
        screen.sending.set()
        await asyncio.gather(old, clear)
        assert screen.rows == screen.held == [] and screen.api.under_way == 0
        after = screen.ask("new")
        await screen.until_answered()
        screen.chat.stop("session")
        await after
        assert screen.api.asked == [["old"], ["new"]]

    on_a_screen(act)
