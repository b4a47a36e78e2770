"""The chat format of base models, which have no chat turns.

Base models can be trained on text and continue text, but cannot chat.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from rorqual.core.errors import DataError
from rorqual.core.records import Message, Thinking, Tool
from rorqual.data.chat.chat_format import ChatFormat, RenderedConversation
from rorqual.data.chat.reply import ReplyRules
from rorqual.data.tokenizer import SpecialToken, Tokenizer

ENDS = (SpecialToken.EOS, "<|endoftext|>", "<|end_of_text|>", "</s>")
"""Names of the end-of-text tokens of base models."""


class NoChat(ChatFormat):
    """The chat format of base models. Rendering a conversation raises an error.

    The parser returns the model's continuation of a text, up to the end-of-text token, as plain content. If the tokenizer has
    no known end-of-text token, only the length limit stops generation.
    """

    name = "none"
    thinks = False

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        names = tokenizer.special_names
        self.stop_ids = tuple(tokenizer.special_id(name) for name in ENDS if name in names)
        self.pad = self.stop_ids[0] if self.stop_ids else 0

    def render(
        self,
        messages: Sequence[Message],
        *,
        thinking: Thinking = "auto",
        continue_: bool = False,
        train_from: int = 0,
        tools: Sequence[Tool] = (),
    ) -> RenderedConversation:
        """Raise a DataError, because a base model has no chat turns."""
        self._raise_no_chat_turns()

    def prompt(self, messages: Sequence[Message], thinking: Thinking = "auto", tools: Sequence[Tool] = ()) -> list[int]:
        """Raise a DataError, because a base model has no chat turns."""
        self._raise_no_chat_turns()

    def reply_rules(self, thinking: Thinking) -> ReplyRules:
        return ReplyRules("answer")

    def normalized(self, message: Message, thinking: Thinking = "auto") -> Message:
        return Message("assistant", message.text)

    def _raise_no_chat_turns(self) -> NoReturn:
        raise DataError(
            "chat=none: this is a base model, whose tokenizer has no special tokens for turns",
            where="chat",
            remedy="Use a model that was trained to chat, or plain text (data=FILE.txt).",
        )
