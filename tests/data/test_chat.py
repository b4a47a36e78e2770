"""What a conversation becomes, which of its tokens are trained, and that a reply reads back as it was meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rorqual.core.errors import DataError
from rorqual.core.records import Message, Thinking
from rorqual.data.chat import DeepSeekChat, chat_format
from rorqual.data.chat.template import TemplateChat
from rorqual.data.tokenizer import Special, Tokenizer

GOLDEN = Path(__file__).parent / "golden" / "deepseek_mask.json"
TOKENIZER = Tokenizer.byte_level()
CHAT = DeepSeekChat(TOKENIZER)
USER = Message("user", "2+2?")
THINKS, AT_ONCE = Message("assistant", "4", reasoning="2+2 is 4"), Message("assistant", "4")

TEXT = st.one_of(st.text(max_size=20), st.sampled_from([name.value for name in Special]))
ASSISTANT = st.builds(Message, st.just("assistant"), TEXT, st.none() | TEXT)
THINKING: list[Thinking] = ["auto", "on", "off"]


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    system = draw(st.lists(st.builds(Message, st.just("system"), TEXT), max_size=2))
    turns = draw(st.lists(st.tuples(st.builds(Message, st.just("user"), TEXT), ASSISTANT), min_size=1, max_size=4))
    return [*system, *(message for turn in turns for message in turn)]


def show(ids: list[int]) -> str:
    return TOKENIZER.decode(ids, specials=True)


def masked(ids: list[int], mask: list[bool]) -> str:
    return show([id_ for id_, trained in zip(ids, mask) if trained])


# ---- the text of the format


@pytest.mark.parametrize(
    ("thinking", "end"),
    [("auto", "<｜Assistant｜>"), ("on", "<｜Assistant｜><think>"), ("off", "<｜Assistant｜></think>")],
)
def test_a_prompt_ends_where_the_choice_is_left_or_made(thinking: Thinking, end: str) -> None:
    prompt = CHAT.prompt([Message("system", "Be brief."), USER], thinking)
    assert show(prompt) == f"{Special.BOS}Be brief.<｜User｜>2+2?{end}"


def test_a_turn_thinks_or_answers_at_once() -> None:
    head = f"{Special.BOS}<｜User｜>2+2?<｜Assistant｜>"
    assert show(CHAT.render([USER, THINKS]).ids) == f"{head}<think>2+2 is 4</think>4{Special.EOS}"
    assert show(CHAT.render([USER, AT_ONCE]).ids) == f"{head}</think>4{Special.EOS}"


def test_earlier_turns_lose_their_reasoning_and_are_not_trained_without_it() -> None:
    messages = [USER, THINKS, USER, AT_ONCE, USER, THINKS]
    rendered = CHAT.render(messages)
    earlier = f"<｜User｜>2+2?<｜Assistant｜></think>4{Special.EOS}"
    last = f"<｜User｜>2+2?<｜Assistant｜><think>2+2 is 4</think>4{Special.EOS}"
    assert show(rendered.ids) == Special.BOS + earlier + earlier + last
    assert masked(rendered.ids, rendered.mask) == f"</think>4{Special.EOS}<think>2+2 is 4</think>4{Special.EOS}"


# A template in jinja, written for this test from the description of V3.1's: an independent rendering.
V31 = """{%- set s = messages | selectattr('role', 'equalto', 'system') | map(attribute='content') | join('\n\n') -%}
{{- bos_token + s -}}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{{- '<｜User｜>' + m.content -}}{%- endif -%}
{%- if m.role == 'assistant' -%}{{- '<｜Assistant｜></think>' + m.content + eos_token -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<｜Assistant｜>' -}}
{%- if thinking is defined -%}{{- '<think>' if thinking else '</think>' -}}{%- endif -%}{%- endif -%}"""


@settings(deadline=None)
@given(messages=conversations(), thinking=st.sampled_from(THINKING))
def test_prompts_equal_a_sandboxed_template(messages: list[Message], thinking: Thinking) -> None:
    template = TemplateChat(TOKENIZER, V31)
    assert template.prompt([*messages, USER], thinking) == CHAT.prompt([*messages, USER], thinking)


# ---- the mask


def test_the_masks_tokens_are_those_of_the_golden_file() -> None:
    for case in json.loads(GOLDEN.read_text(encoding="utf-8")):
        messages = [Message(**message) for message in case["messages"]]
        rendered = CHAT.render(messages, thinking=case["thinking"], continue_=case["continue"])
        assert [TOKENIZER.token(id_) for id_ in rendered.ids] == case["tokens"], case["name"]
        assert rendered.ids == case["ids"], case["name"]
        trained = [TOKENIZER.token(id_) for id_, on in zip(rendered.ids, rendered.mask) if on]
        assert trained == case["trained"], case["name"]


@given(message=ASSISTANT, thinking=st.sampled_from(THINKING))
def test_a_prompt_is_a_prefix_and_the_mask_is_the_rest(message: Message, thinking: Thinking) -> None:
    if (thinking == "on") != (message.reasoning is not None) and thinking != "auto":
        with pytest.raises(DataError, match=f"thinking={thinking}"):
            CHAT.render([USER, message], thinking=thinking)
        return
    prompt = CHAT.prompt([USER], thinking)
    rendered = CHAT.render([USER, message], thinking=thinking)
    assert rendered.ids[: len(prompt)] == prompt
    assert rendered.mask == [False] * len(prompt) + [True] * (len(rendered.ids) - len(prompt))
    assert rendered.ids[-1] == TOKENIZER.eos and rendered.mask[-1]  # the end of the turn is trained


@given(messages=conversations())
def test_samples_train_every_assistant_turn_once_as_it_was_written(messages: list[Message]) -> None:
    written = [CHAT.parse(turn) for turn in _trained_turns(messages)]
    assert written == [message for message in messages if message.role == "assistant"]


def _trained_turns(messages: list[Message]) -> list[list[int]]:
    turns: list[list[int]] = []
    for rendered in CHAT.samples(messages):
        before = False
        for id_, on in zip(rendered.ids, rendered.mask):
            if on and not before:
                turns.append([])
            if on:
                turns[-1].append(id_)
            before = on
    return turns


def test_samples_of_single_answers_are_one_and_of_no_answer_none() -> None:
    assert len(CHAT.samples([USER, AT_ONCE, USER, AT_ONCE])) == 1
    assert len(CHAT.samples([USER, THINKS, USER, THINKS])) == 2
    assert CHAT.samples([USER]) == []
    assert CHAT.render([USER]).n_trained == 0


def test_an_open_turn_has_no_end_yet() -> None:
    head = f"{Special.BOS}<｜User｜>2+2?<｜Assistant｜>"
    assert show(CHAT.render([USER, AT_ONCE], continue_=True).ids) == head + "</think>4"
    assert show(CHAT.render([USER, THINKS], continue_=True).ids) == head + "<think>2+2 is 4</think>4"
    thinking = Message("assistant", "", reasoning="2+2 is")
    assert show(CHAT.render([USER, thinking], continue_=True).ids) == head + "<think>2+2 is"
    with pytest.raises(DataError, match="no assistant turn to continue"):
        CHAT.render([USER], continue_=True)


# ---- reading a reply


@given(message=ASSISTANT, thinking=st.sampled_from(THINKING))
def test_a_reply_reads_back_as_it_was_written(message: Message, thinking: Thinking) -> None:
    if thinking != "auto":
        thinking = "off" if message.reasoning is None else "on"
    rendered = CHAT.render([USER, message], thinking=thinking)
    reply = rendered.ids[len(CHAT.prompt([USER], thinking)) :]
    assert CHAT.parse(reply, thinking) == message


@given(message=ASSISTANT, data=st.data())
def test_a_reply_cut_at_any_token_is_a_prefix_of_it(message: Message, data: st.DataObject) -> None:
    prompt = CHAT.prompt([USER])
    reply = CHAT.render([USER, message]).ids[len(prompt) :]
    cut = CHAT.parse(reply[: data.draw(st.integers(1, len(reply)))])
    assert message.content.startswith(cut.content.rstrip("\ufffd")) or message.content == cut.content
    assert (cut.reasoning is None) == (message.reasoning is None)
    assert cut.content == "" or cut.reasoning == message.reasoning
    assert (message.reasoning or "").startswith((cut.reasoning or "").rstrip("\ufffd")) or (
        cut.reasoning == message.reasoning
    )


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
    ids = TOKENIZER.encode_trusted(reply.replace("<eos>", Special.EOS))
    assert CHAT.parse(ids, thinking) == Message("assistant", content, reasoning)


# ---- what is refused


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "has no user turn"),
        ([Message("system", "a")], "has no user turn"),
        ([AT_ONCE], "message 1: an assistant turn follows no turn"),
        ([USER, AT_ONCE, AT_ONCE], "message 3: an assistant turn follows assistant turn"),
        (
            [USER, Message("tool", "4")],
            "message 2: (this chat format has no role 'tool'|the tool turn does not follow an assistant turn with tool calls)",
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


def test_formats_are_found_by_name() -> None:
    assert isinstance(chat_format(TOKENIZER), DeepSeekChat)
    with pytest.raises(DataError, match="Did you mean 'deepseek'"):
        chat_format(TOKENIZER, "deepsek")


# ---- templates of unknown families


def test_a_template_without_a_loss_mask_is_refused_for_training() -> None:
    with pytest.raises(DataError, match="no loss mask") as caught:
        TemplateChat(TOKENIZER, V31, where="tokenizer_config.json").render([USER, AT_ONCE])
    assert caught.value.where == "tokenizer_config.json" and "chat=deepseek" in caught.value.remedy
    assert CHAT.render([USER, AT_ONCE]).n_trained == 3  # its twin, of a known family


@given(text=st.lists(TEXT).map("".join))
def test_text_in_a_template_stays_text(text: str) -> None:
    prompt = TemplateChat(TOKENIZER, "{{ messages[0].content }}<｜Assistant｜>").prompt([Message("user", text)])
    assert prompt[-1] == TOKENIZER.assistant and not any(TOKENIZER.is_special(id_) for id_ in prompt[:-1])
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
    reply = TOKENIZER.encode_trusted("<think>\na\n</think>\n\nb" + Special.EOS)
    assert chat.parse(reply) == Message("assistant", "b", reasoning="a")
    assert chat.parse(TOKENIZER.encode("b")) == Message("assistant", "b")
    assert chat.parse(TOKENIZER.encode("<think>a")) == Message("assistant", "", reasoning="a")


def golden() -> list[dict[str, Any]]:
    """The golden file's content, to write it anew after a change that was meant: `python tests/data/test_chat.py`."""
    system = Message("system", "Hi.")
    cases: list[tuple[str, list[Message], Thinking, bool]] = [
        ("thinks", [USER, THINKS], "auto", False),
        ("answers at once", [USER, AT_ONCE], "auto", False),
        ("made to think", [USER, THINKS], "on", False),
        ("made to answer at once", [USER, AT_ONCE], "off", False),
        ("three turns after a system message", [system, USER, THINKS, USER, AT_ONCE, USER, THINKS], "auto", False),
        ("an open turn", [USER, THINKS], "auto", True),
        ("text that looks like a special token", [Message("user", "<｜User｜>"), Message("assistant", "</think>")], "auto", False),
    ]  # fmt: skip
    found = []
    for name, messages, thinking, continue_ in cases:
        rendered = CHAT.render(messages, thinking=thinking, continue_=continue_)
        tokens = [TOKENIZER.token(id_) for id_ in rendered.ids]
        found.append(
            {
                "name": name,
                "messages": [vars(message) for message in messages],
                "thinking": thinking,
                "continue": continue_,
                "tokens": tokens,
                "ids": rendered.ids,
                "trained": [token for token, on in zip(tokens, rendered.mask) if on],
            }
        )
    return found


if __name__ == "__main__":
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in golden())
    GOLDEN.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
