"""What may be asked of sampling: each poison is refused by name, its nearest valid twin is not."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from rorqual.core.errors import DataError
from rorqual.core.sampling import check_params
from rorqual.engine.request import Grammar, SamplingParams

VOCAB = 300

POISONS: dict[str, tuple[list[Any], list[Any]]] = {
    "max_tokens": ([0, -1, 2**40, True, 1.0, "5", None, 10**5000], [1, 2**20]),
    "temperature": (
        [-0.1, -1, math.nan, math.inf, -math.inf, True, "1", None, 10**400, 1j],
        [0, 0.0, 1e-300, 1, 2.5, 1e300, -0.0],
    ),
    "top_p": ([0, 0.0, -0.1, 1.01, 2, math.nan, math.inf, True, None], [1, 1.0, 1e-300, 0.5]),
    "top_k": ([-1, 2**40, 1.0, True, math.nan, None, "3"], [0, 1, 10**6]),
    "min_p": ([1, 1.0, -0.01, math.nan, False, None], [0, 0.0, 0.999]),
    "repetition_penalty": ([0, 1e-9, 0.0099, -1.0, 100.1, math.nan, math.inf, True, None], [1, 0.01, 100]),
    "presence_penalty": ([-100.1, 101, math.nan, math.inf, True, None], [-100, 100, 0.5]),
    "frequency_penalty": ([-100.1, 101, math.nan, -math.inf, True, None], [-100, 100, 0.5]),
    "seed": ([1.0, "1", None, True, math.nan], [0, -5, 10**40]),
    "n": ([0, -1, 10**9, True, 2.0, None], [1, 128, 4096]),
    "ignore_eos": ([1, 0, None, "yes"], [True, False]),
    "top_logprobs": ([-1, 21, True, 2.0, None], [0, 20]),
    "prompt_logprobs": ([-1, 21, True, 2.0, "1"], [None, 0, 20]),
    "think_budget": ([0, -1, 65, True, 2.0, "1"], [None, 1, 64]),
    "min_tokens": ([-1, 65, True, 2.0, None], [0, 64]),
    "min_p_first": ([1, 0, None, "yes"], [True, False]),
    "calculator": ([1, 0, None, "yes"], [True, False]),
    "logit_bias": (
        [
            ((VOCAB, 1.0),),
            ((-1, 1.0),),
            ((True, 1.0),),
            ((2.0, 1.0),),
            ((1, math.nan),),
            ((1, math.inf),),
            ((1, 100.5),),
            ((1, True),),
            ((1, None),),
            ((1, 1.0), (1, 1.0)),
            ((1,),),
            (1, 2),
            {"1": 2.0},
            None,
            tuple((i % VOCAB, 0.5) for i in range(1025)),
        ],
        [(), ((0, -100), (VOCAB - 1, 100.0)), tuple((i, 0.5) for i in range(VOCAB))],
    ),
    "stop": (
        [
            "text",
            ("",),
            ("a" * 257,),
            tuple("a" for _ in range(17)),
            (1,),
            (None,),
            (b"x",),
            ("a\ud800",),
            ("a\0",),
            {"a"},
            None,
            ("x",) * 10**6,
        ],
        [(), ("a" * 256,), tuple(f"{i}" for i in range(16)), ("\U0001f40b",)],
    ),
    "stop_token_ids": ([(VOCAB,), (-1,), (True,), (1.0,), ("1",), 5, None], [(), (0, VOCAB - 1)]),
    "grammar": (
        ["{}", Grammar("yaml"), Grammar("json", None), {"kind": "json"}],  # type: ignore[arg-type]
        [None, Grammar("json"), Grammar("regex", "a+")],
    ),
}
REFUSED = [(name, value) for name, (poisons, _) in POISONS.items() for value in poisons]
TAKEN = [(name, value) for name, (_, twins) in POISONS.items() for value in twins]


def named(case: tuple[str, Any]) -> str:
    name, value = case
    return f"{name}={value!r:.30}" if not isinstance(value, int) or value.bit_length() < 200 else f"{name}=huge"


@pytest.mark.parametrize("case", REFUSED, ids=named)
def test_a_poison_is_refused_by_name(case: tuple[str, Any]) -> None:
    name, value = case
    with pytest.raises(DataError) as caught:
        check_params(replace(SamplingParams(), **{name: value}), vocab_size=VOCAB, where="requests[3]")
    error = caught.value
    assert error.where == "requests[3]"
    assert error.what.startswith(name)
    assert error.remedy
    assert len(str(error)) < 250
    str(error).encode()  # it can be printed, whatever was asked


@pytest.mark.parametrize("case", TAKEN, ids=named)
def test_its_nearest_valid_twin_is_taken(case: tuple[str, Any]) -> None:
    name, value = case
    check_params(replace(SamplingParams(), **{name: value}), vocab_size=VOCAB, where="request")


def test_every_parameter_has_its_poisons() -> None:
    assert POISONS.keys() == SamplingParams.__dataclass_fields__.keys()


def test_ranges_follow_the_vocabulary() -> None:
    check_params(SamplingParams(top_logprobs=5), vocab_size=5, where="request")
    with pytest.raises(DataError, match="top_logprobs is 6"):
        check_params(SamplingParams(top_logprobs=6), vocab_size=5, where="request")
