"""Log-probabilities of tokens in OpenAI's two shapes: the chat's, and the older one of completions.

They are those of the distribution that a token was drawn from, with temperature, top-p and the others applied. Each token that was
drawn has an entry: of the reasoning, of the marks around it, and of what ended the reply, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rorqual.data.tokenizer import Tokenizer
from rorqual.serve.wire import Drawn, Score

LEAST = -9999.0
"""What stands for a probability of 0, whose logarithm no JSON can carry."""


def of_chat(tokenizer: Tokenizer, drawn: Sequence[Drawn]) -> dict[str, Any]:
    """`logprobs` of a chat choice. `bytes` joined are the text, also where one token is half a character."""

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
    """`logprobs` of a text choice. `before`: characters of the tokens that were told already; offsets count on from there."""
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
    """The same of a prompt's tokens, of which the first has no log-probability. `added`: ids at the beginning that the text does not show."""
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
    """vLLM's `prompt_logprobs`: for each token but the first its own entry, and those of the likeliest, by id. `rank` from 1; null where it is
    not among these."""

    def entry(id_: int, logprob: float, rank: int | None) -> dict[str, Any]:
        return {"logprob": max(logprob, LEAST), "rank": rank, "decoded_token": tokenizer.token(id_)}

    found: list[dict[str, Any] | None] = [None]
    for id_, (logprob, best) in zip(ids[1:], scores):
        ranks = {one: rank for rank, (one, _) in enumerate(best, start=1)}
        likely = {str(one): entry(one, value, rank) for rank, (one, value) in enumerate(best[:top], start=1)}
        found.append({str(id_): entry(id_, logprob, ranks.get(id_))} | likely)
    return found


def _named(tokenizer: Tokenizer, top: Sequence[tuple[int, float]]) -> dict[str, float]:
    # Halves of characters share one name: the likeliest keeps it.
    found: dict[str, float] = {}
    for id_, value in top:
        found.setdefault(tokenizer.token(id_), max(value, LEAST))
    return found
