"""Whose grammar is compiled next."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as Late

import pytest

from rorqual.core.errors import DataError
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.grammar import compiler as room
from rorqual.engine.grammar.compiler import Grammars
from rorqual.engine.grammar.queue import CompileQueue, CompileTask
from rorqual.engine.request import Grammar

SECONDS = 60.0


class Desk:
    """One thread, held up until it may go; `ran`: what it ran, in order."""

    def __init__(self) -> None:
        self.turns: CompileQueue[str] = CompileQueue(1, "test")
        self.ran: list[str] = []
        self.go, self.held = threading.Event(), threading.Event()
        self.first = CompileTask(self._hold)
        self.turns.add("first", self.first)
        assert self.held.wait(SECONDS)

    def _hold(self) -> str:
        self.held.set()
        assert self.go.wait(SECONDS)
        return "first"

    def build(self, name: str) -> CompileTask[str]:
        def work() -> str:
            self.ran.append(name)
            return name

        return CompileTask(work)

    def add(self, tenant: str, name: str) -> CompileTask[str]:
        build = self.build(name)
        self.turns.add(tenant, build)
        return build


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.go.set()
    desk.turns.close()


def test_tenants_take_turns_and_each_keeps_its_order(desk: Desk) -> None:
    builds = [desk.add("a", f"a{n}") for n in range(4)]
    builds += [desk.add("b", "b0"), desk.add("c", "c0"), desk.add("c", "c1")]
    desk.go.set()
    assert [build.within(SECONDS) for build in builds] == ["a0", "a1", "a2", "a3", "b0", "c0", "c1"]
    assert desk.ran == ["a0", "b0", "c0", "a1", "c1", "a2", "a3"]


def test_what_nobody_waits_for_is_not_done_and_costs_no_turn(desk: Desk) -> None:
    given_up, stays = [desk.add("a", f"a{n}") for n in range(3)], desk.add("a", "a3")
    other = desk.add("b", "b0")
    assert all(build.cancel() for build in given_up)
    assert not desk.first.cancel(), "it runs"
    desk.go.set()
    assert (stays.within(SECONDS), other.within(SECONDS)) == ("a3", "b0")
    assert desk.ran == ["a3", "b0"]
    with pytest.raises(CancelledError):
        given_up[0].within(SECONDS)


def test_what_two_wait_for_is_done_once_when_the_first_of_them_has_its_turn(desk: Desk) -> None:
    for number in range(3):
        desk.add("a", f"a{number}")
    shared = desk.add("a", "shared")
    for _ in range(2):
        desk.turns.add("b", shared)
    last = desk.add("a", "last")
    desk.go.set()
    last.within(SECONDS)
    assert desk.ran == ["a0", "shared", "a1", "a2", "last"]


def test_the_clock_starts_with_the_turn(desk: Desk) -> None:
    waiting = desk.add("a", "a0")
    with pytest.raises(Late):
        desk.first.within(0.01)
    assert waiting.began is None, "it has not been late, for it has not begun"
    found: list[str] = []
    asking = threading.Thread(target=lambda: found.append(waiting.within(SECONDS)))
    asking.start()
    desk.go.set()
    asking.join(SECONDS)
    assert found == ["a0"] and waiting.began is not None


def test_an_error_is_told_to_whoever_waits_and_the_next_runs(desk: Desk) -> None:
    def fails() -> str:
        raise DataError("no")

    poison = CompileTask(fails)
    desk.turns.add("a", poison)
    twin = desk.add("a", "twin")
    desk.go.set()
    assert isinstance(poison.exception(SECONDS), DataError)
    assert twin.within(SECONDS) == "twin"


def test_what_has_not_begun_when_it_closes_never_does(desk: Desk) -> None:
    waiting = desk.add("a", "a0")
    desk.turns.close()
    desk.go.set()
    with pytest.raises(CancelledError):
        waiting.within(SECONDS)
    assert desk.first.within(SECONDS) == "first"
    assert not desk.ran


def test_a_grammar_that_is_held_is_found_however_many_came_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that waits for its grammar must not have it compiled once more, behind all others."""
    monkeypatch.setattr(room, "CACHED", 2)
    tokenizer = Tokenizer.byte_level()
    grammars = Grammars(tokenizer, tokenizer.vocab_size, [0])
    wanted = Grammar("choice", json.dumps(["yes"]))
    held = grammars.submit(wanted, "b")
    compiled = held.within(SECONDS)
    for number in range(5):
        grammars.compile(Grammar("choice", json.dumps([f"no {number}"])))
    assert grammars.submit(wanted, "b") is held
    assert grammars.compile(wanted) is compiled
    grammars.close()


def test_a_grammar_that_was_given_up_is_compiled_when_it_is_asked_for_again() -> None:
    tokenizer = Tokenizer.byte_level()
    grammars = Grammars(tokenizer, tokenizer.vocab_size, [0])
    wanted = Grammar("choice", json.dumps(["yes"]))
    with grammars._building:  # as if the others took long
        others = [grammars.submit(Grammar("choice", json.dumps([f"no {number}"]))) for number in range(3)]
        given_up = grammars.submit(wanted)
        assert given_up.cancel()
        again = grammars.submit(wanted)
    assert again is not given_up
    assert again.within(SECONDS) is grammars.compile(wanted)
    assert [other.within(SECONDS) for other in others]
    grammars.close()
