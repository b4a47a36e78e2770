"""Log-probabilities in OpenAI's formats for chat completions and text completions.

Log-probabilities are those of the sampling distribution, after temperature, top-p and other sampling parameters. At
temperature 0, the log-probabilities are those of temperature 1 without top-k, top-p and min-p. Each sampled token has
an entry, including reasoning tokens, special tokens, and the token that ended the reply.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from rorqual.data.tokenizer import REPLACEMENT, Tokenizer
from rorqual.serve.wire import SampledToken, Score

LEAST = -9999.0
"""Log-probability that stands for a probability of 0, because JSON cannot represent negative infinity."""


class TextOffsets:
    """Counter of the `text_offset` of consecutive tokens: the index of the character that contains a token's first byte.

    The tokens of one character have the same offset. `start`: the offset of the first token.
    """

    def __init__(self, tokenizer: Tokenizer, start: int = 0) -> None:
        self._tokenizer, self._length = tokenizer, start
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def next_offset(self, id_: int) -> int:
        """Return the offset of the next token."""
        data = self._tokenizer.token_bytes(id_) or REPLACEMENT.encode()
        incomplete = self._decoder.getstate()[0] + data[:1]
        offset = self._length + len(incomplete.decode("utf-8", "replace")) - 1
        self._length += len(self._decoder.decode(data))
        return offset


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[SampledToken]) -> dict[str, Any]:
    """Return the `logprobs` of a chat choice.

    The text of a token is not exact if the token ends inside a UTF-8 character. Clients can join the `bytes` of all tokens to
    get the exact text. As in OpenAI's API, the `bytes` of a special token are None.
    """

    def entry(id_: int, logprob: float) -> dict[str, Any]:
        return {
            "token": tokenizer.token(id_),
            "logprob": max(logprob, LEAST),
            "bytes": None if tokenizer.is_special(id_) else list(tokenizer.token_bytes(id_)),
        }

    content = [
        entry(sampled.token, sampled.logprob) | {"top_logprobs": [entry(id_, value) for id_, value in sampled.top]}
        for sampled in tokens
    ]
    return {"content": content, "refusal": None}


def text_logprobs(tokenizer: Tokenizer, sampled_tokens: Sequence[SampledToken], offsets: TextOffsets) -> dict[str, Any]:
    """Return the `logprobs` of the next tokens of a text choice. `offsets` has counted the choice's earlier tokens."""
    return {
        "tokens": [tokenizer.token(sampled.token) for sampled in sampled_tokens],
        "token_logprobs": [max(sampled.logprob, LEAST) for sampled in sampled_tokens],
        "top_logprobs": [_top_logprobs_by_text(tokenizer, sampled.top) for sampled in sampled_tokens],
        "text_offset": [offsets.next_offset(sampled.token) for sampled in sampled_tokens],
    }


def echo_logprobs(
    tokenizer: Tokenizer, ids: Sequence[int], scores: Sequence[Score], top: int, added: int
) -> dict[str, Any]:
    """Return the `logprobs` of a prompt that is echoed. The prompt's first token has no log-probability.

    `added`: number of leading tokens that are not in the echoed text: 1 if the server added a BOS token, else 0.
    """
    offsets = TextOffsets(tokenizer)
    return {
        "tokens": [tokenizer.token(id_) for id_ in ids],
        "token_logprobs": [None, *(max(logprob, LEAST) for logprob, _ in scores)],
        "top_logprobs": [None, *(_top_logprobs_by_text(tokenizer, best[:top]) for _, best in scores)],
        "text_offset": [*[0] * added, *map(offsets.next_offset, ids[added:])],
    }


def vllm_prompt_logprobs(
    tokenizer: Tokenizer, ids: Sequence[int], scores: Sequence[Score], top: int
) -> list[dict[str, Any] | None]:
    """Return vLLM's `prompt_logprobs`. Each prompt position has an entry for the prompt's token, and an entry for each of the
    `top` likeliest tokens.

    Entries are keyed by token id. The value for the first prompt position is None. `rank` is 1 for the likeliest token, and
    null if the token is not among the likeliest tokens that the engine returned.
    """

    def entry(id_: int, logprob: float, rank: int | None) -> dict[str, Any]:
        return {"logprob": max(logprob, LEAST), "rank": rank, "decoded_token": tokenizer.token(id_)}

    positions: list[dict[str, Any] | None] = [None]
    for id_, (logprob, best) in zip(ids[1:], scores):
        ranks = {candidate: rank for rank, (candidate, _) in enumerate(best, start=1)}
        likely = {
            str(candidate): entry(candidate, value, rank) for rank, (candidate, value) in enumerate(best[:top], start=1)
        }
        positions.append({str(id_): entry(id_, logprob, ranks.get(id_))} | likely)
    return positions


def _top_logprobs_by_text(tokenizer: Tokenizer, top: Sequence[tuple[int, float]]) -> dict[str, float]:
    # Different tokens that contain only a part of a UTF-8 character may have the same text. Such a text gets the
    # log-probability of the likeliest of these tokens.
    logprobs: dict[str, float] = {}
    for id_, value in top:
        logprobs.setdefault(tokenizer.token(id_), max(value, LEAST))
    return logprobs
