r"""The chat formats of Llama 3. Each turn begins with a header.

    <bos><|start_header_id|>user<|end_header_id|>\n\n{user}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n{content}<|eot_id|>

Since Llama 3.1, the system turn states the knowledge cutoff and the date.

Sources: the chat templates of Llama-3 and Llama-3.1. As in the published templates, white space around the content of
each message is stripped. The parser also strips white space around the content of replies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from rorqual.core.records import Message, Thinking
from rorqual.data.chat.calls import LLAMA, LLAMA_FRAME, WHITE
from rorqual.data.chat.reply import ReplyRules, StripChars
from rorqual.data.chat.thinking_block import TextTagThinking
from rorqual.data.tokenizer import Tokenizer

BOS, START_HEADER, END_HEADER, END = "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"


class Llama3Chat(TextTagThinking):
    """The format of Llama 3, which has no default system turn."""

    name = "llama3"
    marks: ClassVar[tuple[str, ...]] = (BOS, START_HEADER, END_HEADER, END)
    ends: ClassVar[tuple[str, ...]] = (END, "<|end_of_text|>", "<|eom_id|>")
    pads: ClassVar[tuple[str, ...]] = ("<|finetune_right_pad_id|>", END)
    template_file = "llama3.jinja"
    settings: ClassVar[Mapping[str, Any]] = {"dates": ""}
    bos: int

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self.bos = tokenizer.special_id(BOS)

    def _reply_ids(self, message: Message, thinking: Thinking, *, closed: bool) -> list[int]:
        content = message.text.strip() if closed else message.text.lstrip()
        return super()._reply_ids(replace(message, content=content), thinking, closed=closed)

    def normalized(self, message: Message, thinking: Thinking = "auto") -> Message:
        return super().normalized(replace(message, content=message.text.strip()), thinking)

    def reply_rules(self, thinking: Thinking) -> ReplyRules:
        trim = StripChars(WHITE, WHITE)
        return replace(super().reply_rules(thinking), answer=trim, plain=trim)


class Llama31Chat(Llama3Chat):
    """The format of Llama 3.1, 3.2 and 3.3. Every conversation begins with a system turn that states the date.

    The date is the fixed date of the published template, so that prompts do not depend on the clock.
    """

    name = "llama3.1"
    settings: ClassVar[Mapping[str, Any]] = {
        "dates": "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
    }
    call_form = LLAMA
    call_frame = LLAMA_FRAME
