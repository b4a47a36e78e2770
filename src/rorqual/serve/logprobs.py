"""Log-probabilities of tokens in OpenAI's two shapes: the chat's, and the older one of completions.

They are those of the distribution that a token was drawn from, with temperature, top-p and the others applied. Each token that was
drawn has an entry: of the reasoning, of the marks around it, and of what ended the reply, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rorqual.data.tokenizer import Tokenizer
from rorqual.serve.wire import Drawn

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
        "top_logprobs": [_named(tokenizer, one) for one in drawn],
        "text_offset": offsets,
    }


def _named(tokenizer: Tokenizer, one: Drawn) -> dict[str, float]:
    # Halves of characters share one name: the likeliest keeps it.
    found: dict[str, float] = {}
    for id_, value in one.top:
        found.setdefault(tokenizer.token(id_), max(value, LEAST))
    return found
