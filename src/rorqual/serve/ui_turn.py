"""The chat page's conversation: its rows, the API request, and the streamed reply. Reasoning has its own row with a
timer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rorqual.serve.ui_math import shown, typed

Row = dict[str, Any]
"""A message of Gradio's chatbot with role, content and metadata. A message with a title in its metadata is reasoning."""
THINKING = {"on": True, "off": False}


@dataclass
class Wanted:
    """The generation settings of the chat page. `max_tokens`: with 0, only the context limits the length of the
    reply."""

    thinking: Literal["auto", "on", "off"] = "auto"
    temperature: float = 1.0
    max_tokens: int = 0

    def body(self, model: str, rows: Sequence[Row]) -> dict[str, Any]:
        """Return the API request that continues a conversation."""
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
    """Return the text of a row. The row's content is a string or a list of parts."""
    content = row.get("content") or ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    return "".join(part if isinstance(part, str) else str(part.get("text", "")) for part in parts)


def is_thought(row: Row) -> bool:
    """Return whether a row contains reasoning. Reasoning is displayed, but not sent to the model in the next request."""
    return bool((row.get("metadata") or {}).get("title"))


def messages_of(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Convert rows to API messages without reasoning. An empty assistant message stands for a missing reply."""
    messages: list[dict[str, str]] = []
    for row in rows:
        if is_thought(row):
            continue
        if messages and messages[-1]["role"] == row["role"]:
            if row["role"] == "assistant":
                messages[-1]["content"] += text_of(row)
                continue
            messages.append({"role": "assistant", "content": ""})
        messages.append({"role": row["role"], "content": text_of(row)})
    return messages


def question(text: str) -> Row:
    """Return a row that contains `text` as a user message."""
    return {"role": "user", "content": text}


def pictured(rows: Sequence[Row]) -> list[Row]:
    """Return copies of the rows in which formulas are converted for display."""
    return [{**row, "content": shown(text_of(row))} for row in rows]


def corrected(rows: Sequence[Row], place: int, value: Any) -> list[Row]:
    """Return the conversation up to the question at index `place`, with that question replaced by its edited text `value`."""
    before = text_of(rows[place]) if 0 <= place < len(rows) else ""
    return [*rows[: max(0, place)], question(typed(text_of({"content": value}), before))]


def upto_question(rows: Sequence[Row]) -> list[Row]:
    """Return the conversation up to its last question, for a retry. Return an empty list if there is no question."""
    last = max((place for place, row in enumerate(rows) if row["role"] == "user"), default=-1)
    return list(rows[: last + 1])


@dataclass
class Turn:
    """A reply that is being streamed. `clock` returns the time in seconds."""

    clock: Callable[[], float] = time.monotonic
    reasoning: str = ""
    content: str = ""
    reason: str | None = None
    tokens: int = 0
    _began: float = field(init=False)
    _reasoning_ended: float | None = None

    def __post_init__(self) -> None:
        self._began = self.clock()

    def add(self, chunk: dict[str, Any]) -> None:
        """Add one chunk of the stream to the reply."""
        if usage := chunk.get("usage"):
            self.tokens = usage["completion_tokens"]
        for choice in chunk.get("choices", ()):
            self.reason = choice.get("finish_reason") or self.reason
            delta = choice.get("delta") or {}
            self.reasoning += delta.get("reasoning_content") or ""
            if text := delta.get("content"):
                if self._reasoning_ended is None:
                    self._reasoning_ended = self.clock()
                self.content += text

    def stop(self) -> None:
        """Stop the reasoning timer if the stream ended during reasoning."""
        if self._reasoning_ended is None:
            self._reasoning_ended = self.clock()

    @property
    def seconds(self) -> float:
        """Seconds since the question."""
        return self.clock() - self._began

    @property
    def empty(self) -> bool:
        """Whether the reply has no text yet."""
        return not (self.reasoning.strip() or self.content)

    @property
    def phase(self) -> str:
        """The current phase of the reply, in one word. It changes rarely, as screen readers announce every change."""
        return "Answering" if self.content else "Thinking" if self.reasoning.strip() else "Waiting"

    def rows(self) -> list[Row]:
        """Return a row for the reasoning so far and a row for the answer so far. An empty row is left out."""
        rows: list[Row] = []
        if self.reasoning.strip():
            rows.append({"role": "assistant", "content": self.reasoning.strip("\n"), "metadata": self._title()})
        if self.content:
            rows.append({"role": "assistant", "content": self.content})
        return rows

    def _title(self) -> dict[str, str]:
        if self._reasoning_ended is None:
            return {"title": "Thinking", "status": "pending"}
        return {"title": f"Thought for {self._reasoning_ended - self._began:.1f} s", "status": "done"}

    def summary(self, *, stopped: bool = False) -> str:
        """Return a status line with the number of tokens, the time and the speed."""
        if stopped:
            return f"Stopped after {self.seconds:.1f} s."
        cut = " The reply reached the token limit." if self.reason == "length" else ""
        rate = f", {self.tokens / self.seconds:.0f} tokens per second" if self.seconds > 0 and self.tokens > 1 else ""
        return f"{self.tokens} tokens in {self.seconds:.1f} s{rate}.{cut}"
