"""A sampling key does the same from Python, in a row of a file, as a setting of the command, in a request and through our own client. A key that
is dropped on the way gives the answer that it has without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from served import Server

from rorqual.core.records import Message
from rorqual.engine import Engine, Request, SamplingParams
from rorqual.engine.remote.engine import RemoteEngine
from rorqual.generate.batch import answers, record
from rorqual.generate.schema import Ask, Asking, Sampling

MARKS = ((5, -100.0), (6, -100.0))  # of thinking
BASE = SamplingParams(max_tokens=24, temperature=1.5, top_p=0.6, min_p=0.08, seed=5, logit_bias=MARKS)
KEYS: dict[str, tuple[SamplingParams, Any]] = {
    "min_tokens": (replace(BASE, logit_bias=(*MARKS, (1, 100.0), (2, 100.0), (3, 100.0), (4, 100.0))), 7),
    "min_p_first": (BASE, True),
    "prompt_logprobs": (replace(BASE, max_tokens=2), 3),
}


@pytest.fixture(scope="module")
def engine(run: Path) -> Engine:
    return Engine(run, record_experts=False, slots=2)


def said(one: Any) -> tuple[Any, ...]:
    return one.text, one.usage["completion_tokens"], one.prompt_logprobs, one.prompt_top_logprobs


@pytest.mark.parametrize("key", KEYS)
def test_a_key_does_the_same_at_every_seam(engine: Engine, server: Server, key: str) -> None:
    base, value = KEYS[key]
    params = replace(base, **{key: value})
    messages = (Message("user", "hello"),)
    [[without], [here]] = engine.generate([Request(messages, one, "off") for one in (base, params)])
    assert said(here) != said(without)

    given = {
        "max_tokens": params.max_tokens, "temperature": params.temperature, "top_p": params.top_p, "min_p": params.min_p,
        "seed": params.seed, "logit_bias": {str(token): bias for token, bias in params.logit_bias},
    }  # fmt: skip
    row = {"prompt": "hello", "seed": params.seed}
    asked = [
        Asking(Sampling(**given, thinking="off")).ask(1, {**row, key: value}),
        Asking(Sampling(**{**given, key: value}, thinking="off")).ask(1, row),
    ]
    for ask in asked:
        assert isinstance(ask, Ask) and ask.request.params == params
    lines = [record(*one) for some in answers(engine, asked[:1], room=1) for one in some]
    assert lines[0]["choices"][0]["text"] == here.text and lines[0]["choices"][0]["tokens"] == said(here)[1]
    assert lines[0].get("prompt_logprobs") == here.prompt_logprobs
    best = here.prompt_top_logprobs
    assert lines[0].get("prompt_top_logprobs") == (best and [[list(pair) for pair in place] for place in best])

    body = {**given, key: value, "model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
    with server.client as client:
        answer = client.post("/v1/chat/completions", json=body | {"chat_template_kwargs": {"thinking": False}}).json()
    assert answer["choices"][0]["message"]["content"] == here.text
    assert answer["usage"]["completion_tokens"] == said(here)[1]
    assert len(answer.get("prompt_logprobs", ())) == len(here.prompt_logprobs or ())

    [[there]] = RemoteEngine(f"{server.url}/v1", "tiny", api_key=server.key).generate(
        [Request(messages, params, "off")]
    )
    assert said(there) == said(here)
