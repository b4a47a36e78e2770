"""DeepSeek's chat formats. V3 does not think, R1 always thinks, and V3.1 decides with the first token of its reply.

    V3    <bos>{system}<｜User｜>{user}<｜Assistant｜>{content}<eos>
    R1    <bos>{system}<｜User｜>{user}<｜Assistant｜><think>\\n{reasoning}\\n</think>\\n\\n{content}<eos>
    V3.1  <bos>{system}<｜User｜>{user}<｜Assistant｜><think>{reasoning}</think>{content}<eos>
          <bos>{system}<｜User｜>{user}<｜Assistant｜></think>{content}<eos>

Sources: the chat templates of DeepSeek-V3, -R1 and -V3.1. As in these templates, a prompt starts with all system messages,
joined by blank lines. The templates of R1's distilled models use only the last system message. The reasoning of earlier turns
is dropped: an earlier reply is rendered as `{content}<eos>`, or in V3.1 as `</think>{content}<eos>`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from rorqual.core.records import Message, Thinking
from rorqual.data.chat.calls import DEEPSEEK, DEEPSEEK_FRAME, FENCED_FRAME, ToolCallSyntax, ToolCallTemplate
from rorqual.data.chat.reply import Begins, ReplyRules
from rorqual.data.chat.thinking_block import SpecialTokenThinking, TextTagThinking
from rorqual.data.chat.turns import BuiltinChatFormat
from rorqual.data.tokenizer import SpecialToken, Tokenizer

MARKS = (SpecialToken.BOS, SpecialToken.EOS, SpecialToken.USER, SpecialToken.ASSISTANT)


class DeepSeekChatBase(BuiltinChatFormat):
    """Base class of the chat formats of DeepSeek-V3, R1 and V3.1."""

    marks: ClassVar[tuple[str, ...]] = MARKS
    ends: ClassVar[tuple[str, ...]] = (SpecialToken.EOS,)
    pads: ClassVar[tuple[str, ...]] = (SpecialToken.PAD, SpecialToken.EOS)
    template_file = "deepseek.jinja"
    results_end: ClassVar[str] = "<｜tool▁outputs▁end｜>"
    """The text at the end of a turn with tool results."""
    bos: int
    call_form: ToolCallSyntax = DEEPSEEK
    call_frame: ToolCallTemplate = FENCED_FRAME

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self.bos = tokenizer.special_id(SpecialToken.BOS)

    def effective_thinking(self, messages: Sequence[Message], thinking: Thinking) -> Thinking:
        """Return `off` after a tool turn, and `thinking` otherwise.

        After a tool turn, the published templates write no assistant header, so the model does not think.
        """
        return "off" if messages and messages[-1].role == "tool" else thinking

    def thinking_mode_of(self, prompt: Sequence[int]) -> Thinking:
        after = self.tokenizer.encode_trusted(self.results_end)
        return "off" if list(prompt[-len(after) :]) == after else super().thinking_mode_of(prompt)


class DeepSeekV3Chat(DeepSeekChatBase, TextTagThinking):
    """The format of DeepSeek-V3, which has no thinking tokens."""

    name = "deepseek-v3"
    settings: ClassVar[Mapping[str, Any]] = {
        "answer_begins": "",
        "fenced": True,
        "results_gap": "\n",
        "openings": {"auto": "", "on": "<think>\n", "off": ""},
    }


class DeepSeekR1Chat(DeepSeekChatBase, SpecialTokenThinking):
    """The format of DeepSeek-R1 and its distilled models. The prompt opens the thinking block, so `auto` equals `on`.

    `off` adds an empty thinking block to the prompt, which is the method "NoThinking" of arXiv 2504.09858. R1's published
    template has no mode without thinking.
    """

    name = "deepseek-r1"
    marks: ClassVar[tuple[str, ...]] = (*MARKS, SpecialToken.THINK, SpecialToken.END_THINK)
    settings: ClassVar[Mapping[str, Any]] = {
        "answer_begins": "",
        "fenced": True,
        "results_gap": "",
        "openings": {"auto": "<think>\n", "on": "<think>\n", "off": "<think>\n\n</think>\n\n"},
    }


class DeepSeekChat(DeepSeekChatBase):
    """The chat format of DeepSeek-V3.1. This format strips no white space, so `parse` restores a rendered message exactly."""

    name = "deepseek"
    results_end: ClassVar[str] = "<｜tool▁output▁end｜>"
    call_frame = DEEPSEEK_FRAME
    settings: ClassVar[Mapping[str, Any]] = {
        "answer_begins": "</think>",
        "fenced": False,
        "results_gap": "",
        "openings": {"auto": "", "on": "<think>", "off": "</think>"},
    }
    marks: ClassVar[tuple[str, ...]] = (*MARKS, SpecialToken.THINK, SpecialToken.END_THINK)

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self._think, self._end_think = (
            tokenizer.special_id(SpecialToken.THINK),
            tokenizer.special_id(SpecialToken.END_THINK),
        )

    def normalized(self, message: Message, thinking: Thinking = "auto") -> Message:
        return message

    def _reply_ids(self, message: Message, thinking: Thinking, *, closed: bool) -> list[int]:
        encode = self.tokenizer.encode
        reasoning = [] if message.reasoning is None else [self._think, *encode(message.reasoning)]
        if not closed and message.reasoning is not None and not message.text:
            return reasoning  # no `</think>` yet
        return [*reasoning, self._end_think, *encode(message.text)]

    def reply_rules(self, thinking: Thinking) -> ReplyRules:
        """Return rules that strip no white space. The rules split a reply into reasoning and content as follows:

        - If the reply begins with `<think>`, or `thinking` is `on`, the text up to `</think>` is reasoning and the text after
          it is content. If the thinking is not closed by `</think>`, the whole reply is reasoning and the content is empty.
        - If the reply begins with `</think>`, the text after the tag is content and the reasoning is None.
        - If `thinking` is `off`, the whole reply is content and the reasoning is None.
        - In any other reply, the text before `</think>` is reasoning and the text after the tag is content. A reply without a
          thinking tag is content.
        """
        begins: dict[Thinking, Begins] = {"auto": "late", "on": "thought", "off": "answer"}
        return ReplyRules(begins[thinking], empty="marked")
