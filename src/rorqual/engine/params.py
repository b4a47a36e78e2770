"""What may be asked of sampling: each parameter has a range, and what lies outside is refused by name before it runs."""

from __future__ import annotations

import sys
from typing import Any

from rorqual.core.errors import DataError
from rorqual.engine.request import Grammar, SamplingParams

MAX_N = 4096
MAX_TOKENS = 1 << 31
MAX_TOP_K = 1 << 31
MAX_TOP_LOGPROBS = 20
MAX_BIASES = 1024
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
GRAMMARS = ("json_schema", "regex", "choice", "json", "calls")

_LARGEST = sys.float_info.max
_SHOWN = 60


def check_params(params: SamplingParams, *, vocab_size: int, where: str) -> None:
    """Raise a `DataError` that names the first parameter outside its range, its value and the range; `where` names the request.

    A value of another type (a bool for a number, NaN) lies outside. `vocab_size`: ids that the model can give.
    """
    p = params
    _whole(where, "max_tokens", p.max_tokens, 1, MAX_TOKENS)
    _whole(where, "n", p.n, 1, MAX_N)
    _whole(where, "top_k", p.top_k, 0, MAX_TOP_K)
    _whole(where, "top_logprobs", p.top_logprobs, 0, min(MAX_TOP_LOGPROBS, vocab_size))
    if p.prompt_logprobs is not None:
        _whole(where, "prompt_logprobs", p.prompt_logprobs, 0, min(MAX_TOP_LOGPROBS, vocab_size))
    _whole(where, "min_tokens", p.min_tokens, 0, p.max_tokens)
    _real(where, "temperature", p.temperature, 0, _LARGEST, "a finite number from 0")
    _real(where, "top_p", p.top_p, 0, 1, "a number above 0, at most 1", above=True)
    _real(where, "min_p", p.min_p, 0, 1, "a number from 0, below 1", below=True)
    # Far below, a logit divided by it is no number any more.
    _real(where, "repetition_penalty", p.repetition_penalty, 0.01, 100, "a number from 0.01 to 100")
    _real(where, "presence_penalty", p.presence_penalty, -100, 100, "a number from -100 to 100")
    _real(where, "frequency_penalty", p.frequency_penalty, -100, 100, "a number from -100 to 100")
    if type(p.seed) is not int:
        raise _outside(where, "seed", p.seed, "a whole number")
    for name in ("ignore_eos", "min_p_first"):
        if type(getattr(p, name)) is not bool:
            raise _outside(where, name, getattr(p, name), "true or false")
    _check_biases(where, p.logit_bias, vocab_size)
    _check_stops(where, p.stop)
    if not isinstance(p.stop_token_ids, tuple | list):
        raise _outside(where, "stop_token_ids", p.stop_token_ids, "a list of token ids")
    for id_ in p.stop_token_ids:
        _whole(where, "stop_token_ids", id_, 0, vocab_size - 1)
    _check_grammar(where, p.grammar)


def _check_biases(where: str, biases: Any, vocab_size: int) -> None:
    if not isinstance(biases, tuple | list) or not all(isinstance(b, tuple | list) and len(b) == 2 for b in biases):
        raise _outside(where, "logit_bias", biases, "pairs of a token id and a number")
    if len(biases) > MAX_BIASES:
        raise DataError(
            f"logit_bias has {len(biases)} entries", where=where, remedy=f"At most {MAX_BIASES} tokens can be biased."
        )
    seen: set[int] = set()
    for token, bias in biases:
        _whole(where, "logit_bias: token", token, 0, vocab_size - 1)
        _real(where, f"logit_bias: bias of token {token}", bias, -100, 100, "a number from -100 to 100")
        if token in seen:
            raise DataError(f"logit_bias names token {token} twice", where=where, remedy="Give each token one bias.")
        seen.add(token)


def _check_stops(where: str, stops: Any) -> None:
    if not isinstance(stops, tuple | list) or not all(isinstance(text, str) for text in stops):
        raise _outside(where, "stop", stops, "a list of texts")
    if len(stops) > MAX_STOPS:
        raise DataError(f"stop has {len(stops)} texts", where=where, remedy=f"At most {MAX_STOPS} can be given.")
    for text in stops:
        if not 1 <= len(text) <= MAX_STOP_CHARACTERS:
            raise DataError(
                f"stop: a text of {len(text)} characters", where=where, remedy=f"Give 1 to {MAX_STOP_CHARACTERS}."
            )
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise _outside(where, "stop", text, "text without half of a surrogate pair, which no reply can hold")


def _check_grammar(where: str, grammar: Any) -> None:
    if grammar is None:
        return
    if not isinstance(grammar, Grammar) or not isinstance(grammar.source, str):
        raise _outside(where, "grammar", grammar, "a Grammar with a text as its source")
    if grammar.kind not in GRAMMARS:
        raise _outside(where, "grammar: kind", grammar.kind, "one of " + ", ".join(GRAMMARS))


def _whole(where: str, name: str, value: Any, low: int, high: int) -> None:
    # `type(...) is`, as True is an int to isinstance.
    if type(value) is not int or not low <= value <= high:
        raise _outside(where, name, value, f"a whole number from {low} to {high}")


def _real(
    where: str, name: str, value: Any, low: float, high: float, text: str, *, above: bool = False, below: bool = False
) -> None:
    # NaN fails every comparison; a whole number too large for a float compares exactly.
    inside = type(value) in (int, float) and low <= value <= high
    if not inside or (above and value == low) or (below and value == high):
        raise _outside(where, name, value, text)


def _outside(where: str, name: str, value: Any, text: str) -> DataError:
    return DataError(f"{name} is {_shown(value)}", where=where, remedy=f"Give {text}.")


def _shown(value: Any) -> str:
    """A value as a person can read it, however large it is."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, str | int | float | None):
        # A lone surrogate would make the message itself impossible to print.
        text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    else:
        text = f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
