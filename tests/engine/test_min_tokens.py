"""`min_tokens`: nothing ends a reply before, and everything does afterwards."""

from __future__ import annotations

import pytest

from rorqual.data.chat import ChatFormat
from rorqual.data.chat.stops import StopStringMatcher
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Completion, Engine, Request, SamplingParams
from rorqual.engine.request import Grammar

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


def test_a_stop_string_that_ended_before_does_not_count(engine: Engine, tokenizer: Tokenizer) -> None:
    [a], [b] = tokenizer.encode("a"), tokenizer.encode("b")
    grammar = Grammar("regex", "abab{6}")
    one = answer(engine, SamplingParams(max_tokens=20, min_tokens=4, stop=("aba",), grammar=grammar))
    assert one.text == "abab{6}".replace("b{6}", "bbbbbb") and one.token_ids[:4] == [a, b, a, b]


def test_where_every_token_ends_it_it_ends(engine: Engine) -> None:
    params = SamplingParams(max_tokens=9, min_tokens=5, stop_token_ids=tuple(range(264)))
    engine.submit(Request(params=params, prompt_ids=PROMPT))
    [delta] = engine.step()
    assert delta.completion is not None and delta.completion.error == ""
    assert len(delta.completion.token_ids) == 1 and delta.completion.finish_reason == "stop"


def test_a_stream_shows_what_the_whole_does() -> None:
    for stops in (["aa"], ["ab", "xabc"], ["abc", "c"]):
        for text in ("aaaaaaa", "xabcabcxabxabcc", "cccabcab"):
            for unheard in range(len(text) + 1):
                whole = StopStringMatcher(stops, unheard).feed(text, last=True)
                cutter = StopStringMatcher(stops)
                parts = [cutter.feed(letter, heard=place >= unheard) for place, letter in enumerate(text)]
                assert "".join(parts) + cutter.feed("", last=True) == whole, (stops, text, unheard)
                found = [
                    (at + len(stop), at)
                    for stop in stops
                    for at in range(len(text))
                    if text.startswith(stop, at) and at + len(stop) > unheard
                ]
                assert whole == (text[: min(found)[1]] if found else text)
