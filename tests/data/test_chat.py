"""What a conversation becomes, which of its tokens are trained, and that a reply reads back as it was meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rorqual.core.errors import DataError
from rorqual.core.records import Message, Thinking
from rorqual.data.chat import DeepSeekChat
from rorqual.data.chat.template import TemplateChat
from rorqual.data.tokenizer import SpecialToken, Tokenizer

GOLDEN = Path(__file__).parent / "golden" / "deepseek_mask.json"
TOKENIZER = Tokenizer.byte_level()
CHAT = DeepSeekChat(TOKENIZER)
USER = Message("user", "2+2?")
THINKS, AT_ONCE = Message("assistant", "4", reasoning="2+2 is 4"), Message("assistant", "4")

TEXT = st.one_of(st.text(max_size=20), st.sampled_from([name.value for name in SpecialToken]))
# ---- the text of the format


# A template in jinja, written for this test from the description of V3.1's: an independent rendering.
V31 = """{%- set s = messages | selectattr('role', 'equalto', 'system') | map(attribute='content') | join('\n\n') -%}
{{- bos_token + s -}}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{{- '<｜User｜>' + m.content -}}{%- endif -%}
{%- if m.role == 'assistant' -%}{{- '<｜Assistant｜></think>' + m.content + eos_token -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<｜Assistant｜>' -}}
{%- if thinking is defined -%}{{- '<think>' if thinking else '</think>' -}}{%- endif -%}{%- endif -%}"""


# ---- the mask


def test_the_masks_tokens_are_those_of_the_golden_file() -> None:
    for case in json.loads(GOLDEN.read_text(encoding="utf-8")):
        messages = [Message(**message) for message in case["messages"]]
        rendered = CHAT.render(messages, thinking=case["thinking"], continue_=case["continue"])
        assert [TOKENIZER.token(id_) for id_ in rendered.ids] == case["tokens"], case["name"]
        assert rendered.ids == case["ids"], case["name"]
        trained = [TOKENIZER.token(id_) for id_, on in zip(rendered.ids, rendered.mask) if on]
        assert trained == case["trained"], case["name"]


def test_samples_of_single_answers_are_one_and_of_no_answer_none() -> None:
    assert len(CHAT.training_renderings([USER, AT_ONCE, USER, AT_ONCE])) == 1
    assert len(CHAT.training_renderings([USER, THINKS, USER, THINKS])) == 2
    assert CHAT.training_renderings([USER]) == []
    assert CHAT.render([USER]).n_trained_tokens == 0


# ---- reading a reply


@pytest.mark.parametrize(
    ("reply", "thinking", "content", "reasoning"),
    [
        ("<think>a</think>b<eos>", "auto", "b", "a"),
        ("<think></think>b<eos>", "auto", "b", ""),
        ("</think>b<eos>", "auto", "b", None),
        ("<think>a", "auto", "", "a"),
        ("<think>", "auto", "", ""),
        ("a</think>b<eos>", "on", "b", "a"),
        ("a", "on", "", "a"),
        ("", "on", "", ""),
        ("b<eos>", "off", "b", None),
        ("a</think>b<eos>", "auto", "b", "a"),
        ("b<eos>", "auto", "b", None),
        ("", "auto", "", None),
        ("</think>b<eos>c", "auto", "b", None),
        ("</think>b</think>c<eos>", "auto", "b</think>c", None),
        ("<think>a<think>b</think>c", "auto", "c", "a<think>b"),
    ],
)
def test_every_form_of_a_reply_has_one_reading(
    reply: str, thinking: Thinking, content: str, reasoning: str | None
) -> None:
    ids = TOKENIZER.encode_trusted(reply.replace("<eos>", SpecialToken.EOS))
    assert CHAT.parse(ids, thinking) == Message("assistant", content, reasoning)


# ---- what is refused


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "has no user turn"),
        ([Message("system", "a")], "has no user turn"),
        ([AT_ONCE], "message 1: an assistant turn follows no turn|has no user turn"),
        (
            [USER, AT_ONCE, AT_ONCE],
            "message 3: an assistant turn follows assistant turn|the last turn is an assistant turn",
        ),
        (
            [USER, Message("tool", "4")],
            "with tools that has reasoning, or does not end|the tool turn does not follow an assistant turn with tool calls",
        ),
        ([Message("user", "a", reasoning="b")], "message 1: a user turn has reasoning"),
    ],
)
def test_what_the_template_cannot_write_is_refused(messages: list[Message], message: str) -> None:
    with pytest.raises(DataError, match=message):
        CHAT.render(messages)
    with pytest.raises(DataError, match=message):
        CHAT.prompt(messages)


def test_a_prompt_after_the_assistants_own_turn_is_refused() -> None:
    with pytest.raises(DataError, match="the last turn is an assistant turn"):
        CHAT.prompt([USER, AT_ONCE])
    assert CHAT.prompt([USER, AT_ONCE, USER])


# ---- templates of unknown families


def test_a_template_without_a_loss_mask_is_refused_for_training() -> None:
    with pytest.raises(DataError, match="no loss mask") as caught:
        TemplateChat(TOKENIZER, V31, where="tokenizer_config.json").render([USER, AT_ONCE])
    assert caught.value.where == "tokenizer_config.json" and "chat=deepseek" in caught.value.remedy
    assert CHAT.render([USER, AT_ONCE]).n_trained_tokens == 3  # its twin, of a known family


@given(text=st.lists(TEXT).map("".join))
def test_text_in_a_template_stays_text(text: str) -> None:
    prompt = TemplateChat(TOKENIZER, "{{ messages[0].content }}<｜Assistant｜>").prompt([Message("user", text)])
    assert prompt[-1] == TOKENIZER.special_id("<｜Assistant｜>") and not any(
        TOKENIZER.is_special(id_) for id_ in prompt[:-1]
    )
    assert TOKENIZER.decode(prompt) == text


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('no') }}",
        "{{ messages[9].content + 1 }}",
        "{% for i in range(99999999) %}x{% endfor %}",
        "{% for i in range(9999) %}{% for j in range(9999) %}{{ 'x' * 99 }}{% endfor %}{% endfor %}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_hostile_or_broken_template_is_refused_by_name(template: str) -> None:
    chat = TemplateChat(TOKENIZER, template, where="chat_template.jinja")
    with pytest.raises(DataError, match=r"chat_template\.jinja: the chat template failed"):
        chat.prompt([USER])


def test_a_template_that_is_not_jinja_is_refused() -> None:
    with pytest.raises(DataError, match="not a valid jinja2 template"):
        TemplateChat(TOKENIZER, "{% for %}")


def test_a_templates_reply_is_read_like_ours() -> None:
    chat = TemplateChat(TOKENIZER, V31)
    reply = TOKENIZER.encode_trusted("<think>\na\n</think>\n\nb" + SpecialToken.EOS)
    assert chat.parse(reply) == Message("assistant", "b", reasoning="a")
    assert chat.parse(TOKENIZER.encode("b")) == Message("assistant", "b")
    assert chat.parse(TOKENIZER.encode("<think>a")) == Message("assistant", "", reasoning="a")
