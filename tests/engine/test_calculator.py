"""`calculator`: the engine writes the result of each calculation in a reply, and nothing else changes."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import tokenizers

from rorqual.core.records import Message
from rorqual.data.chat import ChatFormat
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Completion, Engine, Request, SamplingParams
from rorqual.engine.grammar.calculator import CalculatorConstraint, calculate
from rorqual.engine.grammar.compiler import GrammarCompiler
from rorqual.engine.grammar.constraint import Unconstrained
from rorqual.engine.request import Grammar
from rorqual.model import Decoder

ASKED = (Message("user", "2+2?"),)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("12 + 34 =", " 46"),
        ("12 +34 =", " 46"),
        ("12+34=", "46"),
        ("So he has 24 - 9 =", " 15"),
        ("9 - 24 =", " -15"),
        ("2 + 3 * 4 =", " 14"),
        ("2 * 3 + 4 =", " 10"),
        ("20 - 6 - 4 =", " 10"),
        ("48 / 2 / 3 =", " 8"),
        ("<<48/2=", "24"),
        ("1,200 * 3 =", " 3600"),
        ("0.5 * 3 =", " 1.5"),
        ("7 / 4 =", " 1.75"),
        ("2 × 3 =", " 6"),
        ("6 ÷ 4 =", " 1.5"),
        ("5 − 7 =", " -2"),
        ("1 / 64 =", " 0.015625"),
        ("0 * 5 =", " 0"),
        ("100 * 10 =", " 1000"),
        ("$3 * 4 =", " 12"),
        ("3 + 4 = 7 + 2 =", " 9"),
        ("123456789012345 + 1 =", " 123456789012346"),
        ("It is: 3 + 4 =", " 7"),
        ("x = 3 + 4 =", " 7"),
        ("7\n3 + 4 =", " 7"),
        ("\n 3 + 4 =", " 7"),
        ("costs $3 * 4 =", " 12"),
        ("Peter has 10, 5 + 3 =", " 8"),
        # Nothing to calculate, or only a part of an expression.
        ("2 x 3 + 4 =", ""),
        ("2 \\times 3 + 4 =", ""),
        ("two times 3 + 4 =", ""),
        ("10 MOD 3 + 1 =", ""),
        ("2 ⋅ 3 + 4 =", ""),
        ("5 – 3 + 1 =", ""),
        ("10 % 3 + 1 =", ""),
        ("√9 + 1 =", ""),
        ("log 10 + 5 =", ""),
        ("12 345 + 1 =", ""),
        ("12:30 + 5 =", ""),
        ("2024-01-05 =", ""),
        ("2 * [3 + 4 =", ""),
        ("|3 + 4 =", ""),
        ("8 ÷ 0 =", ""),
        ("12 =", ""),
        ("12 + 34", ""),
        ("12 + 34 = ", ""),
        ("12 + 34 ==", ""),
        ("x + 34 =", ""),
        ("x + 3 * 4 =", ""),
        ("2x + 3 * 4 =", ""),
        ("(1 + 2) * 3 =", ""),
        ("2 * (1 + 2 =", ""),
        ("2 ^ 3 * 4 =", ""),
        ("- 3 + 4 =", ""),
        ("v1 + 2 =", ""),
        ("3 hours * 4 =", ""),
        ("5% * 3 =", ""),
        ("1 / 0 =", ""),
        ("10 / 3 =", ""),
        ("1 / 128 =", ""),
        ("1234567890123456 + 1 =", ""),
        ("1.2.3 + 4 =", ""),
        ("1 + 2  =", ""),
        ("", ""),
        ("=", ""),
        ("1 +" * 40 + " 1 =", ""),
    ],
)
def test_what_follows_a_text(text: str, written: str) -> None:
    assert calculate(text) == written


# ---- in a reply


@pytest.fixture(scope="module")
def sums(tokenizer: Tokenizer) -> SamplingParams:
    """Parameters with which a random model writes only the characters `1`, `2`, `+` and `=`."""
    [one, two, plus, equal] = tokenizer.encode("12+=")
    bias = tuple((id_, 100.0) for id_ in (one, two, plus, equal))
    return SamplingParams(max_tokens=60, temperature=1.0, seed=3, n=8, logit_bias=bias, calculator=True)


def ask(engine: Engine, params: SamplingParams, thinking: str = "off") -> list[Completion]:
    [group] = engine.generate([Request(ASKED, params, thinking)])  # type: ignore[arg-type]
    return group


def places(text: str) -> list[tuple[int, str]]:
    """Where results are in a reply of one token per character, and what they are."""
    found, end = [], 0
    for place in range(len(text)):
        if place >= end and text[place] == "=" and (written := calculate(text[: place + 1])):
            found.append((place + 1, written))
            end = place + 1 + len(written)
    return found


@pytest.mark.parametrize("thinking", ["off", "on"])
def test_every_calculation_has_its_result_and_all_else_is_sampled(
    engine: Engine, sums: SamplingParams, thinking: str
) -> None:
    total = 0
    plain = ask(engine, replace(sums, calculator=False), thinking)
    for one, without in zip(ask(engine, sums, thinking), plain, strict=True):
        text = one.text if thinking == "off" else one.reasoning
        assert text is not None and len(text) == len(one.token_ids) == 60
        found = places(text)
        total += len(found)
        forced = {at + n for at, written in found for n in range(len(written))}
        for at, written in found:
            assert written.startswith(text[at : at + len(written)])
        assert [place for place, logprob in enumerate(one.logprobs) if logprob == 0.0] == sorted(
            p for p in forced if p < 60
        )
        first = found[0][0] if found else 60
        assert one.token_ids[:first] == without.token_ids[:first] and one.logprobs[:first] == without.logprobs[:first]
    assert total >= 8


def test_a_grammar_takes_precedence(engine: Engine, sums: SamplingParams) -> None:
    free = replace(sums, logit_bias=(), n=2)
    for source, texts in ((r"1\+1=[0-9]", {"1+1=2"}), (r"1\+1=3", {"1+1=3"}), (r"9\+9=[0-9]", None)):
        replies = {one.text for one in ask(engine, replace(free, grammar=Grammar("regex", source)))}
        assert replies == texts if texts else all(re.fullmatch(source, text) for text in replies)
    [one, *_] = ask(engine, replace(free, grammar=Grammar("regex", r"9\+9=[0-9]{2}; [0-9]")))
    assert one.text.startswith("9+9=18; ")


def test_a_calculation_does_not_reach_over_the_end_of_the_thought(tokenizer: Tokenizer, chat: ChatFormat) -> None:
    grammars = GrammarCompiler(tokenizer, tokenizer.vocab_size, chat.stop_ids)
    for ids, expected in (
        (tokenizer.encode("7+1="), "8"),
        ([*tokenizer.encode("7"), tokenizer.special_id("</think>"), *tokenizer.encode("+1=")], None),
        ([*tokenizer.encode("7"), tokenizer.special_id("</think>"), *tokenizer.encode("8+1=")], "9"),
    ):
        state = CalculatorConstraint(Unconstrained(), tokenizer, grammars.vocabulary_masks)
        for id_ in ids:
            assert state.mask() is None
            state.accept(id_)
        mask = state.mask()
        assert (None if mask is None else tokenizer.decode(np.flatnonzero(mask).tolist())) == expected


def test_no_digit_follows_a_result_and_a_cut_result_reaches_nowhere(tokenizer: Tokenizer, chat: ChatFormat) -> None:
    masks = GrammarCompiler(tokenizer, tokenizer.vocab_size, chat.stop_ids).vocabulary_masks
    state = CalculatorConstraint(Unconstrained(), tokenizer, masks)
    for id_ in tokenizer.encode("12*3=36"):
        state.accept(id_)
    mask = state.mask()
    assert mask is not None and not any(mask[id_] for id_ in tokenizer.encode("0123456789"))
    assert mask.sum() == len(mask) - 10 and all(mask[id_] for id_ in tokenizer.encode(" .-a"))
    state.accept(tokenizer.encode(" ")[0])
    assert state.mask() is None
    cut = CalculatorConstraint(Unconstrained(), tokenizer, masks)
    for id_ in [*tokenizer.encode("12 + 3 = 1"), tokenizer.special_id("</think>"), *tokenizer.encode("5 + 2 =")]:
        cut.accept(id_)
    said = []
    for _ in range(2):
        [id_] = np.flatnonzero(cut.mask()).tolist()
        cut.accept(id_)
        said.append(id_)
    assert tokenizer.decode(said) == " 7"


def test_the_tokens_of_a_result_are_those_of_the_text() -> None:
    """A tokenizer whose tokens have several characters."""
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator([f"{n} + {n + 9} = {2 * n + 9}" for n in range(100)], vocab_size=400)
    tokenizer = Tokenizer(trained.to_str())
    assert len(tokenizer.encode(" 42")) < 3
    masks = GrammarCompiler(tokenizer, tokenizer.vocab_size, [0]).vocabulary_masks
    for text, whole in (("12 + 30 =", "12 + 30 = 42"), ("12+30=", "12+30=42")):
        state, head = CalculatorConstraint(Unconstrained(), tokenizer, masks), tokenizer.encode(text)
        for id_ in head:
            state.accept(id_)
        said = []
        while (mask := state.mask()) is not None and mask.sum() == 1:
            [id_] = np.flatnonzero(mask).tolist()
            state.accept(id_)
            said.append(id_)
        assert [*head, *said] == tokenizer.encode(whole)


def test_the_trainer_learns_nothing_from_a_result(
    mla: Decoder, tokenizer: Tokenizer, chat: ChatFormat, sums: SamplingParams
) -> None:
    """The record of allowed tokens has one token at each place of a result."""
    engine = Engine.of(mla, tokenizer, chat, slots=8, record_kept=True)
    n_results = 0
    for one in ask(engine, sums):
        allowed = np.unpackbits(one.kept, axis=-1).sum(-1)
        assert ((allowed == 1) == (np.array(one.logprobs) == 0.0)).all()
        n_results += int((allowed == 1).sum())
    assert n_results >= 8
