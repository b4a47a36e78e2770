"""Every field of a request and every argument of an engine reaches the place where it acts, by every way into the engine."""

from __future__ import annotations

import inspect
import json
import threading
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from scaled import whole_forward

from rorqual.core.errors import RorqualError
from rorqual.core.records import Message, write_json
from rorqual.data.chat import ChatFormat
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Completion, Engine, EngineConfig, Request, SamplingParams
from rorqual.engine.request import Grammar
from rorqual.engine.runner import ModelRunner
from rorqual.model import Decoder
from rorqual.ops.paged import BLOCK

EOS, THINK, A, B = 1, 5, 100, 101
"""The end of a turn, the beginning of a thought, and two tokens that the tests push."""
PROMPT = (0, 3, 40, 41, 42, 50, 50, 4)
PLAIN = SamplingParams(max_tokens=24, temperature=1.0, seed=5)
ENDS = {"logit_bias": ((EOS, 100.0),)}
SAYS_A = {"logit_bias": ((A, 100.0),)}
SAYS_SUMS = {"logit_bias": ((17, 99.0), (23, 100.0), (24, 100.0), (35, 99.0)), "max_tokens": 48, "n": 8}
"""The tokens of `+`, `1`, `2` and `=`."""

SAMPLED: dict[str, tuple[dict[str, Any], Any]] = {
    # field: what it needs beside it, and another value
    "max_tokens": ({}, 5),
    "temperature": ({}, 0.5),
    "top_p": ({}, 0.3),
    "top_k": ({}, 2),
    "seed": ({}, 6),
    "n": ({}, 2),
    "ignore_eos": (ENDS, True),
    "min_p": ({}, 0.3),
    "repetition_penalty": ({}, 5.0),
    "presence_penalty": ({}, 5.0),
    "frequency_penalty": (SAYS_A, 20.0),
    "logit_bias": ({}, ((A, 5.0),)),
    "stop": (SAYS_A, ("a" * 3,)),
    "stop_token_ids": (SAYS_A, (A,)),
    "top_logprobs": ({}, 2),
    "grammar": ({}, Grammar("regex", "[0-9]{3}")),
    "min_tokens": (ENDS, 4),
    "min_p_first": ({"min_p": 0.2, "top_p": 0.6}, True),
    "prompt_logprobs": ({}, 0),
    "think_budget": ({"logit_bias": ((THINK, 100.0),)}, 4),
    "calculator": (SAYS_SUMS, True),
}


def heard(completion: Completion) -> str:
    """All that a completion holds, to the last bit; tensors as lists."""
    found = vars(completion) | {
        name: None if (value := getattr(completion, name)) is None else value.tolist() for name in ("experts", "kept")
    }
    return json.dumps(found)


def asked(**params: Any) -> Request:
    return Request(prompt_ids=PROMPT, params=replace(PLAIN, **params))


def by_generate(engine: Engine, request: Request) -> list[str]:
    return [heard(completion) for completion in engine.generate([request])[0]]


def by_step(engine: Engine, request: Request) -> list[str]:
    engine.submit(request)
    found = []
    while engine.stats()["running"] + engine.stats()["waiting"]:
        found += [(d.sample, heard(d.completion)) for d in engine.step() if d.completion is not None]
    return [text for _, text in sorted(found)]


def by_stream(engine: Engine, request: Request) -> list[str]:
    found = [(d.sample, heard(d.completion)) for d in engine.stream(request) if d.completion is not None]
    return [text for _, text in sorted(found)]


@pytest.mark.parametrize("name", SAMPLED)
def test_a_sampling_parameter_changes_the_answer_by_every_way(engine: Engine, tokenizer: Tokenizer, name: str) -> None:
    beside, value = SAMPLED[name]
    if name == "stop":
        value = (tokenizer.decode([A] * 3),)
    plain, other = asked(**beside), asked(**beside | {name: value})
    answers = by_generate(engine, plain), by_generate(engine, other)
    assert answers[0] != answers[1]
    for way in (by_step, by_stream):
        assert (way(engine, plain), way(engine, other)) == answers, way.__name__


def test_no_sampling_parameter_is_forgotten_here() -> None:
    assert {f.name for f in fields(SamplingParams)} == SAMPLED.keys()


def test_what_each_parameter_that_ends_a_reply_does(engine: Engine, tokenizer: Tokenizer) -> None:
    def one(**params: Any) -> tuple[int, str]:
        [[found]] = engine.generate([asked(**params)])
        return len(found.token_ids), found.finish_reason

    three = (tokenizer.decode([A] * 3),)
    assert one() == (24, "length") and one(max_tokens=7) == (7, "length")
    assert one(**ENDS) == (1, "stop") and one(**ENDS, ignore_eos=True) == (24, "length")
    assert one(**ENDS, min_tokens=4) == (5, "stop")
    assert one(**SAYS_A, stop=three) == (3, "stop") and one(**SAYS_A, stop=three, min_tokens=6) == (7, "stop")
    assert one(**SAYS_A, stop_token_ids=(B,)) == (24, "length")
    assert one(**SAYS_A, stop_token_ids=(B, A)) == (1, "stop")
    assert one(**SAYS_A, stop_token_ids=(A,), min_tokens=2, max_tokens=2) == (2, "length")
    assert one(**SAYS_A, stop_token_ids=(A,), ignore_eos=True) == (1, "stop"), "its own ends count all the same"
    [[found]] = engine.generate([asked(**ENDS, ignore_eos=True, min_tokens=4)])
    assert found.token_ids == [EOS] * 24, "an end that ends nothing need not wait"


PENALISED: list[dict[str, Any]] = [
    {"repetition_penalty": 1.7},
    {"presence_penalty": 0.9},
    {"frequency_penalty": 0.4},
    {"logit_bias": ((A, 4.0), (B, -3.0))},
    {"repetition_penalty": 1.3, "presence_penalty": 0.6, "frequency_penalty": 0.3, "temperature": 1.2},
]


@pytest.mark.parametrize(
    "end", [{}, {"min_tokens": 70, "stop_token_ids": tuple(range(0, 264, 2))}], ids=["long", "least"]
)
def test_penalties_and_the_least_length_go_on_counting_after_a_preemption(
    mla: Decoder, tokenizer: Tokenizer, chat: ChatFormat, end: dict[str, Any]
) -> None:
    """The answers are those of an engine with room for all. Arithmetic of penalties: test_penalties.py."""
    requests = [
        asked(**{"max_tokens": 80, "ignore_eos": True, "seed": n} | params | end) for n, params in enumerate(PENALISED)
    ]
    expected = Engine.of(mla, tokenizer, chat).generate(requests)
    engine = Engine.of(mla, tokenizer, chat, slots=4, engine_cores=1, cache_bytes=4 * ModelRunner.block_bytes(mla))
    found = engine.generate(requests)
    assert engine.stats()["preemptions"] > 0
    assert [[(c.token_ids, c.logprobs) for c in group] for group in found] == [
        [(c.token_ids, c.logprobs) for c in group] for group in expected
    ]


# ---- requests


def test_a_requests_prompt_is_its_messages_in_its_mode_of_thinking(engine: Engine, chat: ChatFormat) -> None:
    messages = (Message("system", "be brief"), Message("user", "hi"))
    short = SamplingParams(max_tokens=2)
    for thinking in ("auto", "on", "off"):
        [[found]] = engine.generate([Request(messages, short, thinking)])  # type: ignore[arg-type]
        assert list(found.prompt_ids) == list(chat.prompt(messages, thinking))  # type: ignore[arg-type]
    assert len({tuple(chat.prompt(messages, thinking)) for thinking in ("auto", "on", "off")}) > 1  # type: ignore[arg-type]
    [[found]] = engine.generate([Request(messages, short, prompt_ids=(7, 8))])
    assert found.prompt_ids == (7, 8)
    assert (found.usage["prompt_tokens"], found.usage["completion_tokens"]) == (2, len(found.token_ids))


LONG = tuple(range(10, 10 + BLOCK + 5))


def hits(engine: Engine, **more: Any) -> int:
    """Tokens of a long prompt that were found in the cache."""
    [[found]] = engine.generate([Request(prompt_ids=LONG, params=SamplingParams(max_tokens=2), **more)])
    usage = found.usage
    assert usage["prompt_cache_hit_tokens"] + usage["prompt_cache_miss_tokens"] == usage["prompt_tokens"] == len(LONG)
    return usage["prompt_cache_hit_tokens"]


def test_a_requests_tenant_and_reuse_decide_what_it_finds(mla: Decoder, tokenizer: Tokenizer, chat: ChatFormat) -> None:
    engine = Engine.of(mla, tokenizer, chat, slots=2, engine_cores=1, reuse=True)
    assert hits(engine, reuse=False) == hits(engine, tenant="one") == 0, "nothing was kept of the first"
    assert hits(engine, tenant="one") == BLOCK
    assert hits(engine, tenant="two") == hits(engine, reuse=False, tenant="one") == 0
    assert engine.stats()["hit_tokens"] == BLOCK


@pytest.mark.parametrize("length", [BLOCK - 1, BLOCK, BLOCK + 1])
def test_a_further_sample_finds_all_blocks_of_its_prompt_but_computes_a_token(
    mla: Decoder, tokenizer: Tokenizer, chat: ChatFormat, length: int
) -> None:
    engine = Engine.of(mla, tokenizer, chat, slots=4, engine_cores=1, reuse=True)
    request = Request(prompt_ids=tuple(range(7, 7 + length)), params=SamplingParams(max_tokens=2, n=2))
    [samples] = engine.generate([request])
    assert [sample.usage["prompt_cache_hit_tokens"] for sample in samples] == [0, (length - 1) // BLOCK * BLOCK]


def test_each_request_of_a_batch_has_as_many_alternatives_as_it_asked_for(
    mla: Decoder, tokenizer: Tokenizer, chat: ChatFormat
) -> None:
    engine = Engine.of(mla, tokenizer, chat, slots=4)
    numbers = (1, 5, 0, 3)
    for number, [found] in zip(numbers, engine.generate([asked(top_logprobs=number) for number in numbers])):
        [[alone]] = engine.generate([asked(top_logprobs=number)])
        assert found.top_logprobs == alone.top_logprobs
        assert number == 0 or {len(some) for some in found.top_logprobs or ()} == {number}


def test_no_field_of_a_request_is_forgotten_here() -> None:
    named = {"messages", "params", "thinking", "prompt_ids", "tenant", "priority", "reuse", "embeds", "adapter"}
    assert {f.name for f in fields(Request)} == named


def test_each_field_of_a_completion_is_its_own(mla: Decoder, tokenizer: Tokenizer, chat: ChatFormat) -> None:
    engine = Engine.of(mla, tokenizer, chat, slots=2, record_kept=True)
    [[found]] = engine.generate([asked(top_logprobs=3, prompt_logprobs=2, top_k=9)])
    logits, own = whole_forward(mla, found)
    ids = torch.tensor([[*found.prompt_ids, *found.token_ids]])
    with torch.no_grad():
        plain = mla.logits(mla(ids, replay=None).hidden)[0].log_softmax(-1)
    assert found.prompt_ids == PROMPT and len(found.token_ids) == len(found.logprobs) == 24
    assert found.finish_reason == "length" and found.error == found.model == ""
    message = chat.parse(found.token_ids, chat.thinking_mode_of(PROMPT))
    assert (found.text, found.reasoning) == (message.content, message.reasoning)
    assert found.experts.shape == (len(PROMPT) + 23, own.shape[1], 2) and found.kept.shape[0] == 24
    assert found.top_logprobs is not None and [len(some) for some in found.top_logprobs] == [3] * 24
    for place, some in enumerate(found.top_logprobs):
        assert [token for token, _ in some] == logits[place].topk(3).indices.tolist()
    assert found.prompt_logprobs is not None and found.prompt_top_logprobs is not None
    assert found.prompt_logprobs[0] is None and found.prompt_top_logprobs[0] == []
    assert [len(some) for some in found.prompt_top_logprobs[1:]] == [2] * (len(PROMPT) - 1)
    for place in range(1, len(PROMPT)):
        assert found.prompt_logprobs[place] == pytest.approx(float(plain[place - 1, PROMPT[place]]), abs=1e-4)
    assert found.usage == {
        "prompt_tokens": 8,
        "completion_tokens": 24,
        "prompt_cache_hit_tokens": 0,
        "prompt_cache_miss_tokens": 8,
    }
    named = {
        "prompt_ids",
        "token_ids",
        "logprobs",
        "finish_reason",
        "text",
        "reasoning",
        "experts",
        "kept",
        "top_logprobs",
        "usage",
        "error",
        "prompt_logprobs",
        "prompt_top_logprobs",
        "model",
    }
    by_rollout_engines = {"request", "sample", "policy_version"}  # tests/engine/test_rollout_engine.py
    assert {getattr(found, name) for name in by_rollout_engines} == {0}
    assert {f.name for f in fields(Completion)} == named | by_rollout_engines


# ---- what `generate` is given


def test_prompts_that_are_no_requests_share_the_params_and_have_seeds_of_their_own(engine: Engine) -> None:
    params = SamplingParams(max_tokens=6, temperature=1.0, seed=40, top_k=50, n=2)
    told: list[tuple[Any, ...]] = []
    talk = [Message("user", "hi")]
    results = engine.generate(
        ["hi", talk, list(PROMPT)],
        params,
        progress=lambda done, total: told.append((done, total)),
        arrived=lambda request, sample, completion: told.append((request, sample, completion.token_ids)),
    )
    seeded = [replace(params, seed=40 + number) for number in range(3)]
    requests = [
        Request(tuple(talk), seeded[0]),
        Request(tuple(talk), seeded[1]),
        Request((), seeded[2], "auto", PROMPT),
    ]
    assert [[heard(c) for c in group] for group in results] == [by_generate(engine, request) for request in requests]
    counts, samples = told[1::2], told[::2]
    assert counts == [(done, 6) for done in range(1, 7)]
    assert sorted(samples) == [(r, s, results[r][s].token_ids) for r in range(3) for s in range(2)]
    stop, done = threading.Event(), list[int]()

    def stopping(*which: Any) -> None:
        done.append(which[1])
        stop.set()

    cut = engine.generate(
        [replace(requests[1], params=replace(params, n=1, max_tokens=m)) for m in (2, 60)], arrived=stopping, stop=stop
    )  # type: ignore[arg-type]
    assert [len(row) for row in cut] == [1, 0] and len(done) == 1
    named = {"self", "prompts", "params", "progress", "arrived", "stop"}
    assert set(inspect.signature(Engine.generate).parameters) == named


# ---- engines


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, mla: Decoder, tokenizer: Tokenizer) -> Path:
    """The model as a run directory."""
    folder = tmp_path_factory.mktemp("engine") / "run"
    step = folder / "step-000001"
    step.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in mla.state_dict().items()}, step / "model.safetensors")
    write_json(step / "whole.json", {"model.safetensors": (step / "model.safetensors").stat().st_size})
    write_json(folder / "run.yaml", {"model": mla.config.model_dump(mode="json")})
    tokenizer.save(folder / "tokenizer.json")
    return folder


Make = Callable[..., Engine]


@pytest.fixture(params=["run", "of"])
def make(request: pytest.FixtureRequest, run: Path, mla: Decoder, tokenizer: Tokenizer, chat: ChatFormat) -> Make:
    """Both ways to an engine of the same weights, with what both take; whether an argument is one of them: `takes`."""
    if request.param == "run":
        return lambda **more: Engine(run, **more)
    return lambda **more: Engine.of(mla, tokenizer, chat, **more)


def submitted(engine: Engine, count: int) -> tuple[float, float]:
    """Of so many requests: how many run after a step, and how many wait."""
    request_ids = [engine.submit(asked(seed=n, ignore_eos=True)) for n in range(count)]
    engine.step()
    found = engine.stats()["running"], engine.stats()["waiting"]
    for request_id in request_ids:
        engine.cancel(request_id)
    return found


def steps_to_first(engine: Engine) -> int:
    """Steps until a prompt of 80 tokens has its first token."""
    request_id = engine.submit(Request(prompt_ids=(50,) * 80, params=SamplingParams(max_tokens=2, ignore_eos=True)))
    count = 1
    while not engine.step():
        count += 1
    engine.cancel(request_id)
    return count


def threads_of(engine: Engine) -> set[str]:
    """In which kinds of threads the requests of a batch end: the caller's, or the engine's own."""
    found: set[str] = set()
    own = threading.current_thread().name
    engine.generate(
        [asked(seed=n) for n in range(4)],
        arrived=lambda *_: found.add("caller" if threading.current_thread().name == own else "engine"),
    )
    return found


def refusal(action: Callable[[], Any]) -> str:
    """What it is refused with, or nothing."""
    try:
        action()
    except RorqualError as error:
        return error.what
    return ""


def loads(engine: Engine) -> str:
    return refusal(lambda: engine.load_weights(engine.model.state_dict()))


def twice(engine: Engine) -> list[int]:
    return [hits(engine), hits(engine)]


def recorded(engine: Engine) -> tuple[bool, bool]:
    [[found]] = engine.generate([asked(top_k=5)])
    return found.experts is not None, found.kept is not None


BOTH: dict[str, tuple[dict[str, Any], Any, Callable[[Engine], Any], Any, Any]] = {
    # argument: what it needs beside it, its value, what is looked at, what that is without it, and with it
    "slots": ({}, 1, lambda e: submitted(e, 3), (3, 0), (1, 2)),
    "max_len": (
        {},
        80,
        lambda e: (e.max_len, refusal(lambda: e.check(asked_ids(80)))[:22]),
        (96, ""),
        (80, "the prompt has 80 toke"),
    ),
    "threads": ({"slots": 1}, 2, threads_of, {"caller"}, {"engine"}),
    "record_experts": ({}, False, lambda e: recorded(e)[0], True, False),
    "cache_bytes": ({}, 1, lambda e: e.stats()["blocks_total"], None, 1),
    "step_tokens": ({}, 32, steps_to_first, 1, 3),
    "backend": ({}, "torch", lambda e: e.stats()["invariant"], 1.0, 0.0),
}
RUN = {
    "reuse": ({}, False, twice, [0, BLOCK], [0, 0]),
    "pack": ({}, False, loads, "packed weights cannot be replaced", ""),
}
OF = {
    "reuse": ({}, True, twice, [0, 0], [0, BLOCK]),
    "pack": ({}, True, loads, "", "packed weights cannot be replaced"),
    "engine_cores": ({"slots": 1, "threads": 2}, 1, threads_of, {"engine"}, {"caller"}),
    "record_kept": ({}, True, lambda e: recorded(e)[1], False, True),
}
ELSEWHERE = {"cache_dir", "disk_bytes", "device", "dtype"}
"""In tests of their own."""


def asked_ids(length: int) -> Request:
    return Request(prompt_ids=(50,) * length, params=SamplingParams(max_tokens=2))


def check_argument(make: Make, name: str, case: tuple[dict[str, Any], Any, Callable[[Engine], Any], Any, Any]) -> None:
    beside, value, look, without, with_it = case
    seen = look(make(**beside))
    assert seen == without or (without is None and seen != with_it)
    assert look(make(**beside, **{name: value})) == with_it


@pytest.mark.parametrize("name", BOTH)
def test_an_argument_of_an_engine_acts(make: Make, name: str) -> None:
    check_argument(make, name, BOTH[name])


@pytest.mark.parametrize("name", RUN)
def test_an_argument_of_a_runs_engine_acts(run: Path, name: str) -> None:
    check_argument(lambda **more: Engine(run, **more), name, RUN[name])


@pytest.mark.parametrize("name", OF)
def test_an_argument_of_a_models_engine_acts(mla: Decoder, tokenizer: Tokenizer, chat: ChatFormat, name: str) -> None:
    check_argument(lambda **more: Engine.of(mla, tokenizer, chat, **more), name, OF[name])


def test_no_argument_of_an_engine_is_forgotten_here() -> None:
    assert set(EngineConfig.model_fields) == {*BOTH, *RUN, *OF, *ELSEWHERE} - {"device", "dtype"}


def test_a_runs_engine_is_on_its_device_in_its_type(run: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        engine = Engine(run, dtype=str(dtype).removeprefix("torch."), backend="torch-invariant")
        assert {p.dtype for name, p in engine.model.named_parameters() if "lm_head" in name} == {dtype}
    assert next(Engine(run, device="cpu").model.parameters()).device.type == "cpu"
    with pytest.raises((RuntimeError, RorqualError), match="nowhere"):
        Engine(run, device="nowhere")


# ---- the folder of a cache


def test_a_folder_stays_within_its_bytes(make: Make, tmp_path: Path) -> None:
    def written(name: str, **more: int) -> int:
        folder = tmp_path / name
        engine = make(cache_dir=folder, **more)
        for start in range(10, 16):
            prompt = tuple(range(start, start + BLOCK + 2))
            engine.generate([Request(prompt_ids=prompt, params=SamplingParams(max_tokens=1))])
        engine.close()
        return sum(path.stat().st_size for path in folder.iterdir() if path.stat().st_size > 10_000)

    whole = written("whole")
    budget = whole // 2
    assert 0 < written("small", disk_bytes=budget) <= budget < whole
