"""A sampling parameter does the same from Python, in a row of a file, as a setting of the command, in a request and through our own client. The
tables are made from the schema (`core/sampling.py`), so that a new parameter is tested unasked."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from places import NOBODY, check_arrives, inside, outside, served
from shapes import HELLO, text_of

import rorqual
from rorqual.core.errors import DataError
from rorqual.core.records import Message
from rorqual.core.sampling import PARAMS, SERVER_DEFAULTS, FloatRange, Grammar, IntRange, check_params
from rorqual.engine import Engine, Request, SamplingParams
from rorqual.engine.remote.engine import RemoteEngine, RemoteError
from rorqual.engine.runner import ModelRunner
from rorqual.generate.batch import generate_answers, output_record
from rorqual.generate.prompts import RefusedRow
from rorqual.generate.schema import RowParser, RowRequest, RowSampling
from rorqual.serve.errors import ApiError
from rorqual.serve.schemas import ChatRequest, parse_request
from rorqual.serve.unsupported_fields import IGNORED, TOP
from rorqual.serve.wire import EngineRequest as Asked
from rorqual.serve.wire import pack, parse_submit_message, submit_message
from rorqual.serve.worker import EngineWorker
from served import Server

MARKS = ((5, -100.0), (6, -100.0))  # of thinking
BASE = SamplingParams(max_tokens=24, temperature=1.5, top_p=0.6, min_p=0.08, seed=5, logit_bias=MARKS)
KEYS: dict[str, tuple[SamplingParams, Any]] = {
    "min_tokens": (replace(BASE, logit_bias=(*MARKS, (1, 100.0), (2, 100.0), (3, 100.0), (4, 100.0))), 7),
    "min_p_first": (BASE, True),
    "prompt_logprobs": (replace(BASE, max_tokens=2), 3),
}


@pytest.fixture(scope="module")
def engine(run: Path) -> Engine:
    return Engine(run, record_experts=False, slots=2, backend="auto")


def said(one: Any) -> tuple[Any, ...]:
    return one.text, one.usage["completion_tokens"], one.prompt_logprobs, one.prompt_top_logprobs


def test_a_priority_reaches_the_queue_of_the_engine(engine: Engine) -> None:
    worker = EngineWorker(engine, io.BytesIO(), io.BytesIO())
    for number, priority in enumerate((0, 3)):
        ask = Asked((5,), SamplingParams(max_tokens=1), priority=priority)
        worker._handle_message(json.loads(b"".join(submit_message(number, pack(ask), "them"))))
    assert [sequence.priority for sequence in engine._cores[0].scheduler.waiting] == [3, 0]
    for request_id in list(worker.numbers):
        engine.cancel(request_id)
    engine.step()


def test_the_worker_runs_several_decoding_steps_at_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels' step is far shorter than `BURST`."""
    done, decode = list[int](), ModelRunner.decode

    def counted(self: ModelRunner, *given: Any) -> Any:
        found = decode(self, *given)
        done.append(len(found[0]))
        return found

    monkeypatch.setattr(ModelRunner, "decode", counted)
    sink = io.BytesIO()
    worker = EngineWorker(engine, io.BytesIO(), sink)
    monkeypatch.setattr(worker, "_read_messages", lambda: bool(worker.numbers))
    ask = Asked((5,), SamplingParams(max_tokens=60, ignore_eos=True))
    worker._handle_message(json.loads(b"".join(submit_message(0, pack(ask), "them"))))
    worker.run()
    assert max(done) > 1
    messages = [json.loads(line) for line in sink.getvalue().splitlines()]
    assert sum(len(one["rows"]) for one in messages if one["kind"] == "drawn") == 60


def test_a_grammar_that_fails_before_its_request_starts_is_not_compiled_in_the_loop(engine: Engine) -> None:
    """To compile it there held up all requests."""
    worker = EngineWorker(engine, io.BytesIO(), io.BytesIO())
    ask = Asked((5,), SamplingParams(max_tokens=1, grammar=Grammar("regex", "a+")))
    worker._handle_message(json.loads(b"".join(submit_message(0, pack(ask), "them"))))
    message = worker.inbox.get(timeout=60)
    [(_, ready)] = worker.compiling.values()
    ready.result().usage.failed = True
    assert message is not None
    worker._handle_message(message)
    [job] = engine._jobs.values()
    assert job.compiled is ready.result()
    engine.cancel(*worker.numbers)
    engine.step()


def test_the_samples_of_a_row_are_in_their_own_order_whichever_ends_first(engine: Engine) -> None:
    end = engine.chat.stop_ids[0]
    params = replace(BASE, n=6, max_tokens=40, top_p=1.0, min_p=0.0, logit_bias=(*MARKS, (end, 3.0)))
    request = Request((Message("user", "hello"),), params, "off")
    [expected] = engine.generate([request])
    lengths = [len(one.token_ids) for one in expected]
    assert lengths != sorted(lengths), "so they do not end in order"
    [[(_, found)]] = [some for some in generate_answers(engine, [RowRequest(1, "prompt", request, {})], room=6) if some]
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]


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
        RowParser(RowSampling(**given, thinking="off")).parse_row(1, {**row, key: value}),
        RowParser(RowSampling(**{**given, key: value}, thinking="off")).parse_row(1, row),
    ]
    for ask in asked:
        assert isinstance(ask, RowRequest) and ask.request.params == params
    lines = [output_record(*one) for some in generate_answers(engine, asked[:1], room=1) for one in some]
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


@pytest.mark.parametrize("name", PARAMS)
def test_a_parameter_arrives_alone_and_whole_wherever_it_is_given(engine: Engine, name: str) -> None:
    check_arrives(engine, name)


NEW = """
    nudge: Annotated[float, FloatRange(-5, 5), ServerOverride(FloatRange(0, 4)), "Added to every logit."] = 0.0

    shoves: Annotated[tuple[int, ...], TokenList(8), "Tokens that are shoved."] = ()

    length_penalty: Annotated[float, FloatRange(-5, 5), "A name that the server ignores so far."] = 1.0

    typical_p: Annotated[float, FloatRange(0, 1), "A name that the server refuses so far."] = 1.0


@dataclass(frozen=True)
class SamplingParam:"""


def test_a_parameter_that_is_written_into_the_schema_alone_arrives_everywhere(tmp_path: Path) -> None:
    """In a copy of the source, and a process of its own."""
    copy = tmp_path / "rorqual"
    shutil.copytree(Path(rorqual.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    schema = copy / "core" / "sampling.py"
    text = schema.read_text(encoding="utf-8")
    end = "\n\n@dataclass(frozen=True)\nclass SamplingParam:"
    assert text.count(end) == 1
    schema.write_text(text.replace(end, NEW), encoding="utf-8")
    names = ["nudge", "shoves", "length_penalty", "typical_p"]
    assert "length_penalty" in IGNORED and "typical_p" in TOP
    command = [sys.executable, str(Path(__file__).with_name("places.py")), str(tmp_path / "run"), *names]
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.stdout.splitlines() == [str(copy / "__init__.py"), *(f"{name} arrived" for name in names)], done.stderr


def test_what_nobody_says_is_as_each_place_has_it() -> None:
    assert RowSampling().params() == replace(SamplingParams(), max_tokens=1024)
    assert replace(SamplingParams(), temperature=1.0) == SERVER_DEFAULTS
    assert text_of().engine_requests()[0].params == replace(SERVER_DEFAULTS, seed=1, max_tokens=1000 - len("hello") - 1)


RANGES = [name for name, param in PARAMS.items() if isinstance(param.type, IntRange | FloatRange)]


def put(name: str, value: Any) -> SamplingParams:
    """With all else such that the value is refused for itself alone."""
    return replace(SamplingParams(max_tokens=2**31 - 1), **{name: value})


def checked(params: SamplingParams) -> None:
    check_params(params, vocab_size=300, where="request 0")


def sent(params: SamplingParams) -> None:
    NOBODY.generate([Request((Message("user", "hello"),), params)])


@pytest.mark.parametrize("name", RANGES)
def test_the_engine_and_the_wire_and_the_client_hold_the_range(name: str) -> None:
    kind = PARAMS[name].type
    assert isinstance(kind, IntRange | FloatRange)
    for value in inside(kind):
        checked(put(name, value))
        with pytest.raises(RemoteError):  # nobody is there: it was sent
            sent(put(name, value))
    for value in outside(kind):
        params = put(name, value)
        crossed = parse_submit_message(json.loads(b"".join(submit_message(1, pack(Asked((5,), params)), ""))))
        assert crossed.params == params
        for refuse in (checked, sent):
            with pytest.raises(DataError) as caught:
                refuse(crossed.params)
            assert (caught.value.what, caught.value.remedy) == (f"{name} is {value!r}", f"Give {kind.range_text}.")
            assert caught.value.where == "request 0"


@pytest.mark.parametrize("name", RANGES)
def test_a_file_and_the_server_hold_their_ranges(name: str) -> None:
    def row(value: Any) -> RowRequest | RefusedRow:
        return RowParser(RowSampling()).parse_row(1, {"prompt": "hello", name: value})

    def body(value: Any) -> bytes:
        return json.dumps({"model": "m", "messages": [HELLO], **served({name: value}, chat=True)}).encode()

    in_file, in_request = PARAMS[name].in_file, PARAMS[name].served
    assert isinstance(in_file, IntRange | FloatRange) and isinstance(in_request, IntRange | FloatRange)
    for value in inside(in_file):
        found = row(value)
        assert isinstance(found, RowRequest) and getattr(found.request.params, name) == value
    for value in outside(in_file):
        refused = row(value)
        assert isinstance(refused, RefusedRow)
        assert (refused.key, refused.remedy) == (
            name,
            f"Valid values: {in_file.range_text}.",
        ) and f"(got {value!r})" in refused.what
    for value in inside(in_request):
        if name != "top_logprobs":
            assert getattr(parse_request(ChatRequest, body(value))[0].params(), name) == value
    for value in outside(in_request):
        with pytest.raises(ApiError) as caught:
            parse_request(ChatRequest, body(value))
        error = caught.value
        low, high = in_request.low, in_request.high
        words = (f"or equal to {low}.", f"than {low}.") if value <= low else (f"or equal to {high}.", f"than {high}.")
        assert (error.status, error.param) == (400, name) and error.message.endswith(words), error.message
