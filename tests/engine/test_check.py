"""Whatever `submit` refuses, `check` refuses with the same text; in a batch the refusal names the request."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rorqual.core.errors import RorqualError
from rorqual.core.records import Message
from rorqual.engine import Engine, Request, SamplingParams
from rorqual.engine.request import Grammar

GOOD = Request(params=SamplingParams(max_tokens=2), prompt_ids=(50, 51))


def with_grammar(kind: Any, source: str) -> Request:
    return replace(GOOD, params=SamplingParams(max_tokens=2, grammar=Grammar(kind, source)))


REFUSED: dict[str, Request] = {
    "a reference": with_grammar("json_schema", '{"$ref": "#/$defs/none"}'),
    "no schema": with_grammar("json_schema", "{"),
    "a broken expression": with_grammar("regex", "(a"),
    "no way": with_grammar("json_schema", '{"type": "integer", "minimum": 3, "maximum": 1}'),
    "choices of nothing": with_grammar("choice", "[]"),
    "functions as a text": with_grammar("calls", "x"),
    "no kind": with_grammar("yaml", ""),
    "min_tokens": replace(GOOD, params=SamplingParams(max_tokens=2, min_tokens=3)),
    "a prompt beyond": replace(GOOD, prompt_ids=(50,) * 96),
    "no prompt": replace(GOOD, prompt_ids=()),
    "a token beyond": replace(GOOD, prompt_ids=(999,)),
    "a role": Request((Message("boss", "x"),)),  # type: ignore[arg-type]
    "no messages": Request(()),
}


@pytest.mark.parametrize("name", REFUSED)
def test_check_refuses_what_submit_does_and_a_batch_names_it(engine: Engine, name: str) -> None:
    request = REFUSED[name]
    with pytest.raises(RorqualError) as by_submit:
        engine.submit(request)
    with pytest.raises(RorqualError) as by_check:
        engine.check(request)
    assert str(by_check.value) == str(by_submit.value) and type(by_check.value) is type(by_submit.value)
    with pytest.raises(RorqualError, match="request 2") as by_generate:
        engine.generate([GOOD, GOOD, request])
    assert str(by_generate.value).replace("request 2", "request") == str(by_check.value)
    with pytest.raises(RorqualError, match=r"^line 7"):
        engine.check(request, "line 7")
    engine.check(GOOD)
    assert engine.stats()["running"] + engine.stats()["waiting"] == 0


def test_a_checked_grammar_is_compiled_for_its_tenant(engine: Engine) -> None:
    """A schema is tried in another process first, so a compilation is not done at once."""
    request = with_grammar("json_schema", '{"const": "of one tenant"}')
    engine.check(replace(request, tenant="a"))
    grammar = request.params.grammar
    assert grammar is not None
    assert engine.grammar_compiler.submit(grammar, "a").done()
    assert not engine.grammar_compiler.submit(grammar, "b").done()
