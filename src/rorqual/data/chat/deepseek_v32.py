"""The chat format of DeepSeek-V3.2. Turns and thinking have V3.1's format, and tool calls are written in DSML (`dsml.py`).

    <bos>{system}\\n\\n## Tools ...<｜User｜>{user}<｜Assistant｜><think>{reasoning}</think>{content}\\n\\n<｜DSML｜function_calls>...<eos>
    \\n\\n<function_results>\\n<result>{result}</result>\\n</function_results>\\n\\n<think>{reasoning}</think>{content}<eos>

After tool results, the model thinks again, if it thinks at all. The reasoning since the last user turn stays in the prompt, and
earlier reasoning is dropped. With `off`, all reasoning is dropped.

Source: `encoding/encoding_dsv32.py` of the model repository deepseek-ai/DeepSeek-V3.2, which has no chat template. This
module is based on two copies of that file: sgl-project/sglang, `python/sglang/srt/entrypoints/openai/encoding_dsv32.py` at
commit 008b79d2; and vllm-project/vllm, `vllm/tokenizers/deepseek_v32_encoding.py` at commit 026ddf88.

Prompts equal those of the published encoder, except in these cases:

- With `auto`, which the published encoder does not have, the model chooses with its first token, as in V3.1.
- A system turn directly after a user turn is written before `<｜Assistant｜>`, not inside the reply.
- A list of tool results is always closed, even if a call has no result.

The published role `developer` is reserved for search agents and is not supported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from rorqual.core.records import Message, Thinking, Tool
from rorqual.data.chat.chat_format import ChatFormat
from rorqual.data.chat.deepseek import DeepSeekChat
from rorqual.data.chat.dsml import CLOSE, DSML_FORM, DSML_FRAME, OPEN, invoke, parameter
from rorqual.data.chat.special_tokens import END_THINK, THINK, check_text
from rorqual.data.chat.tools import schema, spelt

PUBLISHED = """{{- '<｜begin▁of▁sentence｜>' -}}
{%- set last = namespace(user=false) -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}{{- message.content -}}
{%- elif message.role == 'user' -%}
{{- ('<｜Assistant｜></think>' if last.user else '') + '<｜User｜>' + message.content -}}
{%- elif message.role == 'assistant' -%}{{- '<｜Assistant｜></think>' + message.content + '<｜end▁of▁sentence｜>' -}}
{%- else -%}{{- raise_exception('no role ' + message.role) -}}{%- endif -%}
{%- if message.role != 'system' -%}{%- set last.user = message.role == 'user' -%}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<｜Assistant｜>' -}}
{%- if enable_thinking is defined or thinking is defined -%}
{{- '<think>' if enable_thinking is true or thinking is true else '</think>' -}}{%- endif -%}{%- endif -%}
"""
_EXAMPLE = invoke("$FUNCTION_NAME", parameter("$PARAMETER_NAME", "$PARAMETER_VALUE", "true|false") + "\n...")
TOOLS = f"""## Tools
You have access to a set of tools you can use to answer the user's question.
You can invoke functions by writing a "{OPEN}" block like the following as part of your reply to the user:
{OPEN}
{_EXAMPLE}
{invoke("$FUNCTION_NAME2", "...")}
{CLOSE}
String and scalar parameters should be specified as is without any escaping or quotes, while lists and objects should use JSON format. \
The "string" attribute should be set to "true" for string type parameters and "false" for other types (numbers, booleans, arrays, objects).
If the thinking_mode is enabled, then after function results you should strongly consider outputting a thinking block. Here is an example:
{OPEN}
...
{CLOSE}
<function_results>
...
</function_results>
{THINK}...thinking about results{END_THINK}
Here are the functions available in JSONSchema format:
<functions>
%s
</functions>
"""
"""The tool instructions of the published encoder, as marked text (see `special_tokens.py`)."""
SCHEMA = "\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n"
"""The text before a JSON schema that the answer must match."""


class DeepSeekV32Chat(DeepSeekChat):
    """The format of DeepSeek-V3.2. The older DeepSeek-V3.2-Exp uses the format of V3.1."""

    name = "deepseek-v3.2"
    probes: ClassVar[tuple[tuple[Message, ...], ...]] = ((Message("user", "A?"), Message("user", "B?")),)

    call_form = DSML_FORM
    call_frame = DSML_FRAME
    template = PUBLISHED
    """A template of conversations without tools. DeepSeek published no template."""

    def prompt_with_schema(
        self, messages: Sequence[Message], thinking: Thinking, tools: Sequence[Tool], schema: Mapping[str, Any]
    ) -> list[int]:
        """Return the token ids of a prompt whose system turn ends with the schema."""
        self.check_parts(messages)
        check_text([written := spelt(dict(schema))], "schema")
        ids = self._prompt_with_tools(messages, thinking, tools)
        after = ids[len(self._opening_with_tools(messages, tools)) :]
        return [self.bos, *self._special_text.ids(_system(messages, tools) + SCHEMA + written), *after]

    def mode(self, messages: Sequence[Message], thinking: Thinking) -> Thinking:
        """Return `thinking`, because this model also thinks after a tool turn."""
        return thinking

    def chosen(self, prompt: Sequence[int]) -> Thinking:
        return ChatFormat.chosen(self, prompt)

    def _opening(self, messages: Sequence[Message]) -> list[int]:
        return [self.bos, *self.tokenizer.encode(_system(messages))]

    def _turn(self, message: Message, number: int) -> list[int]:
        if message.role == "system":
            return self.tokenizer.encode(message.text) if number else []
        return super()._turn(message, number)

    def _no_reply(self, before: str) -> list[int]:
        return self._reply_opening(before, "off")

    def _prompt_with_tools(self, messages: Sequence[Message], thinking: Thinking, tools: Sequence[Tool]) -> list[int]:
        if thinking != "auto":
            messages = [_in_mode(message, thinking) for message in messages]
        return super()._prompt_with_tools(messages, thinking, tools)

    def _opening_with_tools(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[int]:
        return [self.bos, *self._special_text.ids(_system(messages, tools))]

    def _earlier_assistant_turn(self, message: Message, before: str, *, current: bool) -> list[int]:
        reasoning = THINK + message.reasoning if current and message.reasoning is not None else ""
        opening = [] if before == "tool" else self._header()
        return [*opening, *self._special_text.ids(reasoning + END_THINK + self._spoken(message)), self.stop_ids[0]]

    def _tool_results(self, turn: Sequence[Message]) -> list[int]:
        results = "".join(f"\n<result>{message.text}</result>" for message in turn)
        return self.tokenizer.encode(f"\n\n<function_results>{results}\n</function_results>\n\n")

    def _reply_opening(self, before: str, thinking: Thinking) -> list[int]:
        return [*([] if before == "tool" else self._header()), *self.thinking_suffix(thinking)]


def _system(messages: Sequence[Message], tools: Sequence[Tool] = ()) -> str:
    """Return the text of a leading system turn and then the tool instructions. The result is marked text."""
    text = messages[0].text if messages[0].role == "system" else ""
    listed = "\n".join(spelt(schema(tool)["function"]) for tool in tools)
    return text + ("\n\n" + TOOLS % listed if tools else "")


def _in_mode(message: Message, thinking: Thinking) -> Message:
    """Adapt an assistant turn to a fixed thinking mode. `on` adds empty reasoning if the turn has none; `off` removes reasoning."""
    if message.role != "assistant":
        return message
    return replace(message, reasoning=None if thinking == "off" else message.reasoning or "")
