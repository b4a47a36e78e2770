"""A conversation as the page shows it: turns, a thought that is open while it lasts and folded and timed afterwards, the request."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rorqual.serve.ui_math import shown, typed

Row = dict[str, Any]
"""A message of Gradio's chatbot: role, content, metadata (a title makes it a thought)."""
THINKING = {"on": True, "off": False}


@dataclass
class Wanted:
    """What the page's settings say. `max_tokens` 0: what is left of the context."""

    thinking: Literal["auto", "on", "off"] = "auto"
    temperature: float = 1.0
    max_tokens: int = 0

    def body(self, model: str, rows: Sequence[Row]) -> dict[str, Any]:
        """The request that continues a conversation."""
        body: dict[str, Any] = {
            "model": model,
            "messages": messages_of(rows),
            "temperature": float(self.temperature),
            "stream_options": {"include_usage": True},
        }
        if self.thinking in THINKING:
            body["chat_template_kwargs"] = {"thinking": THINKING[self.thinking]}
        if self.max_tokens:
            body["max_tokens"] = int(self.max_tokens)
        return body


def text_of(row: Row) -> str:
    """The text of a row; the browser sends it back as a string or as parts."""
    content = row.get("content") or ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    return "".join(part if isinstance(part, str) else str(part.get("text", "")) for part in parts)


def is_thought(row: Row) -> bool:
    """Whether a row is a thought, which is shown and not sent again."""
    return bool((row.get("metadata") or {}).get("title"))


def messages_of(rows: Sequence[Row]) -> list[dict[str, str]]:
    """The conversation that is sent: thoughts left out, as the chat formats have it; a reply that never came is an empty one."""
    found: list[dict[str, str]] = []
    for row in rows:
        if is_thought(row):
            continue
        if found and found[-1]["role"] == row["role"]:
            if row["role"] == "assistant":
                found[-1]["content"] += text_of(row)
                continue
            found.append({"role": "assistant", "content": ""})
        found.append({"role": row["role"], "content": text_of(row)})
    return found


def question(text: str) -> Row:
    """What somebody asks."""
    return {"role": "user", "content": text}


def pictured(rows: Sequence[Row]) -> list[Row]:
    """Rows as the page shows them."""
    return [{**row, "content": shown(text_of(row))} for row in rows]


def corrected(rows: Sequence[Row], place: int, value: Any) -> list[Row]:
    """The conversation up to the question at a place, of which somebody changed the picture into `value`, to ask that instead."""
    before = text_of(rows[place]) if 0 <= place < len(rows) else ""
    return [*rows[: max(0, place)], question(typed(text_of({"content": value}), before))]


def upto_question(rows: Sequence[Row]) -> list[Row]:
    """The conversation up to its last question, to ask it again; empty where there is none."""
    last = max((place for place, row in enumerate(rows) if row["role"] == "user"), default=-1)
    return list(rows[: last + 1])


@dataclass
class Turn:
    """A reply on its way. `clock` gives seconds."""

    clock: Callable[[], float] = time.monotonic
    reasoning: str = ""
    content: str = ""
    reason: str | None = None
    tokens: int = 0
    _began: float = field(init=False)
    _thought_until: float | None = None

    def __post_init__(self) -> None:
        self._began = self.clock()

    def add(self, chunk: dict[str, Any]) -> None:
        """One chunk of the stream."""
        if usage := chunk.get("usage"):
            self.tokens = usage["completion_tokens"]
        for choice in chunk.get("choices", ()):
            self.reason = choice.get("finish_reason") or self.reason
            delta = choice.get("delta") or {}
            self.reasoning += delta.get("reasoning_content") or ""
            if text := delta.get("content"):
                if self._thought_until is None:
                    self._thought_until = self.clock()
                self.content += text

    def stop(self) -> None:
        """Nothing more comes: a thought that is still open ends now."""
        if self._thought_until is None:
            self._thought_until = self.clock()

    @property
    def seconds(self) -> float:
        """Since the question."""
        return self.clock() - self._began

    @property
    def empty(self) -> bool:
        """Whether nothing came."""
        return not (self.reasoning.strip() or self.content)

    @property
    def phase(self) -> str:
        """What goes on, in a word that does not change with each token: it is read aloud."""
        return "Answering" if self.content else "Thinking" if self.reasoning.strip() else "Waiting"

    def rows(self) -> list[Row]:
        """The reply as it stands."""
        rows: list[Row] = []
        if self.reasoning.strip():
            rows.append({"role": "assistant", "content": self.reasoning.strip("\n"), "metadata": self._title()})
        if self.content:
            rows.append({"role": "assistant", "content": self.content})
        return rows

    def _title(self) -> dict[str, str]:
        if self._thought_until is None:
            return {"title": "Thinking", "status": "pending"}
        return {"title": f"Thought for {self._thought_until - self._began:.1f} s", "status": "done"}

    def summary(self, *, stopped: bool = False) -> str:
        """One line on how it went."""
        if stopped:
            return f"Stopped after {self.seconds:.1f} s."
        cut = " The reply reached the limit of tokens." if self.reason == "length" else ""
        rate = f", {self.tokens / self.seconds:.0f} tokens per second" if self.seconds > 0 and self.tokens > 1 else ""
        return f"{self.tokens} tokens in {self.seconds:.1f} s{rate}.{cut}"
