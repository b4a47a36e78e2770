"""`think_budget`: reasoning ends after so many tokens, and the answer is what the model says to that beginning."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from scaled import make_model

from rorqual.core.errors import DataError
from rorqual.core.records import Message
from rorqual.data.chat import ChatFormat, chat_format
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Completion, Engine, Request, SamplingParams
from rorqual.engine.grammar.compiler import GrammarCompiler
from rorqual.engine.grammar.constraint import ConstraintAfterThinking, ReasoningFormat, Unconstrained
from rorqual.engine.request import Grammar

ASKED = (Message("user", "2+2?"),)


def ask(engine: Engine, params: SamplingParams, thinking: Literal["auto", "on", "off"] = "on") -> list[Completion]:
    [group] = engine.generate([Request(ASKED, params, thinking)])
    return group


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("budget", [1, 7, 20])
def test_it_is_the_reply_without_a_budget_up_to_there_and_then_the_answer_to_that_thought(
    engine: Engine, tokenizer: Tokenizer, chat: ChatFormat, temperature: float, budget: int
) -> None:
    params = SamplingParams(
        max_tokens=40, temperature=temperature, seed=3, logit_bias=((tokenizer.special_id("</think>"), -100.0),)
    )
    [free] = ask(engine, params)
    [bound] = ask(engine, replace(params, think_budget=budget))
    assert free.text == "" and len(free.token_ids) == 40, "without a budget, this model never ends its thought"
    assert bound.token_ids[:budget] == free.token_ids[:budget] and bound.token_ids[budget] == tokenizer.special_id(
        "</think>"
    )
    assert bound.logprobs[:budget] == free.logprobs[:budget] and bound.logprobs[budget] == 0.0
    assert bound.text and bound.reasoning == tokenizer.decode(free.token_ids[:budget], specials=True)
    # The answer is the continuation of a prompt that ends with the closed thought; random numbers depend on the position.
    closed = (*bound.prompt_ids, *bound.token_ids[: budget + 1])
    if temperature == 0.0:
        rest = replace(params, max_tokens=len(bound.token_ids) - budget - 1)
        [[continued]] = engine.generate([Request(params=rest, prompt_ids=closed)])
        assert continued.token_ids == bound.token_ids[budget + 1 :]
        assert continued.logprobs == bound.logprobs[budget + 1 :]


def test_a_reply_may_still_end_within_its_thought(engine: Engine, chat: ChatFormat) -> None:
    params = SamplingParams(max_tokens=30, logit_bias=((chat.stop_ids[0], 100.0),))
    [free], [bound] = ask(engine, params), ask(engine, replace(params, think_budget=4))
    assert free.token_ids == bound.token_ids == [chat.stop_ids[0]] and free.logprobs == bound.logprobs


def test_the_model_may_still_answer_at_once(engine: Engine, tokenizer: Tokenizer, chat: ChatFormat) -> None:
    """In mode `auto`, the first token decides; a reply that does not think has no budget."""
    [letter] = tokenizer.encode("a")
    for first, budget in ((letter, 3), (tokenizer.special_id("<think>"), 3)):
        params = SamplingParams(max_tokens=12, seed=1, logit_bias=((first, 100.0),), think_budget=budget)
        [one] = ask(engine, params, "auto")
        if first == letter:
            assert one.token_ids == [letter] * 12 and one.reasoning is None
        else:
            assert one.token_ids[:5] == [tokenizer.special_id("<think>")] * 4 + [tokenizer.special_id("</think>")]


def test_every_sample_has_its_own_budget_and_neighbours_change_nothing(engine: Engine, tokenizer: Tokenizer) -> None:
    params = SamplingParams(
        max_tokens=30,
        temperature=1.0,
        seed=5,
        n=4,
        think_budget=6,
        logit_bias=((tokenizer.special_id("</think>"), -100.0),),
    )
    group = ask(engine, params)
    assert len({tuple(one.token_ids) for one in group}) == 4
    assert all(one.token_ids[6] == tokenizer.special_id("</think>") for one in group)
    beside = engine.generate(
        [Request(ASKED, replace(params, think_budget=budget, seed=5), "on") for budget in (6, 2, None)]
    )
    assert [one.token_ids for one in beside[0]] == [one.token_ids for one in group]
    assert all(one.token_ids[2] == tokenizer.special_id("</think>") for one in beside[1])
    assert all(tokenizer.special_id("</think>") not in one.token_ids for one in beside[2])


def test_a_grammar_applies_to_the_answer(engine: Engine, tokenizer: Tokenizer) -> None:
    grammar = Grammar("regex", "[0-9]{3}")
    [one] = ask(engine, SamplingParams(max_tokens=30, grammar=grammar, think_budget=5), "on")
    assert tokenizer.special_id("</think>") in one.token_ids[:6] and one.text.isdecimal() and len(one.text) == 3


@pytest.mark.parametrize("beginning", ["", "abc</th"])
def test_a_tag_of_several_tokens_is_written_whole(chat: ChatFormat, tokenizer: Tokenizer, beginning: str) -> None:
    """A tokenizer without the token. The tag is written whole, even behind a beginning of it."""
    ids = [first for letter in "</think>" for first in tokenizer.encode(letter)]
    assert len(ids) == 8
    masks = GrammarCompiler(tokenizer, tokenizer.vocab_size, chat.stop_ids).vocabulary_masks
    constraint = ConstraintAfterThinking(
        Unconstrained(), ReasoningFormat(end_text="</think>", budget=7, closing_ids=ids, may_stop=True), masks
    )
    said = [first for letter in beginning.ljust(7, "x") for first in tokenizer.encode(letter)]
    for token in said:
        assert constraint.mask() is None
        constraint.accept(token)
    for token in ids:
        mask = constraint.mask()
        assert mask is not None and np.flatnonzero(mask).tolist() == [token]
        constraint.accept(token)
    assert constraint.mask() is None and not constraint.done and not constraint.error


def test_bad_budgets_are_refused_beside_the_least_good_one(engine: Engine) -> None:
    good = SamplingParams(max_tokens=10, think_budget=8)
    assert len(ask(engine, good)[0].token_ids) <= 10
    with pytest.raises(DataError, match="take at least 11 tokens, but the reply has at most 10") as refused:
        ask(engine, replace(good, think_budget=9))
    assert "Lower think_budget" in refused.value.remedy and "think_budget" in refused.value.where
    room = engine.max_len - len(ask(engine, good)[0].prompt_ids)
    with pytest.raises(DataError, match=f"but the reply has at most {room}"):
        ask(engine, replace(good, max_tokens=10_000, think_budget=room - 1))
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(DataError, match="think_budget"):
            ask(engine, replace(good, think_budget=wrong))  # type: ignore[arg-type]
    assert ask(engine, replace(good, think_budget=9), "off")[0].reasoning is None, "a reply without thinking has room"


def test_a_format_without_thinking_is_refused(tokenizer: Tokenizer) -> None:
    engine = Engine.of(make_model("gqa"), tokenizer, chat_format(tokenizer, "deepseek-v3"), slots=2)
    for thinking in ("auto", "on", "off"):
        with pytest.raises(DataError, match="'deepseek-v3' has no thinking"):
            ask(engine, SamplingParams(max_tokens=10, think_budget=3), thinking)  # type: ignore[arg-type]
