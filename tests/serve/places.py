"""The places that a sampling parameter passes, each as a function from what is asked for to the `SamplingParams` that come out behind it.

As a script it follows parameters through all of them: `python places.py FOLDER NAME...`, with a folder for a run.
"""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from shapes import chat_of, text_of

from rorqual.cli.generating import read_generate_settings
from rorqual.core.records import Message
from rorqual.core.sampling import (
    PARAMS,
    Flag,
    FloatRange,
    Grammar,
    GrammarType,
    IntRange,
    SamplingParam,
    SamplingParams,
    TextList,
    TokenBiases,
    TokenList,
)
from rorqual.engine import Engine, Request
from rorqual.engine.remote.engine import RemoteEngine
from rorqual.generate.schema import RowParser, RowSampling
from rorqual.generate.schema import RowRequest as RowAsk
from rorqual.serve.wire import EngineRequest, pack, submit_message
from rorqual.serve.worker import EngineWorker
from served import write_run

MESSAGES = (Message("user", "hello"),)
NOBODY = RemoteEngine("http://127.0.0.1:9/v1", "m", retries=0)
Place = Callable[[dict[str, Any]], SamplingParams]


def unlike(param: SamplingParam) -> Any:
    """A value that every place takes, which is neither the default nor another parameter's value."""
    number = 1 + list(PARAMS).index(param.name)
    match param.type:
        case IntRange():
            return number
        case FloatRange():
            ranges = [one for one in (param.type, param.in_file, param.served) if isinstance(one, FloatRange)]
            low, high = max(one.low for one in ranges), min(one.high for one in ranges)
            return low + (high - low) * number / 64
        case Flag():
            return not param.default
        case TextList():
            return (f"text {number}", "x")
        case TokenList():
            return (number, 100)
        case TokenBiases():
            return ((number, 0.5), (100, -1.0))
        case GrammarType():
            return Grammar("regex", "a+")
    raise AssertionError(f"{param.name} is of a type that this test does not know")


def in_json(given: dict[str, Any]) -> dict[str, Any]:
    return {
        name: asdict(value) if isinstance(value, Grammar) else PARAMS[name].type.to_json_value(value)
        for name, value in given.items()
    }


def served(given: dict[str, Any], *, chat: bool) -> dict[str, Any]:
    """As a request names it."""
    fields = {"seed": 0, **in_json(given)}
    if "grammar" in fields:
        fields["guided_regex"] = fields.pop("grammar")["source"]
    if (top := fields.pop("top_logprobs", None)) is not None:
        fields |= {"logprobs": True, "top_logprobs": top} if chat else {"logprobs": top}
    return fields


def by_row(given: dict[str, Any]) -> SamplingParams:
    return row_request(given).params


def row_request(given: dict[str, Any]) -> Request:
    found = RowParser(RowSampling()).parse_row(1, {"prompt": "hello", "seed": 0, **in_json(given)})
    assert isinstance(found, RowAsk), found
    return found.request


def by_command(given: dict[str, Any]) -> SamplingParams:
    words = [f"{name}={json.dumps(value)}" for name, value in in_json(given).items()]
    return read_generate_settings(["run=r", "out=o.jsonl", *words])[1].params()


def by_chat(given: dict[str, Any]) -> SamplingParams:
    return chat_of(**served(given, chat=True)).engine_requests()[0].params


def by_text(given: dict[str, Any]) -> SamplingParams:
    return text_of(**served(given, chat=False)).engine_requests()[0].params


def by_remote(given: dict[str, Any]) -> SamplingParams:
    return by_body(Request(MESSAGES, SamplingParams(**given))).params


def by_body(request: Request) -> EngineRequest:
    """What our client sends, as our server reads it."""
    body = json.loads(json.dumps(NOBODY._request_body(request, 0)))
    del body["messages"], body["model"]
    [ask] = chat_of(**body).engine_requests()
    return ask


def by_wire(engine: Engine, ask: EngineRequest) -> SamplingParams:
    """What the sampler will read of a request that crosses the pipe."""
    worker = EngineWorker(engine, io.BytesIO(), io.BytesIO())
    worker._handle_message(json.loads(b"".join(submit_message(7, pack(ask), "them"))))
    waiting = engine._cores[0].scheduler.waiting
    while not waiting:
        worker._handle_message(worker.inbox.get(timeout=60) or {})
    found = [sequence.params for sequence in waiting]
    for request_id in list(worker.numbers):
        engine.cancel(request_id)
    engine.step()
    assert len(found) == ask.params.n and not waiting
    return found[0]


def places(engine: Engine) -> dict[str, Place]:
    return {
        "a row of a file": by_row,
        "the command line": by_command,
        "a chat": by_chat,
        "a completion": by_text,
        "the client of an address": by_remote,
        "the wire": lambda given: by_wire(engine, EngineRequest((5, 6), SamplingParams(**given))),
        "all in turn": lambda given: by_wire(engine, by_body(row_request(given))),
    }


def check_arrives(engine: Engine, name: str) -> None:
    """A parameter changes itself alone, at each place."""
    value = unlike(PARAMS[name])
    assert value != PARAMS[name].default
    for place, through in places(engine).items():
        if name == "n" and place in ("the client of an address", "all in turn"):
            continue  # each sample is a request of its own
        before, after = through({}), through({name: value})
        assert after == replace(before, **{name: value}), (place, name)
        assert getattr(before, name) != value, (place, name)


def outside(kind: IntRange | FloatRange) -> list[Any]:
    """The nearest values that a range refuses."""
    if isinstance(kind, IntRange):
        return [] if kind.low is None or kind.high is None else [kind.low - 1, kind.high + 1]
    low = kind.low if kind.above else math.nextafter(kind.low, -math.inf)
    high = kind.high if kind.below else math.nextafter(kind.high, math.inf)
    return [low] if math.isinf(high) else [low, high]


def inside(kind: IntRange | FloatRange) -> list[Any]:
    """The first and the last value that a range takes."""
    if isinstance(kind, IntRange):
        return [] if kind.low is None or kind.high is None else [kind.low, kind.high]
    low = math.nextafter(kind.low, math.inf) if kind.above else kind.low
    return [low, math.nextafter(kind.high, -math.inf) if kind.below else kind.high]


if __name__ == "__main__":
    import rorqual

    print(rorqual.__file__)
    engine = Engine(write_run(Path(sys.argv[1])), record_experts=False)
    for name in sys.argv[2:]:
        check_arrives(engine, name)
        print(name, "arrived")
