"""Answers handed over as they arrive, who is asked for money before each try, and what a failure leaves under way."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Mapping
from types import FrameType
from typing import Any

import pytest
from remote_server import Server, ask, fault, remote, reply

from rorqual.engine import Completion
from rorqual.engine.remote.engine import BudgetGuard, RemoteEngine, RemoteError


class Till(BudgetGuard):
    """Lets `most` tries through, and writes down who came."""

    def __init__(self, most: int = 10**6) -> None:
        self.most, self.events, self._lock = most, list[tuple[str, int]](), threading.Lock()

    def may_send(self, place: int) -> bool:
        with self._lock:
            self.most -= 1
            self.events.append(("enter", place) if self.most >= 0 else ("turned away", place))
            return self.most >= 0

    def count_unbilled_attempt(self, place: int) -> None:
        self.events.append(("refused", place))

    def charge_failed_attempt(self, place: int, usage: Mapping[str, int]) -> None:
        self.events.append((f"used {sum(usage.values())}", place))

    def settle_request(self, place: int) -> None:
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

    assert remote(server, concurrency=3).collect_completions(questions(6), arrived)
    assert sorted(came) == [(i, f"q{i}") for i in range(6)] and came[-1][0] == 0


def test_nothing_is_sent_once_the_receiver_has_raised(server: Server) -> None:
    """Also where the thread that would tell the others is slow: each of these has its answer and waits to hand it over."""
    together = threading.Barrier(4)

    def answer(body: dict[str, Any], number: int) -> Any:
        if number < 8:
            together.wait(60)
        return fault(400)

    def slowed(frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_name != "run_one":
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
            remote(server, concurrency=4).collect_completions(questions(40), lambda *_: None, refused=refused)
    finally:
        threading.settrace(None)  # type: ignore[arg-type]
    assert len(server.bodies) == 8


def test_the_toll_is_asked_before_each_try_and_told_of_each_refusal(server: Server) -> None:
    server.answer = lambda body, number: fault(429) if number < 2 else reply("x")
    till, came = Till(), list[int]()
    assert remote(server, retries=3).collect_completions(questions(1), lambda place, _: came.append(place), till)
    assert till.events == [("enter", 0), ("refused", 0), ("enter", 0), ("refused", 0), ("enter", 0), ("left", 0)]
    server.answer = lambda *_: (200, b'{"choices"', {})
    till = Till()
    with pytest.raises(RemoteError, match=r"broke off after 10 bytes \(tried 2 times\)"):
        remote(server, retries=1).collect_completions(questions(1), lambda *_: None, till)
    assert till.events == [("enter", 0), ("enter", 0), ("left", 0)], "half an answer may have been billed"


@pytest.mark.parametrize(("status", "free"), [(400, True), (401, True), (429, True), (302, True), (408, False), (409, False),
    (425, False), (500, False), (501, False), (502, False), (503, False), (504, False)])  # fmt: skip
def test_an_error_that_may_come_after_work_is_no_refusal(server: Server, status: int, free: bool) -> None:
    server.answer = lambda *_: fault(status)
    till = Till()
    with pytest.raises(RemoteError):
        remote(server, retries=0).collect_completions(questions(1), lambda *_: None, till)
    assert till.events == [("enter", 0), *[("refused", 0)] * free, ("left", 0)]


def test_nobody_there_bills_nothing() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    till = Till()
    with pytest.raises(RemoteError, match="refused") as caught:
        RemoteEngine(url, "m", retries=1, backoff=0.01).collect_completions(
            questions(1), lambda *_: None, till, failed=lambda *_: None
        )
    assert not caught.value.alone
    assert till.events == [("enter", 0), ("refused", 0), ("enter", 0), ("refused", 0), ("left", 0)]


EMPTY: tuple[int, Any, dict[str, str]] = (
    200,
    {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 4}},
    {},
)
ALONE = {
    "400": (fault(400, "bad words"), 1, "HTTP 400: bad words"),
    "500": (fault(500), 3, r"HTTP 500: busy \(tried 3 times\)"),
    "HTML": ((200, b"<html>later</html>", {}), 3, r"not JSON: <html>later</html> \(tried 3 times\)"),
    "no choices": (EMPTY, 3, r"no choices.*\(tried 3 times\)"),
    "broken off": ((200, b'{"choices"', {}), 3, r"broke off after 10 bytes \(tried 3 times\)"),
}


@pytest.mark.parametrize("name", ALONE)
def test_a_request_that_fails_by_itself_is_told_and_the_others_go_on(server: Server, name: str) -> None:
    answer, tries, said = ALONE[name]
    server.answer = lambda body, number: answer if "q1" in body["messages"][-1]["content"] else reply("fine")
    came, errors, till = list[int](), dict[int, RemoteError](), Till()
    engine = remote(server, retries=2, concurrency=1)
    assert engine.collect_completions(
        questions(4), lambda place, _: came.append(place), till, failed=errors.__setitem__
    )
    assert came == [0, 2, 3] and list(errors) == [1] and errors[1].alone and len(server.bodies) == 3 + tries
    assert re.search(said, errors[1].what)
    assert [event for event in till.events if event[0].startswith("used ")] == {
        "no choices": [("used 11", 1)] * 3,
        "HTML": [("used 0", 1)] * 3,
    }.get(name, [])
    with pytest.raises(RemoteError, match=said):
        remote(server, retries=2, concurrency=1).collect_completions(questions(4), lambda *_: None)


@pytest.mark.parametrize("status", [401, 403, 404, 429])
def test_what_every_request_would_meet_stops_all(server: Server, status: int) -> None:
    server.answer = lambda *_: fault(status)
    with pytest.raises(RemoteError, match=f"HTTP {status}"):
        remote(server, retries=1).collect_completions(
            questions(9), lambda *_: None, failed=lambda *_: pytest.fail("it goes on")
        )


def test_a_request_that_waited_for_money_is_not_sent_after_another_failed(server: Server) -> None:
    """It may go only when the first is gone, which is when the first has stopped all."""
    gone = threading.Event()

    class Alone(Till):
        def may_send(self, place: int) -> bool:
            return super().may_send(place) and (not place or gone.wait(60))

        def settle_request(self, place: int) -> None:
            super().settle_request(place)
            gone.set()

    server.answer, till = lambda *_: fault(401), Alone()
    with pytest.raises(RemoteError, match="HTTP 401"):
        remote(server, concurrency=2).collect_completions(questions(2), lambda *_: None, till)
    assert len(server.bodies) == 1
    assert ("enter", 1) not in till.events or ("refused", 1) in till.events, "and its money is given back"


@pytest.mark.parametrize(("said", "name"), [("m-2024", "m-2024"), (None, ""), (7, ""), ("\ud83d", "\ufffd")])
def test_the_name_of_the_model_that_answered(server: Server, said: Any, name: str) -> None:
    status, data, headers = reply("ok")
    server.answer = lambda *_: (status, data | {"model": said}, headers)
    assert remote(server).generate([ask()])[0][0].model == name


@pytest.mark.parametrize("concurrency", [1, 4])
def test_no_more_is_sent_than_the_toll_lets_through(server: Server, concurrency: int) -> None:
    till, came = Till(7), list[int]()
    engine = remote(server, concurrency=concurrency)
    assert not engine.collect_completions(questions(20), lambda place, _: came.append(place), till)
    assert len(server.bodies) == len(came) == 7
    assert engine.collect_completions(questions(20), lambda place, _: came.append(place), Till(20))
