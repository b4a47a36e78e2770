"""Whoever samples for a trainer: a lost sample is asked for again and is the same, and weights of a wrong version are refused."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from scaled import make_model

from rorqual.core.errors import NumericsError
from rorqual.data.chat import chat_format
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Completion, Engine, Request, SamplingParams
from rorqual.engine.rollout_engine import TRIES, InlineRolloutEngine, RolloutEngine, gather_completions
from rorqual.model import Decoder

REQUESTS = [
    Request(
        prompt_ids=tuple(range(40, 40 + 3 * n)), params=SamplingParams(max_tokens=9, temperature=1.0, seed=7 * n, n=n)
    )
    for n in (1, 3, 2)
]
PLACES = {(number, sample) for number, request in enumerate(REQUESTS) for sample in range(request.params.n)}


@pytest.fixture(scope="module")
def model() -> Decoder:
    return make_model("mla")


@pytest.fixture(scope="module")
def inline(model: Decoder) -> InlineRolloutEngine:
    tokenizer = Tokenizer.byte_level()
    return InlineRolloutEngine(Engine.of(model, tokenizer, chat_format(tokenizer, "deepseek")), version=5)


class Faulty:
    """A worker of a user's own around a sound engine. Of call i it loses the samples in `loses[i]`, hands the others over backwards, and
    changes each by `changes`."""

    def __init__(self, engine: RolloutEngine, *loses: set[tuple[int, int]], **changes: int) -> None:
        self.engine, self.loses, self.changes = engine, [*loses], changes
        self.calls: list[Sequence[Request]] = []

    @property
    def version(self) -> int:
        return self.engine.version

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        self.calls.append(requests)
        lost = self.loses.pop(0) if self.loses else set()
        for one in [*self.engine.generate(requests)][::-1]:
            if (one.request, one.sample) not in lost:
                yield replace(one, **self.changes)  # type: ignore[arg-type]

    def update(self, weights: Decoder, version: int) -> None:
        self.engine.update(weights, version)


def same(one: Completion, other: Completion) -> bool:
    assert torch.equal(one.experts, other.experts)
    return replace(one, experts=None) == replace(other, experts=None)


@pytest.mark.parametrize("cores", [1, 2])
def test_a_finished_sample_arrives_while_the_engine_works_on_others_and_closing_stops_it(cores: int) -> None:
    tokenizer = Tokenizer.byte_level()
    model = make_model("mla", context=8000)
    engine = Engine.of(model, tokenizer, chat_format(tokenizer, "deepseek"), engine_cores=cores, threads=cores)
    short, *long = [
        Request(prompt_ids=(40, 41), params=SamplingParams(max_tokens=n, temperature=1.0, ignore_eos=True, seed=n))
        for n in (1, 6000, 5999)
    ]
    steps: list[object] = []
    engine.scoring_model.register_forward_pre_hook(lambda *_: steps.append(None))
    arriving = InlineRolloutEngine(engine).generate([long[0], short, long[1]])
    first = next(arriving)
    assert (first.request, first.sample, len(first.token_ids)) == (1, 0, 1)
    assert engine.stats()["running"] > 0, "the first sample was held back until all were finished"
    arriving.close()  # type: ignore[attr-defined]
    assert engine.stats()["running"] == engine.stats()["waiting"] == 0
    assert len(steps) < 5500, "the engine finished what nobody waits for"
    [[again]] = engine.generate([short])
    assert again.token_ids == first.token_ids, "the engine is usable again"


@pytest.mark.parametrize("lost", [{(1, 1)}, {(0, 0), (1, 2), (2, 0)}, PLACES], ids=len)
def test_what_is_lost_half_way_is_asked_for_again_and_is_the_same(
    inline: InlineRolloutEngine, lost: set[tuple[int, int]]
) -> None:
    whole = gather_completions(inline, REQUESTS, version=5)
    engine = Faulty(inline, lost, {(0, 0)})
    rows = gather_completions(engine, REQUESTS, version=5)
    assert [len(row) for row in rows] == [1, 3, 2]
    for row, expected in zip(rows, whole, strict=True):
        assert all(same(*pair) for pair in zip(row, expected, strict=True))
    assert [len(call) for call in engine.calls] == [3, len(lost), 1], "only what was lost is asked for again"


def test_an_engine_that_always_loses_the_same_is_given_up(inline: InlineRolloutEngine) -> None:
    engine = Faulty(inline, {(1, 0)}, *[{(0, 0)}] * TRIES)
    with pytest.raises(NumericsError, match=rf"1 of 6 samples are missing after {TRIES} attempts"):
        gather_completions(engine, REQUESTS, version=5)
    assert len(engine.calls) == TRIES


@pytest.mark.parametrize(
    ("had", "max_age", "refused"),
    [
        (5, 0, ""),
        (6, 0, "weights of version 6, newer than the trainer's version 5"),
        (6, 9, "weights of version 6, newer than the trainer's version 5"),
        (4, 0, "weights of version 4; the trainer is at 5, and max_age=0 allows version 5 or newer"),
        (4, 1, ""),
        (3, 1, "weights of version 3; the trainer is at 5, and max_age=1 allows version 4 or newer"),
    ],
)
def test_samples_of_newer_weights_and_of_too_old_ones_are_refused(
    inline: InlineRolloutEngine, had: int, max_age: int, refused: str
) -> None:
    engine = Faulty(inline, policy_version=had)
    if refused:
        with pytest.raises(NumericsError, match=refused):
            gather_completions(engine, REQUESTS, version=5, max_age=max_age)
    else:
        rows = gather_completions(engine, REQUESTS, version=5, max_age=max_age)
        assert {one.policy_version for row in rows for one in row} == {had}


def test_a_sample_that_nobody_asked_for_is_refused(inline: InlineRolloutEngine) -> None:
    for change in ({"request": 3}, {"sample": 3}):
        with pytest.raises(NumericsError, match="which was not requested"):
            gather_completions(Faulty(inline, **change), REQUESTS, version=5)


def test_an_update_names_the_trained_tensors_anew_and_copies_others(model: Decoder) -> None:
    tokenizer = Tokenizer.byte_level()
    mine, other = make_model("mla"), make_model("mla")
    with torch.no_grad():
        other.embed_tokens.weight.mul_(-1.5)
    engine = InlineRolloutEngine(Engine.of(mine, tokenizer, chat_format(tokenizer, "deepseek")))
    before = gather_completions(engine, REQUESTS, version=0)
    engine.update(mine, 1)
    assert engine.version == 1 and engine.engine.model is mine
    assert [[one.token_ids for one in row] for row in gather_completions(engine, REQUESTS, version=1)] == [
        [one.token_ids for one in row] for row in before
    ]
    engine.update(other, 2)
    after = gather_completions(engine, REQUESTS, version=2)
    assert torch.equal(mine.embed_tokens.weight, other.embed_tokens.weight) and mine is engine.engine.model
    assert after[1][0].token_ids != before[1][0].token_ids


def test_an_update_invalidates_the_cache_even_if_torch_saw_no_change() -> None:
    """A fused optimizer changes the shared weights without raising their version counters."""
    model, tokenizer = copy.deepcopy(make_model("mla")), Tokenizer.byte_level()
    rollouts = InlineRolloutEngine(Engine.of(model, tokenizer, chat_format(tokenizer, "deepseek"), reuse=True))
    request = Request(prompt_ids=tuple(range(40, 125)), params=SamplingParams(max_tokens=2))
    hits = []
    for version in (1, 2):
        hits += [next(rollouts.generate([request])).usage["prompt_cache_hit_tokens"] for _ in range(2)]
        model.layers[1].attention.o_proj.weight.detach().numpy().__imul__(1.5)
        rollouts.update(model, version)
    assert hits == [0, 64, 0, 64] and rollouts.version == 2
