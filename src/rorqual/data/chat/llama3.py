r"""The chat formats of Llama 3. Each turn begins with a header.

    <bos><|start_header_id|>user<|end_header_id|>\n\n{user}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n{content}<|eot_id|>

Since Llama 3.1, the system turn states the knowledge cutoff and the date.

Sources: the chat templates of Llama-3 and Llama-3.1. As in the published templates, white space around the content of
each message is stripped. The parser strips the same white space from replies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from rorqual.core.records import Message, Thinking, Tool
from rorqual.data.chat.block import SpokenBlock
from rorqual.data.chat.calls import LLAMA, LLAMA_FRAME, WHITE
from rorqual.data.chat.reply import ReplyForm, Trim
from rorqual.data.chat.tools import schema, spelt
from rorqual.data.tokenizer import Tokenizer

BOS, START_HEADER, END_HEADER, END = "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
KNOWLEDGE = "December 2023"
TOOLS = (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that best answers the given "
    'prompt.\n\nRespond in the format {"name": function name, "parameters": dictionary of argument name and its value}.'
    "Do not use variables.\n\n"
)

PUBLISHED = """{{- '<|begin_of_text|>' -}}OPENING
{%- for message in messages -%}
{%- if message.role not in ['system', 'user', 'assistant'] -%}{{- raise_exception('no role ' + message.role) -}}{%- endif -%}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' -}}
{{- DATES + message.content | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- if enable_thinking is true -%}{{- '<think>\\n' -}}{%- endif -%}{%- endif -%}
"""


class Llama3Chat(SpokenBlock):
    """The format of Llama 3, which has no default system turn."""

    name = "llama3"
    marks: ClassVar[tuple[str, ...]] = (BOS, START_HEADER, END_HEADER, END)
    ends: ClassVar[tuple[str, ...]] = (END, "<|end_of_text|>", "<|eom_id|>")
    pads: ClassVar[tuple[str, ...]] = ("<|finetune_right_pad_id|>", END)
    template: str | None = PUBLISHED.replace("OPENING", "").replace("DATES + ", "")
    bos: int

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self.bos, self._open, self._close = (tokenizer.special(mark) for mark in (BOS, START_HEADER, END_HEADER))

    def _opening(self, messages: Sequence[Message]) -> list[int]:
        return [self.bos]

    def _turn(self, message: Message, number: int) -> list[int]:
        return self._encode_turn(message.role, message.text.strip())

    def _encode_turn(self, role: str, content: str) -> list[int]:
        encode = self.tokenizer.encode
        return [self._open, *encode(role), self._close, *encode("\n\n" + content), self.stop_ids[0]]

    def _header(self) -> list[int]:
        encode = self.tokenizer.encode
        return [self._open, *encode("assistant"), self._close, *encode("\n\n")]

    def _earlier_reply(self, message: Message) -> list[int]:
        return self.tokenizer.encode(message.text.strip())

    def _reply(self, message: Message, thinking: Thinking, *, closed: bool) -> list[int]:
        content = message.text.strip() if closed else message.text.lstrip()
        return super()._reply(replace(message, content=content), thinking, closed=closed)

    def normalized(self, message: Message, thinking: Thinking = "auto") -> Message:
        return super().normalized(replace(message, content=message.text.strip()), thinking)

    def reply_form(self, thinking: Thinking) -> ReplyForm:
        trim = Trim(WHITE, WHITE)
        return replace(super().reply_form(thinking), answer=trim, plain=trim)


class Llama31Chat(Llama3Chat):
    """The format of Llama 3.1, 3.2 and 3.3. Every conversation begins with a system turn that states the date.

    `today` defaults to the fixed date in the published template, so that prompts do not depend on the clock.
    """

    name = "llama3.1"
    call_form = LLAMA
    call_frame = LLAMA_FRAME

    def __init__(self, tokenizer: Tokenizer, *, today: str = "26 Jul 2024") -> None:
        super().__init__(tokenizer)
        self.today = today
        dates = self._dates().replace("\n", "\\n")
        opening = (
            "{%- if messages[0].role != 'system' -%}{{- '<|start_header_id|>system<|end_header_id|>\\n\\n"
            + dates
            + "<|eot_id|>' -}}{%- endif -%}"
        )
        first = f"('{dates}' if loop.first and message.role == 'system' else '') + "
        self.template = PUBLISHED.replace("OPENING", opening).replace("DATES + ", first)

    def _opening_with_tools(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[int]:
        first = messages[0]
        system = first.text.strip() if first.role == "system" else ""
        environment = "Environment: ipython\n" if tools else ""
        return [self.bos, *self._encode_turn("system", environment + self._dates() + system)]

    def _turn_with_tools(self, message: Message, number: int, tools: Sequence[Tool], *, first: bool) -> list[int]:
        """Return the token ids of a user turn. The first user turn also contains the tool definitions."""
        if tools and first:
            listed = "".join(spelt(schema(tool), indent=4) + "\n\n" for tool in tools)
            return self._encode_turn(message.role, TOOLS + listed + message.text.strip())
        return self._turn(message, number)

    def _earlier_assistant_turn(self, message: Message, before: str, *, current: bool) -> list[int]:
        calls = (LLAMA_FRAME.call(call.name, call.arguments) for call in message.tool_calls)
        parts = [message.text.strip(), LLAMA_FRAME.gap.join(calls)]
        return self._encode_turn("assistant", "\n\n".join(part for part in parts if part))

    def _tool_results(self, turn: Sequence[Message]) -> list[int]:
        return [id_ for message in turn for id_ in self._encode_turn("ipython", spelt(message.text))]

    def _dates(self) -> str:
        return f"Cutting Knowledge Date: {KNOWLEDGE}\nToday Date: {self.today}\n\n"

    def _opening(self, messages: Sequence[Message]) -> list[int]:
        first = messages[0]
        system = first.text.strip() if first.role == "system" else ""
        return [self.bos, *self._encode_turn("system", self._dates() + system)]

    def _turn(self, message: Message, number: int) -> list[int]:
        return [] if number == 0 and message.role == "system" else super()._turn(message, number)
