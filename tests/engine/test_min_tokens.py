"""`min_tokens`: nothing ends a reply before, and everything does afterwards."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rorqual.data.chat import ChatFormat
from rorqual.data.chat.stops import Stops
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Completion, Engine, Request, SamplingParams
from rorqual.engine.request import Grammar
from rorqual.model import Decoder

PROMPT = (50, 51, 52)


def answer(engine: Engine, params: SamplingParams) -> Completion:
    [[one]] = engine.generate([Request(params=params, prompt_ids=PROMPT)])
    return one


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("least", [0, 1, 5])
def test_the_models_own_end_and_a_stop_token_wait(
    engine: Engine, chat: ChatFormat, temperature: float, least: int
) -> None:
    for end, named in ((chat.stop_ids[0], ()), (90, (90,))):
        params = SamplingParams(
            max_tokens=20, temperature=temperature, min_tokens=least, logit_bias=((end, 100.0),), stop_token_ids=named
        )
        one = answer(engine, params)
        assert one.finish_reason == "stop" and len(one.token_ids) == least + 1
        assert one.token_ids[-1] == end and end not in one.token_ids[:-1]
        assert all(value > -50 for value in one.logprobs[:-1]), "of the distribution that was drawn from"


@pytest.mark.parametrize(("least", "tokens", "text"), [(0, 2, ""), (1, 2, ""), (2, 3, "a"), (5, 6, "aaaa")])
def test_a_stop_string_waits_and_may_begin_before(
    engine: Engine, tokenizer: Tokenizer, least: int, tokens: int, text: str
) -> None:
    [letter] = tokenizer.encode("a")
    one = answer(engine, SamplingParams(max_tokens=20, min_tokens=least, logit_bias=((letter, 100.0),), stop=("aa",)))
    assert (len(one.token_ids), one.text, one.finish_reason) == (tokens, text, "stop")


def test_a_stop_string_that_ended_before_does_not_count(engine: Engine, tokenizer: Tokenizer) -> None:
    [a], [b] = tokenizer.encode("a"), tokenizer.encode("b")
    grammar = Grammar("regex", "abab{6}")
    one = answer(engine, SamplingParams(max_tokens=20, min_tokens=4, stop=("aba",), grammar=grammar))
    assert one.text == "abab{6}".replace("b{6}", "bbbbbb") and one.token_ids[:4] == [a, b, a, b]


def test_with_ignore_eos_the_models_end_may_come(engine: Engine, chat: ChatFormat) -> None:
    end = chat.stop_ids[0]
    params = SamplingParams(max_tokens=6, min_tokens=4, ignore_eos=True, logit_bias=((end, 100.0),))
    assert answer(engine, params).token_ids == [end] * 6
    one = answer(engine, replace(params, stop_token_ids=(end,)))
    assert len(one.token_ids) == 5 and end not in one.token_ids[:4]


def test_a_grammar_goes_first(engine: Engine) -> None:
    """A reply that is complete ends; one that can go on does."""
    done = answer(engine, SamplingParams(max_tokens=20, min_tokens=10, grammar=Grammar("regex", "ab")))
    assert (done.text, done.finish_reason, done.error) == ("ab", "stop", "")
    more = answer(engine, SamplingParams(max_tokens=20, min_tokens=10, grammar=Grammar("regex", "a+")))
    assert len(more.text) >= 10 and set(more.text) == {"a"} and not more.error


def test_where_every_token_ends_it_it_ends(engine: Engine) -> None:
    params = SamplingParams(max_tokens=9, min_tokens=5, stop_token_ids=tuple(range(264)))
    engine.submit(Request(params=params, prompt_ids=PROMPT))
    [delta] = engine.step()
    assert delta.completion is not None and delta.completion.error == ""
    assert len(delta.completion.token_ids) == 1 and delta.completion.finish_reason == "stop"


def test_neighbours_change_no_bit(mla: Decoder, tokenizer: Tokenizer, chat: ChatFormat) -> None:
    end = chat.stop_ids[0]
    params = [
        SamplingParams(max_tokens=12, temperature=1.0, seed=seed, min_tokens=least, logit_bias=((end, 8.0),))
        for seed, least in enumerate((0, 3, 0, 9, 1))
    ]
    requests = [Request(params=one, prompt_ids=PROMPT[: 1 + number % 3]) for number, one in enumerate(params)]
    together = Engine.of(mla, tokenizer, chat, slots=3).generate(requests)
    for request, [one] in zip(requests, together):
        [[alone]] = Engine.of(mla, tokenizer, chat, slots=1).generate([request])
        assert (one.token_ids, one.logprobs) == (alone.token_ids, alone.logprobs)
        assert len(one.token_ids) >= min(12, request.params.min_tokens + 1)


def test_a_stream_shows_what_the_whole_does() -> None:
    for stops in (["aa"], ["ab", "xabc"], ["abc", "c"]):
        for text in ("aaaaaaa", "xabcabcxabxabcc", "cccabcab"):
            for unheard in range(len(text) + 1):
                whole = Stops(stops, unheard).feed(text, last=True)
                cutter = Stops(stops)
                parts = [cutter.feed(letter, heard=place >= unheard) for place, letter in enumerate(text)]
                assert "".join(parts) + cutter.feed("", last=True) == whole, (stops, text, unheard)
                found = [
                    (at + len(stop), at)
                    for stop in stops
                    for at in range(len(text))
                    if text.startswith(stop, at) and at + len(stop) > unheard
                ]
                assert whole == (text[: min(found)[1]] if found else text)
