r"""ChatML, the chat format of Qwen, SmolLM2 and many other models. Only the format `qwen3` has thinking tokens.

    <|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n{content}<|im_end|>

Sources: the chat templates of Qwen2, Qwen2.5, Qwen3 and SmolLM2. These templates differ in the default system turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rorqual.data.chat.calls import HERMES, HERMES_FRAME
from rorqual.data.chat.thinking_block import SpecialTokenThinking, TextTagThinking
from rorqual.data.chat.turns import BuiltinChatFormat

START, END, TEXT_END = "<|im_start|>", "<|im_end|>", "<|endoftext|>"


class ChatMLBase(BuiltinChatFormat):
    """Base class of formats with turns between `<|im_start|>` and `<|im_end|>`.

    A conversation without a system turn gets a system turn with the text `default_system`, unless this text is empty.
    """

    marks: ClassVar[tuple[str, ...]] = (START, END)
    ends: ClassVar[tuple[str, ...]] = (END, TEXT_END)
    pads: ClassVar[tuple[str, ...]] = (TEXT_END, END)
    template_file = "chatml.jinja"
    settings: ClassVar[Mapping[str, Any]] = {"default_system": "", "thinks": False}
    call_form = HERMES
    call_frame = HERMES_FRAME


class PlainChatML(ChatMLBase, TextTagThinking):
    """ChatML without a default system turn."""

    name = "chatml-plain"


class ChatML(PlainChatML):
    """The chat format of Qwen2.5's instruct models."""

    name = "chatml"
    settings: ClassVar[Mapping[str, Any]] = {
        "default_system": "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
        "thinks": False,
    }


class Qwen2Chat(PlainChatML):
    """The format of Qwen2 and of Qwen2.5's base models."""

    name = "qwen2"
    settings: ClassVar[Mapping[str, Any]] = {"default_system": "You are a helpful assistant.", "thinks": False}


class SmolLM2Chat(PlainChatML):
    """The format of SmolLM2, which pads with `<|im_end|>`."""

    name = "smollm2"
    settings: ClassVar[Mapping[str, Any]] = {
        "default_system": "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
        "thinks": False,
    }
    pads: ClassVar[tuple[str, ...]] = (END,)


class Qwen3Chat(ChatMLBase, SpecialTokenThinking):
    """The chat format of Qwen3. In mode `auto`, the prompt does not open a thinking block, and the model writes `<think>`.
    After a tool call, the reasoning before the call stays in the prompt.

    `off` adds an empty thinking block to the prompt, as `enable_thinking=False` does in the published template. `on` adds an
    open thinking block, as the template of Qwen3-Thinking-2507 does. The template of the first Qwen3 models has no mode `on`.
    """

    name = "qwen3"
    marks: ClassVar[tuple[str, ...]] = (START, END, "<think>", "</think>")
    settings: ClassVar[Mapping[str, Any]] = {"default_system": "", "thinks": True}
