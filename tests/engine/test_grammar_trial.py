"""A grammar that takes too long ends alone: no process of it stays, other tenants' grammars are compiled meanwhile."""

from __future__ import annotations

import http.server
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rorqual.core.errors import DataError
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Engine, Request, SamplingParams
from rorqual.engine.grammar import compiler
from rorqual.engine.grammar.compiler import GrammarCompiler
from rorqual.engine.grammar.constraint import SLOW, Constraint
from rorqual.engine.grammar.queue import CompileQueue, CompileTask
from rorqual.engine.grammar.trial_process import MISMATCH
from rorqual.engine.request import Grammar

SECONDS = 60.0
ENDLESS = Grammar("json_schema", json.dumps({"type": "integer", "multipleOf": 12345.678}))
QUICK = Grammar("regex", "[a-c]+")


def chain(links: int, last: dict[str, Any], *more: dict[str, Any], by: int = 1) -> dict[str, Any]:
    """Definitions of which each refers to the next `by` times. The double negation keeps llguidance from following the references."""
    defs = {f"a{i}": {"allOf": [*[{"$ref": f"#/$defs/a{i + 1}"}] * by, *more]} for i in range(links)}
    return {"not": {"not": {"$ref": "#/$defs/a0"}}, "$defs": {**defs, f"a{links}": last}}


def schema(parts: dict[str, Any]) -> Grammar:
    return Grammar("json_schema", json.dumps(parts))


DOUBLING = schema({"enum": [1], **chain(60, {"type": "integer"}, by=2)})
"""Checking an answer follows 2^60 references."""
ARRAYS = {"type": "array", "items": {"$ref": "#/$defs/r"}}
DEEP = chain(1000, {"items": {"$ref": "#/$defs/a0"}}, {"maxItems": 9})
DEEP = {**ARRAYS, **DEEP, "$defs": {**DEEP["$defs"], "r": ARRAYS}}


def finished(grammars: GrammarCompiler, grammar: Grammar, text: str, tenant: str = "") -> Constraint:
    """The constraint of a reply that ended with the text."""
    constraint = grammars.compile(grammar, tenant=tenant).new_constraint()
    for token in Tokenizer.byte_level().encode(text):
        constraint.mask()
        constraint.accept(token)
    constraint.accept(0)
    return constraint


@pytest.fixture
def grammars() -> Iterator[GrammarCompiler]:
    tokenizer = Tokenizer.byte_level()
    grammars = GrammarCompiler(tokenizer, tokenizer.vocab_size, [0])
    yield grammars
    grammars.close()


def children(process: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{process}/task").iterdir():
        found += [int(word) for word in (task / "children").read_text(encoding="ascii").split()]
    return found


def forks() -> list[int]:
    """The trials that run."""
    return [fork for process in children(os.getpid()) for fork in children(process)]


def wait_for(count: int) -> None:
    until = time.monotonic() + SECONDS
    while len(forks()) != count:
        assert time.monotonic() < until, forks()
        time.sleep(0.005)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_what_takes_too_long_is_refused_and_leaves_nothing(grammars: GrammarCompiler) -> None:
    grammars.compile(QUICK)
    before, threads = resident(), threading.active_count()
    for _ in range(2):
        with pytest.raises(DataError, match="more than 1 s of CPU time"):
            grammars.compile(ENDLESS, where="request")
    assert forks() == []
    assert threading.active_count() <= threads + 1
    assert resident() - before < 20 << 20


def test_what_takes_too_much_memory_is_refused(grammars: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    before = resident()
    with pytest.raises(DataError, match="48 MB of memory"):
        grammars.compile(Grammar("regex", "a{1000000}"))
    assert resident() - before < 48 << 20


def test_another_tenant_compiles_meanwhile_and_a_cancelled_trial_is_killed(grammars: GrammarCompiler) -> None:
    endless = [grammars.submit(ENDLESS, "a") for _ in range(4)]
    wait_for(1)  # and no second one of this tenant
    grammars.compile(Grammar("regex", "b+"), tenant="b")
    assert not endless[0].done()
    for task in reversed(endless):
        task.cancel()
    wait_for(0)
    assert isinstance(endless[0].exception(SECONDS), CancelledError)
    assert all(task.cancelled() for task in endless[1:])
    grammars.compile(Grammar("regex", "a+"), tenant="a")


def test_a_tenant_does_not_get_the_grammar_of_another(grammars: GrammarCompiler) -> None:
    one = grammars.compile(QUICK, tenant="a")
    assert grammars.compile(QUICK, tenant="a") is one
    assert grammars.compile(QUICK, tenant="b") is not one


def test_a_full_cache_evicts_the_oldest_grammar_of_the_largest_tenant(
    grammars: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "CACHED", 3)

    def kept(tenant: str, text: str) -> list[str]:
        grammars.compile(Grammar("choice", json.dumps([text])), tenant=tenant)
        return [owner + json.loads(grammar.source)[0] for owner, grammar in grammars._cached]

    held = grammars.submit(Grammar("choice", '["0"]'), "a").result(SECONDS)
    assert kept("b", "0") == ["a0", "b0"]
    assert kept("a", "1") == ["a0", "b0", "a1"]
    assert kept("a", "2") == ["b0", "a1", "a2"]
    assert kept("a", "1") == ["b0", "a2", "a1"]
    assert kept("a", "3") == ["b0", "a1", "a3"]
    assert grammars.compile(Grammar("choice", '["0"]'), tenant="a") is held, (
        "whoever holds it does not compile it again"
    )


def test_the_processes_end_with_the_engine() -> None:
    tokenizer = Tokenizer.byte_level()
    before = children(os.getpid())
    grammars = GrammarCompiler(tokenizer, tokenizer.vocab_size, [0])
    endless = grammars.submit(ENDLESS)
    wait_for(1)
    started = set(children(os.getpid())) - set(before)
    assert started
    grammars.close()
    assert not started & set(children(os.getpid()))
    assert endless.exception(SECONDS) is not None


def test_a_trial_process_that_dies_is_replaced(grammars: GrammarCompiler) -> None:
    before = set(children(os.getpid()))
    grammars.compile(QUICK)
    (process,) = set(children(os.getpid())) - before
    os.kill(process, 9)
    with pytest.raises(DataError):
        grammars.compile(Grammar("regex", "b+"))
    assert grammars.compile(Grammar("regex", "b+"))


@pytest.mark.parametrize(
    ("hostile", "text"), [(DOUBLING, "1"), (schema(DEEP), "[" * 300 + "]" * 300)], ids=["doubling", "deep"]
)
def test_an_answer_that_cannot_be_checked_ends_alone(grammars: GrammarCompiler, hostile: Grammar, text: str) -> None:
    """The check once ran in the engine's process, for ever or until its stack overflowed."""
    slow = finished(grammars, hostile, text, "a")
    assert finished(grammars, schema({"enum": [1], **chain(6, {"type": "integer"}, by=2)}), "1", "b").error == ""
    assert slow.error.startswith(MISMATCH) and "check it takes more than 1 s" in slow.error
    assert forks() == []


def test_the_checks_of_a_tenant_wait_for_one_another_alone(grammars: GrammarCompiler) -> None:
    slow = [finished(grammars, DOUBLING, "1", "a") for _ in range(2)]
    assert finished(grammars, schema({"enum": [1]}), "1", "b").error == ""
    for constraint in slow:
        assert constraint.validation is not None and not constraint.validation.done()
        constraint.validation.cancel()
    wait_for(0)


def test_other_requests_are_served_while_an_answer_is_checked(engine: Engine) -> None:
    params = SamplingParams(max_tokens=60, grammar=DOUBLING)
    hostile, gone = (engine.submit(Request(params=params, prompt_ids=(50,), tenant="a"), plain=True) for _ in range(2))
    calm = engine.submit(Request(params=SamplingParams(max_tokens=60, ignore_eos=True), prompt_ids=(51,)))
    seen = [delta for _ in range(30) for delta in engine.step()]
    assert not [delta for delta in seen if delta.completion], "no check has ended"
    assert sum(delta.request_id == calm for delta in seen) >= 25
    engine.cancel(gone)
    found = {}
    while len(found) < 2:
        found |= {delta.request_id: delta.completion for delta in engine.step() if delta.completion}
    assert found[calm].error == "" and found[hostile].error.startswith(MISMATCH)
    assert engine.generate([Request(params=params, prompt_ids=(50,))])[0][0].error.startswith(MISMATCH)


def test_a_grammar_that_failed_is_compiled_again(grammars: GrammarCompiler) -> None:
    """All replies to a compiled grammar share its lexer's states: after the last of them, each later reply failed."""
    long = schema({"type": "string", "maxLength": 6000})
    text = "".join(map(chr, np.random.default_rng(0).integers(97, 123, 6000)))
    assert finished(grammars, schema({"type": "string", "maxLength": 4000}), f'"{text[:4000]}"').error == ""
    first = grammars.compile(long)
    assert "too many states" in finished(grammars, long, f'"{text}"').error
    assert grammars.compile(long) is not first
    assert finished(grammars, long, '"short"').error == ""


def test_masks_that_take_long_on_average_end_the_reply(grammars: GrammarCompiler) -> None:
    """A tenant pays for slow masks once, also with a further slow grammar. Its fast grammars and other tenants go on."""

    def drawn(arrays: int, tenant: str) -> tuple[str, float]:
        each = {"type": "array", "items": {"$ref": "#/$defs/e"}}
        grammar = schema({"$defs": {"e": {"anyOf": [each] * arrays}}, "$ref": "#/$defs/e"})
        grammars.compile(grammar, tenant=tenant)
        began = time.thread_time()
        return finished(grammars, grammar, "[" * 100 + "]" * 100, tenant).error, time.thread_time() - began

    assert drawn(100, "a")[0] == SLOW
    error, seconds = drawn(101, "a")
    assert error == SLOW and seconds < 0.1
    assert drawn(10, "a")[0] == "" == drawn(10, "b")[0]
    assert drawn(100, "b")[1] > seconds, "a budget of its own"


def test_no_reference_of_a_schema_is_fetched(grammars: GrammarCompiler) -> None:
    asked = []

    class Web(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)

    with http.server.HTTPServer(("127.0.0.1", 0), Web) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        for keyword in ("$ref", "$schema", "$dynamicRef", "$id"):
            schema = {keyword: f"http://127.0.0.1:{web.server_port}/a.json", "items": {"$ref": "b.json"}}
            with pytest.raises(DataError):
                grammars.compile(Grammar("json_schema", json.dumps(schema)))
        web.shutdown()
    assert asked == []


def test_tenants_take_turns_and_each_keeps_its_order() -> None:
    """One thread, held up until all tasks are queued. The first letter of a task is its tenant."""
    turns: CompileQueue[None] = CompileQueue(1)
    go, held, ran = threading.Event(), threading.Event(), list[str]()

    def hold(*_: object) -> None:
        held.set()
        assert go.wait(SECONDS)

    def work_of(name: str) -> Callable[..., None]:
        return lambda *_: ran.append(name)

    turns.add(CompileTask("first", hold))
    assert held.wait(SECONDS)
    tasks = [CompileTask(name[0], work_of(name)) for name in ("a0", "a1", "a2", "a3", "b0", "c0", "c1", "b1")]
    for task in tasks:
        turns.add(task)
    assert tasks.pop().cancel()
    go.set()
    for task in tasks:
        task.result(SECONDS)
    turns.close()
    assert ran == ["a0", "b0", "c0", "a1", "c1", "a2", "a3"]
