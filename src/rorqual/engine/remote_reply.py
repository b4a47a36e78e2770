"""What an address answers: bytes within their time, text that can be written down, a thought apart from its answer."""

from __future__ import annotations

import time
from typing import Any

LARGEST_REPLY = 64 * 2**20
THINK, END_THINK = "<think>", "</think>"


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
