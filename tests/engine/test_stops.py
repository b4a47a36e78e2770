"""A stop string ends the answer where it is whole, however many tokens it takes."""

from __future__ import annotations

import string

import pytest

from rorqual.core.records import Message
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Completion, Engine, Request, SamplingParams


@pytest.fixture
def letters(tokenizer: Tokenizer) -> tuple[tuple[int, float], ...]:
    """Biases under which a model writes letters, a token each."""
    return tuple((tokenizer.encode(letter)[0], 100.0) for letter in string.ascii_lowercase)


def ask(engine: Engine, letters: tuple[tuple[int, float], ...], *stop: str, seed: int = 0) -> Completion:
    params = SamplingParams(max_tokens=40, temperature=1.0, seed=seed, stop=stop, logit_bias=letters)
    return engine.generate([Request((Message("user", "hi"),), params, "off")])[0][0]


@pytest.mark.parametrize("length", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_stop_of_several_tokens_ends_the_answer(
    length: int, seed: int, engine: Engine, letters: tuple[tuple[int, float], ...]
) -> None:
    whole = ask(engine, letters, seed=seed)
    assert len(whole.text) == len(whole.token_ids) == 40 and whole.finish_reason == "length"
    stop = whole.text[15 : 15 + length]
    at = whole.text.index(stop)
    found = ask(engine, letters, stop, seed=seed)
    assert found.finish_reason == "stop" and found.text == whole.text[:at]
    assert found.token_ids == whole.token_ids[: at + length], "not one token more is drawn"
    beside = ask(engine, letters, stop + "A", seed=seed)
    assert beside.finish_reason == "length" and beside.text == whole.text, "what did not come whole stops nothing"
