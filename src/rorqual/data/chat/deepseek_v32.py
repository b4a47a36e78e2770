"""The chat format of DeepSeek-V3.2. Turns and thinking have V3.1's format, and tool calls are written in DSML (`dsml.py`).

    <bos>{system}\\n\\n## Tools ...<｜User｜>{user}<｜Assistant｜><think>{reasoning}</think>{content}\\n\\n<｜DSML｜function_calls>...<eos>
    \\n\\n<function_results>\\n<result>{result}</result>\\n</function_results>\\n\\n<think>{reasoning}</think>{content}<eos>

Unless thinking is `off`, the model also thinks after tool results. The reasoning since the last user turn then stays in the
prompt, and reasoning before this user turn is dropped. If thinking is `off`, all reasoning is dropped.

Source: `encoding/encoding_dsv32.py` of the model repository deepseek-ai/DeepSeek-V3.2, which has no chat template. This module
is based on two copies of `encoding_dsv32.py`: sgl-project/sglang, `python/sglang/srt/entrypoints/openai/encoding_dsv32.py` at
commit 008b79d2; and vllm-project/vllm, `vllm/tokenizers/deepseek_v32_encoding.py` at commit 026ddf88.

Prompts equal the prompts of the published encoder, except in these cases:

- With `auto`, which the published encoder does not have, the model chooses with its first token, as in V3.1.
- A system turn directly after a user turn is written before `<｜Assistant｜>`, not inside the reply.
- A list of tool results is always closed, even if a call has no result.

The published role `developer` is reserved for search agents and is not supported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar

from rorqual.core.errors import DataError
from rorqual.core.records import Message, Thinking, Tool
from rorqual.data.chat.calls import json_object
from rorqual.data.chat.chat_format import ChatFormat
from rorqual.data.chat.deepseek import DeepSeekChat
from rorqual.data.chat.dsml import DSML_FORM, DSML_FRAME


class DeepSeekV32Chat(DeepSeekChat):
    """The format of DeepSeek-V3.2. The older DeepSeek-V3.2-Exp uses the format of V3.1."""

    name = "deepseek-v3.2"
    probes: ClassVar[tuple[tuple[Message, ...], ...]] = ((Message("user", "A?"), Message("user", "B?")),)
    template_file = "deepseek-v3.2.jinja"
    settings: ClassVar[Mapping[str, Any]] = {}
    arguments_as_text: ClassVar[bool] = False
    call_form = DSML_FORM
    call_frame = DSML_FRAME

    def prompt_with_schema(
        self, messages: Sequence[Message], thinking: Thinking, tools: Sequence[Tool], schema: Mapping[str, Any]
    ) -> list[int]:
        """Return the token ids of a prompt whose system turn ends with the schema."""
        return list(chain.from_iterable(self._segments(messages, thinking, tools, schema=schema)))

    def effective_thinking(self, messages: Sequence[Message], thinking: Thinking) -> Thinking:
        """Return `thinking`, because this model also thinks after a tool turn."""
        return thinking

    def thinking_mode_of(self, prompt: Sequence[int]) -> Thinking:
        return ChatFormat.thinking_mode_of(self, prompt)

    def _segments(
        self,
        messages: Sequence[Message],
        thinking: Thinking,
        tools: Sequence[Tool] = (),
        *,
        schema: Mapping[str, Any] | None = None,
        opens_reply: bool = True,
    ) -> list[list[int]]:
        """Return the segments of a prompt. Raises DataError if the arguments of a call are not a JSON object, because DSML can
        write only JSON objects.
        """
        for call in chain.from_iterable(message.tool_calls for message in messages):
            if json_object(call.arguments) is None:
                raise DataError(
                    f"the arguments of a call of {call.name!r} are not a JSON object",
                    where="messages",
                    remedy='Give the arguments as a JSON object, such as {"city": "Bern"}.',
                )
        return super()._segments(messages, thinking, tools, schema=schema, opens_reply=opens_reply)
