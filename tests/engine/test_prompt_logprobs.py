"""What the model says of a prompt's tokens: the bits of the trainer's forward, in whatever chunks the prompt was fed, beside whomever, and
whatever the prefix cache had of it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from scaled import finish
from trained import TESTED, in_type

from rorqual.core.errors import NumericsError
from rorqual.data.chat import ChatFormat
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Completion, Engine, Request, SamplingParams
from rorqual.model import Decoder
from rorqual.ops.backends import TORCH_INVARIANT
from rorqual.ops.losses import token_logprobs
from rorqual.ops.row_limits import ENOUGH

TEXTS = ("Ada has 12 apples and Ben gives 5 more: 12 + 5 = 17.\n" * 2, "7 + 9 = 16; 9 + 7 = 16.\n" * 3, "Cleo")
ASKED = SamplingParams(max_tokens=3, prompt_logprobs=4, ignore_eos=True)


@pytest.fixture(scope="module", params=TESTED, ids="-".join)
def trained(request: pytest.FixtureRequest, models: dict[str, Decoder]) -> Decoder:
    kind, dtype = request.param
    return in_type(models[kind], dtype)


@torch.no_grad()
def forward(model: Decoder, prompt: tuple[int, ...]) -> list[float]:
    """The trainer's, in one piece, filled up to rows that every processor rounds alike."""
    trainer = copy.copy(model)
    trainer.ops = TORCH_INVARIANT
    ids = torch.tensor([[*prompt, *[0] * (-len(prompt) % ENOUGH.least)]])
    logits = trainer.logits(trainer(ids).hidden[0])[: len(prompt) - 1]
    found: list[float] = token_logprobs(logits.float(), torch.tensor(prompt[1:])).tolist()
    return found


def said(one: Completion) -> tuple[Any, ...]:
    return one.prompt_logprobs, one.prompt_top_logprobs


@pytest.mark.usefixtures("one_thread")
def test_they_are_the_trainers_bits_however_the_prompt_was_fed(
    trained: Decoder, tokenizer: Tokenizer, chat: ChatFormat
) -> None:
    requests = [Request(params=ASKED, prompt_ids=tuple(tokenizer.encode(text))) for text in TEXTS]
    expected = [forward(trained, request.prompt_ids or ()) for request in requests]
    for settings in (
        {"step_tokens": 2048},
        {"step_tokens": 16, "slots": 2},
        {"step_tokens": 40, "cache_bytes": 1 << 19},
    ):
        engine = Engine.of(trained, tokenizer, chat, reuse=True, **{"slots": 4, **settings})
        for _ in range(2):  # the second time all of it is cached
            for request, logprobs, (one,) in zip(requests, expected, engine.generate(requests)):
                assert request.prompt_ids and one.prompt_logprobs == [None, *logprobs], settings
                assert one.usage["prompt_cache_hit_tokens"] == 0


def test_sampling_changes_nothing_of_them_and_they_change_nothing_of_the_answer(engine: Engine) -> None:
    prompt = tuple(range(40, 60))
    plain = SamplingParams(max_tokens=8, temperature=0.9, top_p=0.8, seed=3, n=3, repetition_penalty=1.2)
    [without] = engine.generate([Request(params=plain, prompt_ids=prompt)])
    asked = replace(plain, prompt_logprobs=2, logit_bias=((50, 5.0),))
    [biased, (greedy,)] = engine.generate(
        [Request(params=asked, prompt_ids=prompt), Request(params=SamplingParams(prompt_logprobs=2), prompt_ids=prompt)]
    )
    [with_] = engine.generate([Request(params=replace(plain, prompt_logprobs=2), prompt_ids=prompt)])
    assert [(one.token_ids, one.logprobs) for one in with_] == [(one.token_ids, one.logprobs) for one in without]
    assert all(said(one) == said(greedy) for one in (*with_, *biased))
    assert all(said(one) == (None, None) for one in without)


def test_a_preempted_prompt_has_each_of_them_once(
    models: dict[str, Decoder], tokenizer: Tokenizer, chat: ChatFormat
) -> None:
    """One slot: who comes with a higher priority takes it in the middle of the prompt; what was fed by then is cached."""
    request = Request(params=ASKED, prompt_ids=tuple(tokenizer.encode(TEXTS[0])))
    other = Request(params=SamplingParams(max_tokens=2), prompt_ids=(50, 51), priority=5)
    model = models["gqa"]
    [(expected,)] = Engine.of(model, tokenizer, chat).generate([request])
    engine = Engine.of(model, tokenizer, chat, slots=1, step_tokens=32, reuse=True)
    request_id = engine.submit(request)
    for _ in range(3):
        engine.step()
    engine.submit(other)
    found = finish(engine)
    assert engine.stats()["preemptions"] == 1
    assert said(found[request_id]) == said(expected)


def test_who_asks_for_none_feeds_nobody_who_does(engine: Engine) -> None:
    """Equal prompts are fed once where that serves all."""
    prompt = tuple(range(40, 80))
    asked = [None, 3, 3, 0]
    found = engine.generate(
        [Request(params=SamplingParams(max_tokens=2, prompt_logprobs=top), prompt_ids=prompt) for top in asked]
    )
    [plain], [one], [two], [bare] = found
    assert said(plain) == (None, None) and said(one) == said(two) and bare.prompt_top_logprobs is None
    assert one.prompt_logprobs == bare.prompt_logprobs is not None


@torch.no_grad()
def test_a_logit_of_the_prompt_that_is_no_number_is_an_error(
    mla: Decoder, tokenizer: Tokenizer, chat: ChatFormat
) -> None:
    """Though what is drawn after it is one: an infinite weight gives +inf at some places and -inf at others."""
    model = copy.deepcopy(mla)
    model.lm_head.weight[200] = 0
    model.lm_head.weight[200, 0] = torch.inf
    engine = Engine.of(model, tokenizer, chat)

    def sound(*prompt: int) -> bool:
        engine.submit(Request(params=SamplingParams(max_tokens=1), prompt_ids=prompt))
        return not any(delta.completion and delta.completion.error for delta in engine.step())

    first = next(token for token in range(40, 90) if not sound(token))
    last = next(token for token in range(40, 90) if sound(first, token))
    good = Request(params=SamplingParams(max_tokens=1), prompt_ids=(first, last))
    assert len(engine.generate([good, good])) == 2
    with pytest.raises(NumericsError, match="request 1"):
        engine.generate([good, replace(good, params=SamplingParams(max_tokens=1, prompt_logprobs=0))])
