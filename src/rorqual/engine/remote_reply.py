"""What an address answers: bytes within their time, text that can be written down, a thought apart from its answer."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from rorqual.engine.request import Completion

LARGEST_REPLY = 64 * 2**20
THINK, END_THINK = "<think>", "</think>"
NO_ANSWER = frozenset({"content_filter", "tool_calls", "function_call", "error"})
"""Ends of what is no answer to a request that carries no tools."""


class NoCompletion(Exception):
    """A reply of status 200 that holds no completion. `remedy`: what a user can do; `usage`: the tokens that it counts all the same."""

    remedy = "The address must speak OpenAI's chat completions."

    def __init__(self, what: str, usage: Mapping[str, int], remedy: str = remedy) -> None:
        super().__init__(what)
        self.usage, self.remedy = usage, remedy


def completion_of(data: Any, prompt_logprobs: int | None) -> Completion:
    """The first choice of a reply's JSON; `NoCompletion` where there is none."""
    try:
        choice = data["choices"][0]
        message = choice["message"]
        content = text_of(message.get("content"))
        given = message.get("reasoning_content") or message.get("reasoning")
        ended, refusal = choice.get("finish_reason"), message.get("refusal")
        scores = prompt_scores(data.get("prompt_logprobs"), prompt_logprobs)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        raise NoCompletion(
            f"the answer has no choices[0].message: {shorten(json.dumps(data))}", usage_of(data)
        ) from None
    reasoning: str | None
    if given:  # apart, and some servers leave `</think>` in front of the content all the same
        text, reasoning = content.lstrip("\n").removeprefix(END_THINK).lstrip("\n"), str(given)
    else:
        text, reasoning = split_reasoning(content)
    fault = ""
    if ended in NO_ANSWER or (refusal and not content):
        fault = f"the server gave no answer: {shorten(str(refusal or choice.get('error') or ended))}"
    return Completion(
        prompt_ids=(),
        token_ids=[],
        logprobs=[],
        finish_reason="length" if ended == "length" else "stop",
        text=writable(text),
        reasoning=None if reasoning is None else writable(reasoning),
        usage=usage_of(data),
        error=fault,
        prompt_logprobs=scores and scores[0],
        prompt_top_logprobs=scores and scores[1],
        model=writable(name) if isinstance(name := data.get("model"), str) else "",
    )


def usage_of(data: Any) -> dict[str, int]:
    """The whole numbers of a reply's `usage`; none where it has no such object."""
    usage = data.get("usage") if isinstance(data, dict) else None
    return {name: value for name, value in usage.items() if type(value) is int} if isinstance(usage, dict) else {}


def shorten(text: str) -> str:
    """One line of at most 300 characters."""
    text = " ".join(text.split())
    return text if len(text) <= 300 else text[:300] + "..."


def read_until(reply: Any, end: float) -> bytes:
    """The body, where it is whole by `end`: a socket's timeout is for each piece alone."""
    raw = bytearray()
    while len(raw) < LARGEST_REPLY and (piece := reply.read1(1 << 16)):
        raw += piece
        if time.monotonic() > end:
            raise TimeoutError(f"the answer was not whole in time, of which {len(raw)} bytes came")
    return bytes(raw)


def writable(text: str) -> str:
    """Half a surrogate pair, which no file can hold, is U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def text_of(content: Any) -> str:
    """The text of a message's content: a string, nothing, or a list of parts of which some are text."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part.get("type") == "text")
    if content is None or isinstance(content, str):
        return content or ""
    raise TypeError("content is neither text nor parts")


Scores = tuple[list[float | None], list[list[tuple[int, float]]] | None]


def prompt_scores(data: Any, top: int | None) -> Scores | None:
    """Of vLLM's `prompt_logprobs`: for each token of the prompt its log-probability, and the `top` likeliest tokens; None where nobody asked.

    At each place the token itself comes first, and a rank says which are the likeliest.
    """
    if top is None or data is None:
        return None
    places = [[(int(id_), one["logprob"], one.get("rank")) for id_, one in (place or {}).items()] for place in data]
    own = [place[0][1] if place else None for place in places]
    ranked = [sorted((rank, id_, value) for id_, value, rank in place if rank and rank <= top) for place in places]
    return own, [[(id_, value) for _, id_, value in place] for place in ranked] if top else None


def split_reasoning(content: str) -> tuple[str, str | None]:
    """Answer and reasoning of a reply that holds both.

    `<think>` may stand in the prompt and so be missing here; a reply cut off while thinking has no answer. A reply with
    neither mark is an answer: the server took the reasoning away, or there was none.
    """
    head, mark, tail = content.partition(END_THINK)
    if mark:
        return tail.lstrip("\n"), head.replace(THINK, "", 1).strip("\n")
    if content.lstrip().startswith(THINK):
        return "", content.lstrip().removeprefix(THINK).strip("\n")
    return content, None
