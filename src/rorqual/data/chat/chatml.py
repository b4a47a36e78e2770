r"""ChatML, the chat format of Qwen, SmolLM2 and many other models. Only the format `qwen3` has thinking tokens.

    <|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n{content}<|im_end|>

Sources: the chat templates of Qwen2, Qwen2.5, Qwen3 and SmolLM2. The templates differ in the default system
turn that they add. The newline after a turn is rendered as part of the next turn, because a model stops before this newline.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rorqual.core.records import Message, Tool
from rorqual.data.chat.block import MarkedBlock, SpokenBlock
from rorqual.data.chat.calls import HERMES, HERMES_FRAME
from rorqual.data.chat.special_tokens import CHARS, END_THINK, THINK
from rorqual.data.chat.tools import schemas
from rorqual.data.chat.turns import TurnChat
from rorqual.data.tokenizer import Tokenizer

START, END, TEXT_END = "<|im_start|>", "<|im_end|>", "<|endoftext|>"

PUBLISHED = """{%- if messages[0].role != 'system' -%}{{- 'FIRST' -}}{%- endif -%}
{%- for message in messages -%}
{%- if message.role not in ['system', 'user', 'assistant'] -%}{{- raise_exception('no role ' + message.role) -}}{%- endif -%}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}CHOICE{%- endif -%}
"""

CALL, END_CALL = CHARS["<tool_call>"], CHARS["</tool_call>"]
RESPONSE, END_RESPONSE = CHARS["<tool_response>"], CHARS["</tool_response>"]
TOOLS = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>"""
TOOLS_END = f"""</tools>

For each function call, return a json object with function name and arguments within {CALL}{END_CALL} XML tags:
{CALL}
{{"name": <function-name>, "arguments": <args-json-object>}}
{END_CALL}"""
"""End of the tool instructions in the templates of Qwen2.5 and Qwen3. These models were trained with this text."""


class ImTurns(TurnChat):
    """Base class of formats with turns between `<|im_start|>` and `<|im_end|>`.

    A conversation without a system turn gets one with the content `default_system`, unless `default_system` is empty.
    """

    marks: ClassVar[tuple[str, ...]] = (START, END)
    ends: ClassVar[tuple[str, ...]] = (END, TEXT_END)
    pads: ClassVar[tuple[str, ...]] = (TEXT_END, END)
    default_system: ClassVar[str] = ""
    choice: ClassVar[str]
    """The template code at the end of the prompt that opens or closes thinking."""
    call_form = HERMES
    call_frame = HERMES_FRAME

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self._start, self._newline = tokenizer.special(START), tokenizer.encode("\n")
        first = f"{START}system\\n{self.default_system}{END}\\n" if self.default_system else ""
        self.template = PUBLISHED.replace("FIRST", first).replace("CHOICE", self.choice)

    def _opening(self, messages: Sequence[Message]) -> list[int]:
        if not self.default_system or messages[0].role == "system":
            return []
        return self._turn(Message("system", self.default_system), 0)

    def _turn(self, message: Message, number: int) -> list[int]:
        text = self.tokenizer.encode(f"{message.role}\n{message.text}")
        return [self._start, *text, self.stop_ids[0]]

    def _header(self) -> list[int]:
        return [self._start, *self.tokenizer.encode("assistant\n")]

    def _gap(self) -> list[int]:
        return self._newline

    def _opening_with_tools(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[int]:
        first = messages[0]
        system = first.text if first.role == "system" else self.default_system
        if not tools:
            return self._opening(messages)
        text = "\n".join([TOOLS, *schemas(tools), TOOLS_END])
        if system or first.role == "system":
            text = f"{system}\n\n{text}"
        return [self._start, *self._special_text.ids(f"system\n{text}"), self.stop_ids[0]]

    def _turn_with_tools(self, message: Message, number: int, tools: Sequence[Tool], *, first: bool) -> list[int]:
        return [] if tools and not number and message.role == "system" else self._turn(message, number)

    def _earlier_assistant_turn(self, message: Message, before: str, *, current: bool) -> list[int]:
        calls = [HERMES_FRAME.call(call.name, call.arguments) for call in message.tool_calls]
        reasoning = self._earlier_reasoning(message, current)
        content = message.text.lstrip("\n") if reasoning else message.text
        answer = "\n".join([*([content] if content or not calls else []), *calls])
        return [*self._header(), *self._special_text.ids(reasoning + answer), self.stop_ids[0]]

    def _earlier_reasoning(self, message: Message, current: bool) -> str:
        """Return the reasoning of an earlier turn as marked text, or "" if the format drops it."""
        return ""

    def _tool_results(self, turn: Sequence[Message]) -> list[int]:
        results = "".join(f"\n{RESPONSE}\n{message.text}\n{END_RESPONSE}" for message in turn)
        return [self._start, *self._special_text.ids(f"user{results}"), self.stop_ids[0]]


class PlainChatML(ImTurns, SpokenBlock):
    """ChatML without a default system turn."""

    name = "chatml-plain"
    choice = "{%- if enable_thinking is true -%}{{- '<think>\\n' -}}{%- endif -%}"


class ChatML(PlainChatML):
    """The format of Qwen2.5's instruct models."""

    name = "chatml"
    default_system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."


class Qwen2Chat(PlainChatML):
    """The format of Qwen2 and of Qwen2.5's base models."""

    name = "qwen2"
    default_system = "You are a helpful assistant."


class SmolLM2Chat(PlainChatML):
    """The format of SmolLM2, which pads with `<|im_end|>`."""

    name = "smollm2"
    default_system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    pads: ClassVar[tuple[str, ...]] = (END,)


class Qwen3Chat(ImTurns, MarkedBlock):
    """The format of Qwen3. With `auto` the model itself writes `<think>`.

    `off` adds an empty thinking block to the prompt, as `enable_thinking=False` does in the published template. `on` adds an
    open thinking block, as the template of Qwen3-Thinking-2507 does; the template of the first Qwen3 models has no such mode.
    """

    name = "qwen3"
    marks: ClassVar[tuple[str, ...]] = (START, END, "<think>", "</think>")
    choice = (
        "{%- if enable_thinking is false -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}"
        "{%- if enable_thinking is true -%}{{- '<think>\\n' -}}{%- endif -%}"
    )

    def _earlier_reasoning(self, message: Message, current: bool) -> str:
        """Return the reasoning if the turn follows the last user turn, else "". The model thus sees its reasoning after a tool call."""
        if not current or not message.reasoning:
            return ""
        return THINK + "\n" + message.reasoning.strip("\n") + "\n" + END_THINK + "\n\n"
