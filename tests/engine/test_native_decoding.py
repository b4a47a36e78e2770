"""Several decoding steps in one call of the native backend: the same completions as with one step a call, for any mix of requests."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scaled import finish
from trained import in_type

from rorqual.core.errors import NumericsError
from rorqual.data.chat import ChatFormat
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Engine, Request, SamplingParams
from rorqual.engine import engine as rules
from rorqual.engine.native.native_step import NativeStep
from rorqual.engine.request import Grammar
from rorqual.engine.runner import ModelRunner
from rorqual.model import Decoder
from rorqual.ops.backends.step import StepInput, StepOutput

Calls = list[tuple[int, int]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The steps that each call could have done, and did."""
    found, decode = Calls(), NativeStep.decode

    def counted(self: NativeStep, step: StepInput, *ends: Any) -> StepOutput:
        output, rows = decode(self, step, *ends), step.ids.shape[1]
        found.append((step.positions.shape[1] // rows, output.hidden.shape[0] // rows))
        return output

    monkeypatch.setattr(NativeStep, "decode", counted)
    return found


def native(model: Decoder, tokenizer: Tokenizer, chat: ChatFormat, **options: Any) -> Engine:
    settings = {"backend": "native", "engine_cores": 1, "slots": 4, "record_experts": True}
    return Engine.of(model, tokenizer, chat, **settings | options)


def request(number: int, length: int, **params: Any) -> Request:
    rng = random.Random(number)
    ids = tuple(rng.randrange(40, 120) for _ in range(length))
    return Request(prompt_ids=ids, params=SamplingParams(**{"seed": number, "temperature": 1.0} | params))


def whole(completion: Any) -> Any:
    experts = None if completion.experts is None else completion.experts.tolist()
    kept = None if completion.kept is None else np.asarray(completion.kept).tolist()
    return completion.token_ids, completion.logprobs, completion.finish_reason, experts, kept, completion.top_logprobs


def both(engine: Engine, requests: list[Request]) -> None:
    """`generate` with several steps a call gives what `step` gives with one."""
    numbers = [engine.submit(one) for one in requests]
    ends = finish(engine)
    for number, [found] in zip(numbers, engine.generate(requests), strict=True):
        assert whole(found) == whole(ends[number])


@pytest.mark.parametrize("kind", ["mla", "gqa"])
def test_replies_are_those_of_single_steps(
    kind: str, models: dict[str, Decoder], tokenizer: Tokenizer, chat: ChatFormat, calls: Calls
) -> None:
    """Replies end by length and by stop tokens, which others ignore, in the middle of a call. Blocks are scarce."""
    requests = [
        request(number, 1 + 13 * number, max_tokens=1 + 9 * number, ignore_eos=number % 3 == 0, temperature=number % 2)
        for number in range(9)
    ] + [request(number, 5, max_tokens=90, temperature=5.0) for number in range(20, 40)]
    for blocks in (1000, 9):
        size = ModelRunner.block_bytes(models[kind])
        engine = native(models[kind], tokenizer, chat, cache_bytes=blocks * size)
        both(engine, requests)
    assert engine.stats()["preemptions"]
    assert any(done == most == rules.STEPS_AT_ONCE for most, done in calls), "a whole call"
    assert any(1 < done < most for most, done in calls), "a stop token within a call"


def test_the_deltas_of_several_steps_are_those_of_single_steps(
    models: dict[str, Decoder], tokenizer: Tokenizer, chat: ChatFormat, calls: Calls
) -> None:
    """A client cancels a request meanwhile."""
    requests = [request(number, 5 + number, max_tokens=40 + 30 * number) for number in range(4)]
    found: list[dict[int, list[Any]]] = []
    for seconds in (0.0, 60.0):
        engine = native(models["gqa"], tokenizer, chat)
        numbers = [engine.submit(one) for one in requests]
        deltas: dict[int, list[Any]] = {number: [] for number in numbers}
        for turn in range(1000):
            for one in engine.step(seconds):
                deltas[one.request_id].append((one.token, one.logprob, one.completion and whole(one.completion)))
            if turn == 4:
                engine.cancel(numbers[1])
                del deltas[numbers[1]]
        found.append(deltas)
    assert found[0] == found[1] and all(rows[-1][2] for rows in found[0].values())
    assert any(done == rules.STEPS_AT_ONCE for _, done in calls)
    assert [row[2] for rows in found[1].values() for row in rows].count(None) > 100


def test_a_call_takes_as_many_steps_as_last_the_seconds(
    models: dict[str, Decoder], tokenizer: Tokenizer, chat: ChatFormat, calls: Calls
) -> None:
    engine = native(models["gqa"], tokenizer, chat)
    engine.submit(request(1, 5, **PLAIN))
    engine.step(60.0)  # of the prompt, whose time is not known
    assert not calls
    engine._step_seconds = 10.0
    engine.step(35.0)
    assert [most for most, _ in calls] == [3]
    engine.step(1e-9)
    assert len(calls) == 1


def test_a_call_ends_only_where_a_row_does(
    models: dict[str, Decoder], tokenizer: Tokenizer, chat: ChatFormat, calls: Calls
) -> None:
    """Tokens that would end a reply end none that ignores them."""
    asked = [request(number, 5, max_tokens=90, temperature=9.0, ignore_eos=True) for number in range(8)]
    replies = [reply for [reply] in native(models["gqa"], tokenizer, chat).generate(asked)]
    assert any({*chat.stop_ids} & {*reply.token_ids[:-20]} for reply in replies)
    assert calls and all(done == most for most, done in calls)


PLAIN: dict[str, Any] = {"max_tokens": 40, "ignore_eos": True}
NOT_PLAIN: dict[str, dict[str, Any]] = {
    "top_p": {"top_p": 0.5},
    "top_k": {"top_k": 3},
    "min_p": {"min_p": 0.2},
    "repetition": {"repetition_penalty": 1.8},
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": 1.5},
    "bias": {"logit_bias": ((50, 4.0),)},
    "top log-probabilities": {"top_logprobs": 2},
    "stop text": {"stop": ("a", "e", "o", "t"), "ignore_eos": False},
    "stop token": {"stop_token_ids": tuple(range(50, 90))},
    "grammar": {"grammar": Grammar("regex", "[ab]{30}"), "ignore_eos": False},
}


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_what_needs_python_between_steps_gets_it(
    name: str, models: dict[str, Decoder], tokenizer: Tokenizer, chat: ChatFormat, calls: Calls
) -> None:
    """Beside a plain request, which goes on in whole calls when the other one has ended."""
    other = request(1, 7, **PLAIN | {"max_tokens": 30} | NOT_PLAIN[name])
    both(native(models["gqa"], tokenizer, chat), [request(2, 5, **PLAIN | {"max_tokens": 60}), other])
    assert calls and sum(done for _, done in calls) < 60


def test_a_reply_is_as_long_as_asked(
    models: dict[str, Decoder], tokenizer: Tokenizer, chat: ChatFormat, calls: Calls
) -> None:
    """`min_tokens` bars the tokens that end a reply, until it is long enough."""
    asked = [request(number, 3, max_tokens=40, min_tokens=35, temperature=2.0) for number in range(12)]
    engine = native(models["gqa"], tokenizer, chat)
    both(engine, asked)
    assert all(len(found.token_ids) >= 35 for [found] in engine.generate(asked)) and not calls


def test_tokens_kept_by_truncation_are_recorded(
    models: dict[str, Decoder], tokenizer: Tokenizer, chat: ChatFormat, calls: Calls
) -> None:
    both(native(models["gqa"], tokenizer, chat, record_kept=True), [request(1, 5, **PLAIN)])
    assert not calls


def test_a_prompt_that_is_as_long_as_the_context_leaves_no_step(
    models: dict[str, Decoder], tokenizer: Tokenizer, chat: ChatFormat, calls: Calls
) -> None:
    longest = models["gqa"].config.max_position_embeddings
    both(
        native(models["gqa"], tokenizer, chat),
        [request(n, longest - n, **PLAIN | {"max_tokens": n}) for n in (1, 2, 18)],
    )
    assert [done for _, done in calls] == [16]


def test_a_nan_ends_the_call_and_names_the_request(
    models: dict[str, Decoder], tokenizer: Tokenizer, chat: ChatFormat, calls: Calls
) -> None:
    """The embedding of a token that the reply samples is NaN. A reply without it is whole, also afterwards."""
    model = in_type(models["gqa"], "fp32")
    good = request(3, 9, max_tokens=12, ignore_eos=True)
    made = native(model, tokenizer, chat)
    [plain] = made.generate([good])[0]
    bad = next(number for number in range(100) if sampled_late(made, number, set(plain.token_ids)))
    [reply] = made.generate([request(bad, 9, **PLAIN)])[0]
    with torch.no_grad():
        model.embed_tokens.weight[reply.token_ids[-20]] = torch.nan
    calls.clear()
    with pytest.raises(NumericsError, match="request 1"):
        made.generate([good, request(bad, 9, **PLAIN)])
    assert any(done < most for most, done in calls)
    assert made.generate([good])[0][0].token_ids == plain.token_ids


def sampled_late(made: Engine, number: int, without: set[int]) -> bool:
    """Whether the reply to a request has its 20th token from the end once, and the prompt and another reply have it not."""
    asked = request(number, 9, **PLAIN)
    [reply] = made.generate([asked])[0]
    token = reply.token_ids[-20]
    return reply.token_ids.count(token) == 1 and token not in {*(asked.prompt_ids or ()), *without}


def test_tenants_take_turns_between_steps(
    models: dict[str, Decoder], tokenizer: Tokenizer, chat: ChatFormat, calls: Calls
) -> None:
    asked = [replace(request(number, 5, **PLAIN), tenant="ab"[number % 2]) for number in range(6)]
    both(native(models["gqa"], tokenizer, chat), asked)
    assert not calls
