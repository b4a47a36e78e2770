"""Log-probabilities in OpenAI's two formats: that of chat completions, and the older one of text completions.

They belong to the distribution that the token was sampled from, after temperature, top-p and other sampling parameters.
Each sampled token has an entry, including reasoning, special tokens, and the token that ended the reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rorqual.data.tokenizer import Tokenizer
from rorqual.serve.wire import Drawn, Score

LEAST = -9999.0
"""The log-probability that represents a probability of 0, because JSON has no infinity."""


def of_chat(tokenizer: Tokenizer, drawn: Sequence[Drawn]) -> dict[str, Any]:
    """Return `logprobs` of a chat choice. The joined `bytes` give the text even if a token ends within a character."""

    def entry(id_: int, logprob: float) -> dict[str, Any]:
        return {
            "token": tokenizer.token(id_),
            "logprob": max(logprob, LEAST),
            "bytes": list(tokenizer.token_bytes(id_)),
        }

    content = [
        entry(one.token, one.logprob) | {"top_logprobs": [entry(id_, value) for id_, value in one.top]} for one in drawn
    ]
    return {"content": content, "refusal": None}


def of_text(tokenizer: Tokenizer, drawn: Sequence[Drawn], before: int = 0) -> dict[str, Any]:
    """Return `logprobs` of a text choice. `text_offset` starts at `before`, the characters already sent."""
    tokens = [tokenizer.token(one.token) for one in drawn]
    offsets, place = [], before
    for text in tokens:
        offsets.append(place)
        place += len(text)
    return {
        "tokens": tokens,
        "token_logprobs": [max(one.logprob, LEAST) for one in drawn],
        "top_logprobs": [_named(tokenizer, one.top) for one in drawn],
        "text_offset": offsets,
    }


def of_echo(tokenizer: Tokenizer, ids: Sequence[int], scores: Sequence[Score], top: int, added: int) -> dict[str, Any]:
    """Return `logprobs` of a prompt's tokens for `echo`. The first token has no log-probability.

    `added`: tokens at the start that the echoed text does not contain (BOS).
    """
    tokens = [tokenizer.token(id_) for id_ in ids]
    offsets, place = [], 0
    for number, text in enumerate(tokens):
        offsets.append(place)
        place += 0 if number < added else len(text)
    return {
        "tokens": tokens,
        "token_logprobs": [None, *(max(logprob, LEAST) for logprob, _ in scores)],
        "top_logprobs": [None, *(_named(tokenizer, best[:top]) for _, best in scores)],
        "text_offset": offsets,
    }


def of_prompt(
    tokenizer: Tokenizer, ids: Sequence[int], scores: Sequence[Score], top: int
) -> list[dict[str, Any] | None]:
    """Return vLLM's `prompt_logprobs`: for each token after the first, its entry and those of the `top` likeliest, by id.

    `rank` counts from 1. It is null if the token is not among the likeliest.
    """

    def entry(id_: int, logprob: float, rank: int | None) -> dict[str, Any]:
        return {"logprob": max(logprob, LEAST), "rank": rank, "decoded_token": tokenizer.token(id_)}

    found: list[dict[str, Any] | None] = [None]
    for id_, (logprob, best) in zip(ids[1:], scores):
        ranks = {one: rank for rank, (one, _) in enumerate(best, start=1)}
        likely = {str(one): entry(one, value, rank) for rank, (one, value) in enumerate(best[:top], start=1)}
        found.append({str(id_): entry(id_, logprob, ranks.get(id_))} | likely)
    return found


def _named(tokenizer: Tokenizer, top: Sequence[tuple[int, float]]) -> dict[str, float]:
    # Tokens of incomplete characters have the same text. The likeliest of them is kept.
    found: dict[str, float] = {}
    for id_, value in top:
        found.setdefault(tokenizer.token(id_), max(value, LEAST))
    return found
