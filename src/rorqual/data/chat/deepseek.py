"""DeepSeek's chat formats. V3 does not think, R1 always thinks, and V3.1 decides with the first token of its reply.

    V3    <bos>{system}<｜User｜>{user}<｜Assistant｜>{content}<eos>
    R1    <bos>{system}<｜User｜>{user}<｜Assistant｜><think>\\n{reasoning}\\n</think>\\n\\n{content}<eos>
    V3.1  <bos>{system}<｜User｜>{user}<｜Assistant｜><think>{reasoning}</think>{content}<eos>
          <bos>{system}<｜User｜>{user}<｜Assistant｜></think>{content}<eos>

Sources: the chat templates of DeepSeek-V3, -R1 and -V3.1. As in these templates, a prompt starts with all system messages,
joined by blank lines. (The templates of R1's distilled models use only the last system message.) The reasoning of earlier turns
is dropped: an earlier reply is rendered as `{content}<eos>`, or in V3.1 as `</think>{content}<eos>`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rorqual.core.records import Message, Thinking, Tool
from rorqual.data.chat.block import MarkedBlock, SpokenBlock
from rorqual.data.chat.calls import DEEPSEEK, DEEPSEEK_FRAME, FENCED_FRAME, CallForm, CallFrame
from rorqual.data.chat.reply import Begins, ReplyForm
from rorqual.data.chat.special_tokens import CHARS
from rorqual.data.chat.tools import spelt
from rorqual.data.chat.turns import TurnChat
from rorqual.data.tokenizer import Special, Tokenizer

MARKS = (Special.BOS, Special.EOS, Special.USER, Special.ASSISTANT)

PUBLISHED = """{%- set system = messages | selectattr('role', 'equalto', 'system') | map(attribute='content') | join('\\n\\n') -%}
{{- '<｜begin▁of▁sentence｜>' + system -}}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{{- '<｜User｜>' + message.content -}}
{%- elif message.role == 'assistant' -%}{{- '<｜Assistant｜>PAST' + message.content + '<｜end▁of▁sentence｜>' -}}
{%- elif message.role != 'system' -%}{{- raise_exception('no role ' + message.role) -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<｜Assistant｜>' -}}CHOICE{%- endif -%}
"""

OUTPUT, OUTPUT_END = CHARS["<｜tool▁output▁begin｜>"], CHARS["<｜tool▁output▁end｜>"]
TOOLS = """## Tools
You have access to the following tools:

{listed}IMPORTANT: ALWAYS adhere to this exact format for tool use:
{call}

Where:

- `tool_call_name` must be an exact match to one of the available tools
- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema
- For multiple tool calls, chain them directly without separators or spaces"""


def written(past: str, choice: str) -> str:
    """Return the jinja2 template of a DeepSeek format.

    `past` is the text at the start of earlier replies, and `choice` is the template code at the end of the prompt.
    """
    return PUBLISHED.replace("PAST", past).replace("CHOICE", choice)


class DeepSeekTurns(TurnChat):
    """Base class of DeepSeek's three formats."""

    marks: ClassVar[tuple[str, ...]] = MARKS
    ends: ClassVar[tuple[str, ...]] = (Special.EOS,)
    pads: ClassVar[tuple[str, ...]] = (Special.PAD, Special.EOS)
    bos: int
    call_form: CallForm = DEEPSEEK
    call_frame: CallFrame = FENCED_FRAME

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self.bos, self._user, self._assistant = (
            tokenizer.special(mark) for mark in (Special.BOS, Special.USER, Special.ASSISTANT)
        )

    def _opening(self, messages: Sequence[Message]) -> list[int]:
        system = "\n\n".join(message.text for message in messages if message.role == "system")
        return [self.bos, *self.tokenizer.encode(system)]

    def _turn(self, message: Message, number: int) -> list[int]:
        return [] if message.role == "system" else [self._user, *self.tokenizer.encode(message.text)]

    def _header(self) -> list[int]:
        return [self._assistant]

    # ---- tools

    outputs_gap: ClassVar[str] = ""
    outputs: ClassVar[tuple[str, str]] = (CHARS["<｜tool▁outputs▁begin｜>"], CHARS["<｜tool▁outputs▁end｜>"])
    answer_begins: ClassVar[str] = ""
    """Marked text (see `special_tokens.py`) at the start of an earlier assistant turn that follows a user turn."""

    def mode(self, messages: Sequence[Message], thinking: Thinking) -> Thinking:
        """Return `off` after a tool turn, and `thinking` otherwise.

        After a tool turn, the published templates write no assistant header, so the model does not think.
        """
        return "off" if messages and messages[-1].role == "tool" else thinking

    def chosen(self, prompt: Sequence[int]) -> Thinking:
        after = self._special_text.ids(self._outputs_end())
        return "off" if list(prompt[-len(after) :]) == after else super().chosen(prompt)

    def _outputs_end(self) -> str:
        return self.outputs[1] or OUTPUT_END

    def _opening_with_tools(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[int]:
        system = [message.text for message in messages if message.role == "system"]
        return [
            self.bos,
            *self._special_text.ids("\n\n".join([*system, *([self._tools_text(tools)] if tools else [])])),
        ]

    def _tools_text(self, tools: Sequence[Tool]) -> str:
        """Return the tool instructions of V3.1's model card, because the published templates contain none."""
        listed = "".join(
            f"### {tool.name}\nDescription: {tool.description}\n\nParameters: {spelt(dict(tool.parameters))}\n\n"
            for tool in tools
        )
        frame = self.call_frame
        call = frame.call("tool_call_name", "tool_call_arguments")
        return TOOLS.format(listed=listed, call=f"{frame.begin}{call}{{additional_tool_calls}}{frame.end}")

    def _earlier_assistant_turn(self, message: Message, before: str, *, current: bool) -> list[int]:
        opening = [] if before == "tool" else [*self._header(), *self._special_text.ids(self.answer_begins)]
        return [*opening, *self._special_text.ids(self._spoken(message)), self.stop_ids[0]]

    def _spoken(self, message: Message) -> str:
        """Return the content and the calls of an assistant turn as marked text."""
        if not message.tool_calls:
            return message.text
        frame = self.call_frame
        calls = (frame.call(call.name, call.arguments) for call in message.tool_calls)
        return message.text + frame.begin + frame.gap.join(calls) + frame.end

    def _tool_results(self, turn: Sequence[Message]) -> list[int]:
        results = self.outputs_gap.join(f"{OUTPUT}{message.text}{OUTPUT_END}" for message in turn)
        return self._special_text.ids(self.outputs[0] + results + self.outputs[1])

    def _reply_opening(self, before: str, thinking: Thinking) -> list[int]:
        return [] if before == "tool" else super()._reply_opening(before, thinking)


class DeepSeekV3Chat(DeepSeekTurns, SpokenBlock):
    """The format of DeepSeek-V3, which has no thinking tokens."""

    name = "deepseek-v3"
    outputs_gap: ClassVar[str] = "\n"
    template = written("", "{%- if enable_thinking is true -%}{{- '<think>\\n' -}}{%- endif -%}")


class DeepSeekR1Chat(DeepSeekTurns, MarkedBlock):
    """The format of DeepSeek-R1 and its distilled models. The prompt opens the thinking block, so `auto` equals `on`.

    `off` adds an empty thinking block to the prompt, which is the method "NoThinking" of arXiv 2504.09858. The published
    template has no mode without thinking.
    """

    name = "deepseek-r1"
    marks: ClassVar[tuple[str, ...]] = (*MARKS, Special.THINK, Special.END_THINK)
    template = written(
        "",
        "{%- if enable_thinking is false -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- else -%}{{- '<think>\\n' -}}{%- endif -%}",
    )

    def thinking_suffix(self, thinking: Thinking) -> list[int]:
        return super().thinking_suffix("on" if thinking == "auto" else thinking)


class DeepSeekChat(DeepSeekTurns):
    """The format of DeepSeek-V3.1. The format strips no white space, so `parse` restores a rendered message exactly."""

    name = "deepseek"
    outputs: ClassVar[tuple[str, str]] = ("", "")
    answer_begins: ClassVar[str] = CHARS["</think>"]
    call_frame = DEEPSEEK_FRAME
    template: str | None = written(
        "</think>",
        "{%- if enable_thinking is defined or thinking is defined -%}"
        "{{- '<think>' if enable_thinking is true or thinking is true else '</think>' -}}{%- endif -%}",
    )
    marks: ClassVar[tuple[str, ...]] = (*MARKS, Special.THINK, Special.END_THINK)

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self._think, self._end_think = tokenizer.special(Special.THINK), tokenizer.special(Special.END_THINK)

    def thinking_suffix(self, thinking: Thinking) -> list[int]:
        """Return `<think>` for `on`, `</think>` for `off`, and no ids for `auto`, where the model chooses."""
        return {"auto": [], "on": [self._think], "off": [self._end_think]}[thinking]

    def normalized(self, message: Message, thinking: Thinking = "auto") -> Message:
        return message

    def _earlier_reply(self, message: Message) -> list[int]:
        return [self._end_think, *self.tokenizer.encode(message.text)]

    def _reply(self, message: Message, thinking: Thinking, *, closed: bool) -> list[int]:
        encode = self.tokenizer.encode
        reasoning = [] if message.reasoning is None else [self._think, *encode(message.reasoning)]
        if not closed and message.reasoning is not None and not message.text:
            return reasoning  # no `</think>` yet
        return [*reasoning, self._end_think, *encode(message.text)]

    def reply_form(self, thinking: Thinking) -> ReplyForm:
        """Return rules that strip no white space. The rules split a reply as follows:

        - If the reply begins with `<think>`, or `thinking` is `on`, the text up to `</think>` is reasoning and the text after it
          is content. If the thinking is not closed by `</think>`, the whole reply is reasoning and the content is empty.
        - If the reply begins with `</think>`, the text after the tag is content and the reasoning is None.
        - If `thinking` is `off`, the whole reply is content and the reasoning is None.
        - In any other reply, the text before `</think>` is reasoning and the text after the tag is content. A reply without a
          thinking tag is content.
        """
        begins: dict[Thinking, Begins] = {"auto": "late", "on": "thought", "off": "answer"}
        return ReplyForm(begins[thinking], empty="marked")
