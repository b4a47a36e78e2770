"""A schema asked of a server, and what came back of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import httpx
import json_schemas as drawn

PROMPT = "Answer in JSON, and briefly."


@dataclass(frozen=True)
class Outcome:
    """`said`: of `refused` and `unmatched` (an answer that ended, and was found not to match) the keyword, of `wrong` what is wrong, else the
    content."""

    kind: Literal["stop", "length", "refused", "unmatched", "wrong"]
    said: str


def ask(http: httpx.Client, model: str, schema: dict[str, Any], seed: int, max_tokens: int) -> Outcome:
    """One request, strict, at temperature 1."""
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    body = {
        "model": model, "messages": [{"role": "user", "content": PROMPT}], "response_format": form, "temperature": 1, "seed": seed,
        "max_tokens": max_tokens, "chat_template_kwargs": {"thinking": False},
    }  # fmt: skip
    try:
        reply = http.post("/v1/chat/completions", json=body)
    except httpx.HTTPError as error:
        return Outcome("wrong", f"no answer: {error!r}")
    if reply.status_code == 400:
        return refusal(reply.json()["error"]["message"], schema)
    if reply.status_code == 422 and reply.json()["error"]["code"] == "schema_mismatch":
        found = refusal(reply.json()["error"]["message"], schema)
        return found if found.kind == "wrong" else Outcome("unmatched", found.said)
    if reply.status_code != 200:
        return Outcome("wrong", f"{reply.status_code}: {reply.text[:300]}")
    choice = reply.json()["choices"][0]
    content, reason = choice["message"]["content"] or "", choice["finish_reason"]
    if reason == "stop" and (wrong := drawn.wrong_with(content, schema)):
        return Outcome("wrong", f"{wrong}; the answer is {content!r}")
    return Outcome(reason, content) if reason in ("stop", "length") else Outcome("wrong", f"it ended by {reason}")


def refusal(message: str, schema: dict[str, Any]) -> Outcome:
    """Which keyword a refusal names; wrong where none that stands in the schema."""
    standing = set(drawn.keywords(schema))
    for name in re.findall(r"'([^']+)'", message):
        if name in standing:
            return Outcome("refused", name)
    for words, name in (("regex", "pattern"), ("references", "$ref")):
        if words in message and name in standing:
            return Outcome("refused", name)
    if "no reply can match" in message:
        return Outcome("refused", "matched by no reply")
    return Outcome("wrong", f"refused without a keyword: {message}")
