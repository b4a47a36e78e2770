"""What the published templates write, transformers having rendered and encoded it, is what ours writes, id for id."""

from __future__ import annotations

import json
from typing import Any

import jinja2
import pytest
from chat_families import CASES, FAMILY, GOLDEN, NO_TEMPLATE, PUBLISHED, TEMPLATES, conversations, made, tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from rorqual.core.records import Message
from rorqual.data.chat import TemplateChat

GOLD = {
    name: json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    for name in FAMILY
    if name not in NO_TEMPLATE
}
EACH = [(name, case) for name, cases in GOLD.items() for case in cases]


def messages_of(case: dict[str, Any]) -> list[Message]:
    return [Message(m["role"], m["content"], m.get("reasoning_content")) for m in CASES[case["case"]]]  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "case"), EACH, ids=[f"{n}, {c['case']}, {c['thinking']}" for n, c in EACH])
def test_ids_are_those_of_the_published_template(name: str, case: dict[str, Any]) -> None:
    chat, messages = made(name), messages_of(case)
    if messages[-1].role == "user":
        ids = chat.prompt(messages, case["thinking"])
    else:
        # What a template writes after the last end token is the beginning of a turn that is not there.
        after = len(chat.tokenizer.encode("\n")) if "<|im_end|>" in case["text"] else 0
        ids = [*chat.render(messages).ids, *case["ids"][len(case["ids"]) - after :]]
        assert chat.tokenizer.decode(case["ids"][len(case["ids"]) - after :]).strip() == ""
    assert chat.tokenizer.decode(ids, specials=True) == case["text"]
    assert ids == case["ids"]


def test_every_format_has_its_golden_file() -> None:
    assert all(len(cases) >= 5 for cases in GOLD.values())
    used = {id_ for cases in GOLD.values() for case in cases for id_ in case["ids"]}
    assert len(used) > 100, "texts too poor to tell one encoding from another"


@settings(deadline=None, max_examples=20)
@pytest.mark.parametrize("name", ["chatml", "qwen3", "smollm2", "deepseek", "deepseek-r1"])
@given(data=st.data())
def test_any_conversation_reads_as_the_published_template_writes_it(name: str, data: st.DataObject) -> None:
    """Text for text, jinja rendering the published file."""
    chat, messages = made(name), data.draw(conversations())
    thinking = "off" if name == "deepseek" else "auto"
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    file = TEMPLATES / f"{PUBLISHED.get(name, name)}.jinja"
    rows = [plain(message) for message in messages]
    text = environment.from_string(file.read_text(encoding="utf-8")).render(
        messages=rows, add_generation_prompt=True, bos_token="<｜begin▁of▁sentence｜>"
    )
    if name == "qwen3" and any("</think>" in message.content for message in messages if message.role == "assistant"):
        return  # there the template takes text for a mark
    if name.startswith("deepseek") and any("</think>" in m.content for m in messages if m.role == "assistant"):
        return
    assert chat.tokenizer.decode(chat.prompt(messages, thinking), specials=True) == normal(name, text)


def plain(message: Message) -> dict[str, str]:
    row = {"role": str(message.role), "content": message.content}
    return row if message.reasoning is None else row | {"reasoning_content": message.reasoning}


def normal(name: str, text: str) -> str:
    """What the tokenizer of a family makes of any text before it encodes it."""
    family = tokenizer(FAMILY[name])
    return family.decode(family.encode(text))


@settings(deadline=None, max_examples=10)
@pytest.mark.parametrize("name", FAMILY)
@given(messages=conversations(), thinking=st.sampled_from(["auto", "on", "off"]))
def test_the_template_that_is_exported_writes_the_same_prompts(
    name: str, messages: list[Message], thinking: Any
) -> None:
    chat = made(name)
    template = chat.template
    assert template is not None
    bos = "" if chat.bos is None else chat.tokenizer.token(chat.bos)
    exported = TemplateChat(chat.tokenizer, template, bos=bos, stop=[chat.tokenizer.token(chat.stop_ids[0])])
    prompts = [one.tokenizer.decode(one.prompt(messages, thinking), specials=True) for one in (exported, chat)]
    assert prompts[0] == prompts[1]
