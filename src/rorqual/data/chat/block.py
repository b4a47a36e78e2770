r"""Replies that think in a block, `<think>\n{reasoning}\n</think>\n\n{content}`, as Qwen3 and DeepSeek-R1 write them.

Two readings of it: by the ids of the marks, where the family has tokens for them, and by their text, where it has none
(a model of such a family can be taught to think all the same). Newlines around reasoning and before the content belong to the
block: they are stripped when a reply is written and when it is read, as the published templates do.
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
    """The block by ids. `auto` leaves the choice to the model, which writes an empty block where it does not think.

    An earlier turn stands without any block, so it is trained only where it is last.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self._think, self._end_think = tokenizer.special(THINK), tokenizer.special(END_THINK)
        self._one, self._two = tokenizer.encode("\n"), tokenizer.encode("\n\n")

    def choice(self, thinking: Thinking) -> list[int]:
        """`on` opens the block, `off` gives an empty one."""
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
        # One token for two newlines, unless the prompt has written the first of them already.
        return [self._think, *(self._one * 2 if self.choice(thinking) else self._two), *after]

    def reply_form(self, thinking: Thinking) -> ReplyForm:
        """What stands before the first `</think>` is reasoning, if a `<think>` opens the reply or the prompt opened it; also where
        neither did, and the model closes what it never opened. Cut off before `</think>`, all is reasoning and the content is
        empty. An empty block is no reasoning, unless thinking is `on`.
        """
        begins: Begins = "answer" if thinking == "off" else "thought" if self.choice(thinking) else "late"
        empty: Literal["kept", "none"] = "kept" if thinking == "on" else "none"
        return ReplyForm(begins, "\n", Trim("\n"), Trim("\n"), empty=empty)

    def n_thought(self, ids: Sequence[int]) -> int:
        return ids.index(self._end_think) if self._end_think in ids else len(ids)


class SpokenBlock(TurnChat):
    """The block for families that do not think: its marks are plain text, unless the tokenizer happens to have tokens for them.

    A reply that does not think is the content alone. Replies are read as text, so that it does not matter how a mark was spelt.

    `auto` and `off` leave the prompt as published; `on` opens the block. Refused, because they could not be told apart when
    read: a content that begins with `<think>` and reasoning that holds `</think>`.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        known = {THINK, END_THINK} <= tokenizer.special_names
        self._marks = (tokenizer.special(THINK), tokenizer.special(END_THINK)) if known else None

    def choice(self, thinking: Thinking) -> list[int]:
        """`on` opens the block; `off` is what such a family does anyway."""
        if thinking != "on":
            return []
        return (
            self.tokenizer.encode(THINK + "\n")
            if self._marks is None
            else [self._marks[0], *self.tokenizer.encode("\n")]
        )

    def as_written(self, message: Message) -> bool:
        """A content that begins like a thought is trained nowhere: where it is last, it is refused."""
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
        self._refuse(END_THINK, END_THINK in message.reasoning, "reasoning that holds")
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
                f"chat format '{self.name}' writes {mark} as text, and cannot write {what} it",
                where="messages",
                remedy="Put what was thought into the message's reasoning, without the marks.",
            )

    @property
    def thinks(self) -> bool:
        return False

    @property
    def spoken(self) -> bool:
        return True

    def reply_form(self, thinking: Thinking) -> ReplyForm:
        """A reply that begins with `<think>` (or that the prompt opened) is reasoning up to the first `</think>`; cut off before
        it, all is reasoning and the content is empty. Any other reply is content. The beginning of a mark at the very end of
        a reply that was cut off is left out: it is neither.
        """
        empty: Literal["kept", "none"] = "kept" if thinking == "on" else "none"
        return ReplyForm("thought" if thinking == "on" else "mark", "\n", Trim("\n"), empty=empty, halves=True)

    def n_thought(self, ids: Sequence[int]) -> int:
        low, high = 0, len(ids)
        while low < high:  # the first length whose text holds the mark
            middle = (low + high) // 2
            if END_THINK in self._text(ids[:middle]):
                high = middle
            else:
                low = middle + 1
        return low
