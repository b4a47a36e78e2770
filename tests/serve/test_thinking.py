"""Models that do not think: their text is `content`, whatever a request says about thinking."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rorqual.data.chat import KINDS, ChatFormat, TemplateChat, chat_format
from rorqual.data.chat.find import NoChat
from rorqual.data.tokenizer import Tokenizer
from rorqual.serve.bridge import EngineBridge
from rorqual.serve.keys import ApiKeys
from rorqual.serve.routes.chat import ChatResponseBuilder
from rorqual.serve.schemas import ChatRequest, parse_request
from rorqual.serve.service import ModelService
from rorqual.serve.wire import EngineArguments, EngineLimits, SampledToken

TOKENIZERS = Path(__file__).parents[1] / "data" / "chat" / "golden"
FAMILIES = {
    "deepseek-v3": "deepseek", "chatml": "qwen", "qwen2": "qwen", "chatml-plain": "qwen", "smollm2": "smollm2", "llama3": "llama3",
    "llama3.1": "llama3",
}  # fmt: skip
"""Those that do not think, each with its tokenizer."""
FIELDS: list[dict[str, Any]] = [
    {"reasoning_effort": "none"},
    {"reasoning_effort": "high"},
    {"thinking": {"type": "enabled"}},
    {"thinking": {"type": "disabled"}},
    {"chat_template_kwargs": {"thinking": True}},
    {"chat_template_kwargs": {"enable_thinking": True}},
    {"chat_template_kwargs": {"enable_thinking": False}},
]
TOOL = {"type": "function", "function": {"name": "size", "parameters": {"type": "object", "properties": {}}}}
BODY: dict[str, Any] = {
    "model": "plain",
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 24,
    "seed": 1,
}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SWITCH = "{% if enable_thinking %}<think>\n{% endif %}"


def tokenizer(family: str) -> Tokenizer:
    return Tokenizer.load(TOKENIZERS / f"tokenizer-{family}.json")


def of_template(template: str) -> TemplateChat:
    return TemplateChat(tokenizer("qwen"), template, bos="", stop=("<|im_end|>",))


FORMATS: dict[str, ChatFormat] = {name: chat_format(tokenizer(family), name) for name, family in FAMILIES.items()}


def shape_of(chat: ChatFormat, **fields: Any) -> ChatResponseBuilder:
    bridge = EngineBridge(EngineArguments("nowhere"))
    bridge.info = EngineLimits(4096, chat.tokenizer.vocab_size)
    service = ModelService("plain", 0, ApiKeys(Path("none"), {}), 2**20, chat=chat, bridge=bridge)
    return ChatResponseBuilder(service, parse_request(ChatRequest, json.dumps(BODY | fields).encode())[0])


def answer(shape: ChatResponseBuilder, text: str) -> tuple[dict[str, Any], str, str]:
    """The message of a reply, and what of it was streamed as content and as reasoning."""
    chat, choice, streamed = shape.service.chat, shape.new_choice(), {"content": "", "reasoning_content": ""}
    for drawn in [
        *(SampledToken(0, id_) for id_ in chat.tokenizer.encode_trusted(text)),
        SampledToken(0, chat.stop_ids[0], "stop"),
    ]:
        for part in shape.streamed_choices(0, choice.add_token(drawn), choice):
            for name in streamed:
                streamed[name] += part["delta"].get(name) or ""
    return shape.complete_choice_json(0, choice)["message"], streamed["content"], streamed["reasoning_content"]


def test_every_family_is_known_to_think_or_not() -> None:
    thinking = {kind.name for kind in KINDS} - set(FAMILIES)
    assert thinking == {"deepseek", "deepseek-r1", "deepseek-v3.2", "qwen3"} and NoChat.name not in thinking
    assert not any(chat.thinks for chat in FORMATS.values()) and not NoChat(tokenizer("qwen")).thinks
    assert all(chat_format(tokenizer("qwen" if name == "qwen3" else "deepseek"), name).thinks for name in thinking)
    assert not of_template(TEMPLATE).thinks and of_template(TEMPLATE + SWITCH).thinks


@pytest.mark.parametrize("fields", FIELDS, ids=json.dumps)
@pytest.mark.parametrize("name", [*FAMILIES, "template"])
def test_a_family_that_does_not_think_answers_in_content(name: str, fields: dict[str, Any]) -> None:
    chat = FORMATS[name] if name != "template" else of_template(TEMPLATE)
    for tools in ({}, {"tools": [TOOL]} if chat.takes_tools else {}):
        shape, plain = shape_of(chat, **fields, **tools), shape_of(chat, **tools)
        assert shape.engine_requests()[0].prompt == plain.engine_requests()[0].prompt
        message, content, reasoning = answer(shape, "It is 4.")
        assert (message["content"], content, reasoning) == ("It is 4.", "It is 4.", "")
        assert "reasoning_content" not in message and shape.ignored_fields() == [next(iter(fields))]


@pytest.mark.parametrize("name", FAMILIES)
def test_one_that_was_taught_to_think_all_the_same_has_its_reasoning_apart(name: str) -> None:
    message, content, reasoning = answer(shape_of(FORMATS[name]), "<think>\n2 and 2\n</think>\n\nIt is 4.")
    assert (message["content"], message["reasoning_content"]) == (content, reasoning) == ("It is 4.", "2 and 2")


def test_a_family_that_thinks_is_still_told_to() -> None:
    chat = chat_format(tokenizer("qwen"), "qwen3")
    message, content, reasoning = answer(shape_of(chat, reasoning_effort="high"), "2 and 2\n</think>\n\nIt is 4.")
    assert (message["content"], message["reasoning_content"]) == (content, reasoning) == ("It is 4.", "2 and 2")
