r"""Replies that think in a block, `<think>\n{reasoning}\n</think>\n\n{content}`, as Qwen3 and DeepSeek-R1 write them.

`MarkedBlock` reads the tags as special tokens, if the family has them. `SpokenBlock` reads them as text, so that a model of
a family without such tokens can still be taught to think. Newlines around the reasoning and before the content belong to
the block: writing and reading strip them, as the published templates do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rorqual.core.errors import DataError
from rorqual.core.records import Message, Thinking
from rorqual.data.chat.reply import Begins, ReplyForm, Trim
from rorqual.data.chat.turns import TurnChat
from rorqual.data.tokenizer import Tokenizer

THINK, END_THINK = "<think>", "</think>"


class MarkedBlock(TurnChat):
    """A thinking block with special tokens. With `auto` the model chooses; it writes an empty block if it does not think.

    Earlier turns are rendered without a block, so a turn is trained only where it is the last.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self._think, self._end_think = tokenizer.special(THINK), tokenizer.special(END_THINK)
        self._one, self._two = tokenizer.encode("\n"), tokenizer.encode("\n\n")

    def choice(self, thinking: Thinking) -> list[int]:
        """`on` opens the block; `off` writes an empty block."""
        if thinking == "off":
            return [self._think, *self._two, self._end_think, *self._two]
        return [self._think, *self._one] if thinking == "on" else []

    def as_written(self, message: Message) -> bool:
        return False

    def kept(self, message: Message, thinking: Thinking = "auto") -> Message:
        reasoning = (message.reasoning or "").strip("\n")
        content = message.text.lstrip("\n")
        return Message("assistant", content, reasoning if reasoning or thinking == "on" else None)

    def _reply(self, message: Message, thinking: Thinking, *, closed: bool) -> list[int]:
        encode, kept = self.tokenizer.encode, self.kept(message, thinking)
        if thinking == "off":
            return [*self.choice("off"), *encode(kept.text)]
        if not closed and message.reasoning is not None and not message.text:
            return [self._think, *self._one, *encode(message.reasoning.lstrip("\n"))]  # still thinking
        after = [self._end_think, *encode("\n\n" + kept.text)]
        if kept.reasoning:
            return [self._think, *self._one, *encode(kept.reasoning + "\n"), *after]
        # Two newlines are one token, unless the prompt has already written the first newline.
        return [self._think, *(self._one * 2 if self.choice(thinking) else self._two), *after]

    def reply_form(self, thinking: Thinking) -> ReplyForm:
        """Read the text before the first `</think>` as reasoning, whether the reply or the prompt opened it, or neither did.

        A reply cut off before `</think>` is all reasoning, with empty content. An empty block counts as no reasoning, unless
        thinking is `on`.
        """
        begins: Begins = "answer" if thinking == "off" else "thought" if self.choice(thinking) else "late"
        empty: Literal["kept", "none"] = "kept" if thinking == "on" else "none"
        return ReplyForm(begins, "\n", Trim("\n"), Trim("\n"), empty=empty)

    def n_thought(self, ids: Sequence[int]) -> int:
        return ids.index(self._end_think) if self._end_think in ids else len(ids)


class SpokenBlock(TurnChat):
    """A thinking block for families that were not trained to think. Its tags are text, unless the tokenizer has tokens for them.

    A reply without thinking is content only. Replies are read as text, so tags count however they were tokenized.

    `auto` and `off` leave the prompt as published; `on` opens the block. Two ambiguous inputs are refused: content that begins
    with `<think>`, and reasoning that contains `</think>`.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        known = {THINK, END_THINK} <= tokenizer.special_names
        self._marks = (tokenizer.special(THINK), tokenizer.special(END_THINK)) if known else None

    def choice(self, thinking: Thinking) -> list[int]:
        """`on` opens the block; `off` changes nothing, since such a family does not think by default."""
        if thinking != "on":
            return []
        return (
            self.tokenizer.encode(THINK + "\n")
            if self._marks is None
            else [self._marks[0], *self.tokenizer.encode("\n")]
        )

    def as_written(self, message: Message) -> bool:
        """Exclude content that begins with `<think>` from training; as the last turn it is refused."""
        return message.reasoning is None and not message.text.lstrip().startswith(THINK)

    def kept(self, message: Message, thinking: Thinking = "auto") -> Message:
        if message.reasoning is None:
            return Message("assistant", message.text)
        reasoning = message.reasoning.strip("\n")
        return Message("assistant", message.text.lstrip("\n"), reasoning if reasoning or thinking == "on" else None)

    def _reply(self, message: Message, thinking: Thinking, *, closed: bool) -> list[int]:
        encode = self.tokenizer.encode
        if message.reasoning is None:
            self._refuse(THINK, message.text.startswith(THINK), "content that begins with")
            return encode(message.text)
        self._refuse(END_THINK, END_THINK in message.reasoning, "reasoning that contains")
        opened = self.choice("on")
        if not closed and not message.text:
            return [*opened, *encode(message.reasoning.lstrip("\n"))]
        before, after = message.reasoning.strip("\n") + "\n", "\n\n" + message.text.lstrip("\n")
        if self._marks is None:
            return [*opened, *encode(before + END_THINK + after)]
        return [*opened, *encode(before), self._marks[1], *encode(after)]

    def _refuse(self, mark: str, found: bool, what: str) -> None:
        if found:
            raise DataError(
                f"chat format '{self.name}' writes {mark} as text, so it cannot write {what} it",
                where="messages",
                remedy="Put the reasoning into the message's `reasoning`, without the tags.",
            )

    @property
    def thinks(self) -> bool:
        return False

    @property
    def spoken(self) -> bool:
        return True

    def reply_form(self, thinking: Thinking) -> ReplyForm:
        """Read a reply that begins with `<think>`, or whose prompt does, as reasoning up to the first `</think>`.

        A reply cut off before `</think>` is all reasoning, with empty content. Any other reply is content. An incomplete tag
        at the end of a reply that was cut off is dropped.
        """
        empty: Literal["kept", "none"] = "kept" if thinking == "on" else "none"
        return ReplyForm("thought" if thinking == "on" else "mark", "\n", Trim("\n"), empty=empty, halves=True)

    def n_thought(self, ids: Sequence[int]) -> int:
        low, high = 0, len(ids)
        while low < high:  # find the shortest prefix whose text contains the tag
            middle = (low + high) // 2
            if END_THINK in self._text(ids[:middle]):
                high = middle
            else:
                low = middle + 1
        return low
