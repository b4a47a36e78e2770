r"""Replies with a thinking block, `<think>\n{reasoning}\n</think>\n\n{content}`, as in Qwen3 and DeepSeek-R1.

`SpecialTokenThinking` requires that the thinking tags are special tokens. `TextTagThinking` also accepts tags that are spelled with
ordinary tokens, so that a model without thinking tokens can be taught to think. As in the published templates, rendering and
parsing strip the newlines around the reasoning and before the content.
"""

from __future__ import annotations

from typing import Literal

from rorqual.core.errors import DataError
from rorqual.core.records import Message, Thinking
from rorqual.data.chat.reply import Begins, ReplyRules, StripChars
from rorqual.data.chat.turns import BuiltinChatFormat
from rorqual.data.tokenizer import Tokenizer

THINK, END_THINK = "<think>", "</think>"


class SpecialTokenThinking(BuiltinChatFormat):
    """A thinking block whose tags are special tokens. In mode `auto`, a model that does not think writes an empty block.

    Earlier turns are rendered without their thinking block, so only the last turn of a rendering may be in the loss. For
    training, `training_renderings` makes one rendering per assistant turn. This rendering ends with the assistant turn.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self._think, self._end_think = tokenizer.special_id(THINK), tokenizer.special_id(END_THINK)
        self._newline, self._blank_line = tokenizer.encode("\n"), tokenizer.encode("\n\n")

    def renders_as_written(self, message: Message) -> bool:
        return False

    def normalized(self, message: Message, thinking: Thinking = "auto") -> Message:
        reasoning = (message.reasoning or "").strip("\n")
        content = message.text.lstrip("\n")
        return Message("assistant", content, reasoning if reasoning or thinking == "on" else None)

    def _reply_ids(self, message: Message, thinking: Thinking, *, closed: bool) -> list[int]:
        encode, kept = self.tokenizer.encode, self.normalized(message, thinking)
        if thinking == "off":
            return [*self.thinking_suffix("off"), *encode(kept.text)]
        if not closed and message.reasoning is not None and not message.text:
            return [self._think, *self._newline, *encode(message.reasoning.lstrip("\n"))]  # no `</think>` yet
        after = [self._end_think, *encode("\n\n" + kept.text)]
        if kept.reasoning:
            return [self._think, *self._newline, *encode(kept.reasoning + "\n"), *after]
        # "\n\n" is one token, but if the prompt ends with the first newline, the reply must begin with a single "\n".
        return [self._think, *(self._newline * 2 if self.thinking_suffix(thinking) else self._blank_line), *after]

    def reply_rules(self, thinking: Thinking) -> ReplyRules:
        """Return rules that parse the text before the first `</think>` as reasoning, even if `<think>` is missing.

        If the prompt or the reply opens a block that is not closed, the whole reply is reasoning and the content is empty. An
        empty thinking block counts as no reasoning (None), unless `thinking` is `on`. If `thinking` is `off`, the whole reply
        is content.
        """
        begins: Begins = "answer" if thinking == "off" else "thought" if self.thinking_suffix(thinking) else "late"
        empty: Literal["kept", "none"] = "kept" if thinking == "on" else "none"
        return ReplyRules(begins, "\n", StripChars("\n"), StripChars("\n"), empty=empty)


class TextTagThinking(BuiltinChatFormat):
    """A thinking block for families that were not trained to think.

    The thinking tags are written as special tokens if the tokenizer has these special tokens, else as text. Parsing recognises
    thinking tags in the text of the reply, however the tags are tokenized. A reply without thinking has no block.

    In the modes `auto` and `off`, the prompt equals the published template's prompt. Mode `on` adds an open thinking block. Two
    ambiguous inputs raise an error: content that begins with `<think>`, and reasoning that contains `</think>`.
    """

    thinks = False
    tags_as_text = True

    def renders_as_written(self, message: Message) -> bool:
        """Return whether an earlier turn may be in the loss.

        An earlier turn with reasoning, or with content that begins with `<think>`, is never in the loss. In the last turn,
        content that begins with `<think>` raises an error.
        """
        return message.reasoning is None and not message.text.lstrip().startswith(THINK)

    def normalized(self, message: Message, thinking: Thinking = "auto") -> Message:
        if message.reasoning is None:
            return Message("assistant", message.text)
        reasoning = message.reasoning.strip("\n")
        return Message("assistant", message.text.lstrip("\n"), reasoning if reasoning or thinking == "on" else None)

    def _reply_ids(self, message: Message, thinking: Thinking, *, closed: bool) -> list[int]:
        encode = self.tokenizer.encode
        if message.reasoning is None:
            self._refuse_ambiguous_tag(THINK, message.text.startswith(THINK), "content that begins with")
            return encode(message.text)
        self._refuse_ambiguous_tag(END_THINK, END_THINK in message.reasoning, "reasoning that contains")
        opened = self.thinking_suffix("on")
        if not closed and not message.text:
            return [*opened, *encode(message.reasoning.lstrip("\n"))]
        before, after = message.reasoning.strip("\n") + "\n", "\n\n" + message.text.lstrip("\n")
        if self.think_tag_ids is None:
            return [*opened, *encode(before + END_THINK + after)]
        return [*opened, *encode(before), self.think_tag_ids[1], *encode(after)]

    def _refuse_ambiguous_tag(self, mark: str, ambiguous: bool, what: str) -> None:
        if ambiguous:
            raise DataError(
                f"{what} {mark} is ambiguous, because chat format '{self.name}' writes {mark} as text",
                where="messages",
                remedy="Put the reasoning into the key `reasoning` of the message, without the tags.",
            )

    def reply_rules(self, thinking: Thinking) -> ReplyRules:
        """Return rules that parse reasoning up to the first `</think>` if the reply or the prompt opened a block.

        If an open thinking block is not closed, the whole reply is reasoning and the content is empty. A reply without
        `<think>` is content. An incomplete tag at the end of a truncated reply is dropped.
        """
        empty: Literal["kept", "none"] = "kept" if thinking == "on" else "none"
        return ReplyRules("thought" if thinking == "on" else "mark", "\n", StripChars("\n"), empty=empty, halves=True)
