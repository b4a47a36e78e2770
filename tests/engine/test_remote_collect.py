"""Answers handed over as they arrive, who is asked for money before each try, and what a failure leaves under way."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest
from test_remote import Server, ask, fault, remote, reply

from rorqual.core.errors import DataError, TaskError
from rorqual.engine import Completion
from rorqual.engine.remote import RemoteError


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


class Till:
    """Lets `most` tries through, and writes down who came."""

    def __init__(self, most: int = 10**6) -> None:
        self.most, self.events, self._lock = most, list[tuple[str, int]](), threading.Lock()

    def enter(self, place: int) -> bool:
        with self._lock:
            self.most -= 1
            self.events.append(("enter", place) if self.most >= 0 else ("turned away", place))
            return self.most >= 0

    def refused(self, place: int) -> None:
        self.events.append(("refused", place))

    def left(self, place: int) -> None:
        self.events.append(("left", place))


def questions(count: int) -> list[tuple[Any, int]]:
    return [(ask(f"q{i}"), 0) for i in range(count)]


def test_each_answer_is_handed_over_on_arrival_one_at_a_time(server: Server) -> None:
    slow = threading.Event()

    def answer(body: dict[str, Any], number: int) -> Any:
        if "q0" in body["messages"][-1]["content"]:
            slow.wait(60)
        return reply(body["messages"][-1]["content"])

    server.answer = answer
    came: list[tuple[int, str]] = []
    inside = threading.Lock()

    def arrived(place: int, completion: Completion) -> None:
        assert inside.acquire(blocking=False), "two at once"
        time.sleep(0.002)
        came.append((place, completion.text))
        inside.release()
        if len(came) == 5:
            slow.set()  # the first question is answered only after all others were handed over

    assert remote(server, concurrency=3).collect(questions(6), arrived)
    assert sorted(came) == [(i, f"q{i}") for i in range(6)] and came[-1][0] == 0


def test_after_a_failure_what_is_under_way_is_still_handed_over(server: Server) -> None:
    def answer(body: dict[str, Any], number: int) -> Any:
        under_way.wait(60)
        if "q1" in body["messages"][-1]["content"]:
            return fault(400, "q1 is bad")
        assert failed.wait(60)
        return reply("late")

    under_way, failed = threading.Barrier(3), threading.Event()

    class Told(Till):
        def left(self, place: int) -> None:
            if place == 1:  # the client has read the refusal
                failed.set()

    server.answer = answer
    came: list[int] = []
    with pytest.raises(RemoteError, match="q1 is bad"):
        remote(server, concurrency=3).collect(questions(30), lambda place, _: came.append(place), Told())
    assert sorted(came) == [0, 2] and len(server.bodies) == 3


def test_what_the_receiver_raises_stops_everything_and_is_raised(server: Server) -> None:
    def arrived(place: int, completion: Completion) -> None:
        raise TaskError("its grader failed", where="task x")

    with pytest.raises(TaskError, match="task x: its grader failed"):
        remote(server, concurrency=2).collect(questions(40), arrived)
    assert len(server.bodies) <= 4


def test_nothing_is_sent_once_the_receiver_has_raised(server: Server) -> None:
    """Also where the thread that would tell the others is slow: each of these has its answer and waits to hand it over."""
    together = threading.Barrier(4)

    def answer(body: dict[str, Any], number: int) -> Any:
        if number < 8:
            together.wait(60)
        return fault(400)

    def slowed(frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_name != "one":
            return None
        if event == "line" and threading.get_ident() in stopped:
            time.sleep(0.1)  # so that others come first where they can
        return slowed

    def refused(place: int, error: RemoteError) -> None:
        if len(server.bodies) == 8 and not stopped:
            stopped.append(threading.get_ident())
            raise error

    server.answer, stopped = answer, list[int]()
    threading.settrace(slowed)
    try:
        with pytest.raises(RemoteError):
            remote(server, concurrency=4).collect(questions(40), lambda *_: None, refused=refused)
    finally:
        threading.settrace(None)  # type: ignore[arg-type]
    assert len(server.bodies) == 8


def test_the_toll_is_asked_before_each_try_and_told_of_each_refusal(server: Server) -> None:
    server.answer = lambda body, number: fault(503) if number < 2 else reply("x")
    till, came = Till(), list[int]()
    assert remote(server, retries=3).collect(questions(1), lambda place, _: came.append(place), till)
    assert till.events == [("enter", 0), ("refused", 0), ("enter", 0), ("refused", 0), ("enter", 0), ("left", 0)]
    server.answer = lambda *_: (200, b'{"choices"', {})
    till = Till()
    with pytest.raises(RemoteError, match=r"broke off after 10 bytes \(tried 2 times\)"):
        remote(server, retries=1).collect(questions(1), lambda *_: None, till)
    assert till.events == [("enter", 0), ("enter", 0), ("left", 0)], "half an answer may have been billed"


@pytest.mark.parametrize("concurrency", [1, 4])
def test_no_more_is_sent_than_the_toll_lets_through(server: Server, concurrency: int) -> None:
    till, came = Till(7), list[int]()
    engine = remote(server, concurrency=concurrency)
    assert not engine.collect(questions(20), lambda place, _: came.append(place), till)
    assert len(server.bodies) == len(came) == 7
    assert engine.collect(questions(20), lambda place, _: came.append(place), Till(20))


def test_questions_without_words_are_refused_before_anything_is_sent(server: Server) -> None:
    from rorqual.engine import Request

    with pytest.raises(DataError, match="request 1"):
        remote(server).collect([(ask(), 0), (Request(prompt_ids=(1,)), 0)], lambda *_: None)
    assert not server.bodies and remote(server).collect([(ask(), 0)], lambda *_: None)
