"""Turns of a conversation, as a request holds them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rorqual.core.records import Message
from rorqual.serve.formats import Schema, Text

MAX_PARTS, MAX_NAME = 256, 256


class TextPart(Schema):
    """A part of a message. Pictures and sound are not taken."""

    type: Literal["text"]
    text: Text


class ChatMessage(Schema):
    """One turn. `name` changes nothing."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(max_length=MAX_PARTS, fail_fast=True)] | None = None
    reasoning_content: Text | None = None
    name: Annotated[Text, Field(max_length=MAX_NAME)] | None = None

    def message(self) -> Message:
        """As the chat formats take it."""
        content = self.content or ""
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        if self.role == "assistant":
            return Message("assistant", content, self.reasoning_content or None)
        return Message("user" if self.role == "user" else "system", content)
