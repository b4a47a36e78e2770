"""The format of a base model: its tokenizer knows no turns, so text can be trained, measured and continued, and nothing said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NoReturn

from rorqual.core.errors import DataError
from rorqual.core.records import Message, Thinking
from rorqual.data.chat.base import ChatFormat, Rendered


class NoChat(ChatFormat):
    """Refuses conversations; a continuation of given ids reads as plain content. Nothing stops it but its length."""

    name = "none"

    def render(
        self,
        messages: Sequence[Message],
        *,
        thinking: Thinking = "auto",
        continue_: bool = False,
        train_from: int = 0,
    ) -> Rendered:
        """Always refused."""
        self._refuse()

    def prompt(self, messages: Sequence[Message], thinking: Thinking = "auto") -> list[int]:
        """Always refused."""
        self._refuse()

    def parse(self, ids: Iterable[int], thinking: Thinking = "auto") -> Message:
        return Message("assistant", self.tokenizer.decode(ids, specials=True))

    def kept(self, message: Message, thinking: Thinking = "auto") -> Message:
        return Message("assistant", message.content)

    def n_thought(self, ids: Sequence[int]) -> int:
        return 0

    def choice(self, thinking: Thinking) -> list[int]:
        return []

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return ()

    @property
    def pad(self) -> int:
        return 0

    def _refuse(self) -> NoReturn:
        raise DataError(
            "chat=none: a base model, whose tokenizer has no marks for turns",
            where="chat",
            remedy="Use a model that was trained to chat, or plain text (data=FILE.txt).",
        )
