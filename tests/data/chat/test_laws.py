"""What holds for every format: replies read back, prompts are prefixes, masks cover replies, and what is typed stays text."""

from __future__ import annotations

import pytest
from chat_families import ASSISTANT, FAMILY, TEXT, conversations, made
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rorqual.core.errors import DataError
from rorqual.core.records import Message, Thinking, Tool, ToolCall
from rorqual.data.chat import ChatFormat, chat_format

EVERY = pytest.mark.parametrize("chat", FAMILY, indirect=True)
LAW = settings(deadline=None, max_examples=12)
"""For each of eleven formats."""
MODES = st.sampled_from(["auto", "on", "off"])
USER = Message("user", "?")
THINKS_BY_IDS = ("qwen3", "deepseek", "deepseek-r1", "deepseek-v3.2")


@pytest.fixture(scope="module")
def chat(request: pytest.FixtureRequest) -> ChatFormat:
    """The format that a test is given the name of."""
    return made(request.param)


def read_back(chat: ChatFormat, text: str) -> str:
    """Text as the tokenizer gives it back: Qwen's composes characters (NFC)."""
    return chat.tokenizer.decode(chat.tokenizer.encode(text))


def normal(chat: ChatFormat, message: Message) -> Message:
    reasoning = None if message.reasoning is None else read_back(chat, message.reasoning)
    return Message(message.role, read_back(chat, message.content), reasoning)


def asked(message: Message, thinking: Thinking) -> bool:
    """Whether a message can be the reply to a prompt that makes it think, or answer at once."""
    return thinking == "auto" or (thinking == "on") == (message.reasoning is not None)


def reply_of(chat: ChatFormat, before: list[Message], message: Message, thinking: Thinking) -> list[int]:
    return chat.render([*before, message], thinking=thinking).ids[len(chat.prompt(before, thinking)) :]


def drawn_reply(chat: ChatFormat, before: list[Message], message: Message, thinking: Thinking) -> list[int]:
    """As `reply_of`, in a property: what cannot be asked for is not asked, nor what a text format could not tell apart."""
    assume(asked(message, thinking))
    try:
        return reply_of(chat, before, message, thinking)
    except DataError as error:
        assume("as text" not in str(error))
        raise


@EVERY
@LAW
@given(before=conversations(), message=ASSISTANT, thinking=MODES)
def test_a_prompt_is_a_prefix_and_the_mask_is_the_rest(
    chat: ChatFormat, before: list[Message], message: Message, thinking: Thinking
) -> None:
    reply = drawn_reply(chat, before, message, thinking)
    prompt = chat.prompt(before, thinking)
    rendered = chat.render([*before, message], thinking=thinking, train_from=len(before))
    assert (rendered.ids, rendered.mask) == ([*prompt, *reply], [False] * len(prompt) + [True] * len(reply))
    assert rendered.ids[-1] == chat.stop_ids[0] and not set(reply[:-1]) & set(chat.stop_ids)
    assert chat.thinking_mode_of(prompt) == (
        "on" if chat.name == "deepseek-r1" and thinking == "auto" else _told(chat, thinking)
    )


def _told(chat: ChatFormat, thinking: Thinking) -> Thinking:
    return thinking if chat.thinking_suffix(thinking) else "auto"


@EVERY
@LAW
@given(message=ASSISTANT, thinking=MODES)
def test_a_reply_reads_back(chat: ChatFormat, message: Message, thinking: Thinking) -> None:
    reply = drawn_reply(chat, [USER], message, thinking)
    assert chat.parse(reply, thinking) == chat.normalized(normal(chat, message), thinking)


@EVERY
@pytest.mark.parametrize("reasoning", [None, "so", "a\n\nb.", "  é 12"])
@pytest.mark.parametrize("content", ["", "4", "a\n\nb\n", "<|im_end|>é"])
def test_an_ordinary_reply_survives_whole(chat: ChatFormat, reasoning: str | None, content: str) -> None:
    """`kept` may not be an excuse: only newlines at the edges are lost, and white space around the content in Llama's formats."""
    message = Message("assistant", content, reasoning)
    stripped = Message("assistant", content.strip(), reasoning)
    expected = stripped if chat.name.startswith("llama3") else message
    for thinking in ("auto", "off" if reasoning is None else "on"):
        assert chat.normalized(message, thinking) == expected  # type: ignore[arg-type]
        assert chat.parse(reply_of(chat, [USER], message, thinking), thinking) == expected  # type: ignore[arg-type]


@EVERY
@LAW
@given(message=ASSISTANT, thinking=MODES)
def test_every_cut_of_a_reply_is_a_beginning_of_it(chat: ChatFormat, message: Message, thinking: Thinking) -> None:
    reply = drawn_reply(chat, [USER], message, thinking)
    whole = chat.parse(reply, thinking)
    for at in range(len(reply)):
        cut = chat.parse(reply[:at], thinking)
        assert begins(whole.content, cut.content)
        assert begins(whole.reasoning or "", cut.reasoning or "")
        assert not cut.content or cut.reasoning == whole.reasoning


def begins(whole: str, cut: str) -> bool:
    return whole.startswith((cut, cut.rstrip("\ufffd")))


@EVERY
@LAW
@given(data=st.data(), thinking=MODES)
def test_whatever_a_model_draws_can_be_read(chat: ChatFormat, data: st.DataObject, thinking: Thinking) -> None:
    drawn = data.draw(st.lists(st.integers(0, chat.tokenizer.vocab_size - 1), max_size=12))
    assert chat.parse(drawn, thinking).role == "assistant"
    assert 0 <= chat.n_thinking_tokens(drawn) <= len(drawn)


@EVERY
@LAW
@given(
    typed=st.lists(st.sampled_from(["<think>", "</think>", "\n\n", " ", "</thi", "é", "ab"]), max_size=9),
    thinking=MODES,
)
def test_the_content_at_the_end_is_that_of_a_reply_cut_there(
    chat: ChatFormat, typed: list[str], thinking: Thinking
) -> None:
    ids = chat.tokenizer.encode_trusted("".join(typed))
    reader, content = chat.reader(thinking), ""
    for end, token in enumerate(ids, start=1):
        content += reader.feed(token).content
        assert content + reader.content_at_end() == chat.parse(ids[:end], thinking).text


@EVERY
@LAW
@given(text=st.lists(TEXT, min_size=1).map("".join))
def test_what_is_typed_never_becomes_a_special_token(chat: ChatFormat, text: str) -> None:
    empty = [id_ for id_ in chat.prompt([Message("system", ""), Message("user", "")]) if chat.tokenizer.is_special(id_)]
    typed = chat.prompt([Message("system", text), Message("user", text)])
    assert [id_ for id_ in typed if chat.tokenizer.is_special(id_)] == empty
    said = chat.prompt([Message("user", ""), Message("assistant", text, text), Message("user", "")])
    nothing = chat.prompt([Message("user", ""), Message("assistant", ""), Message("user", "")])
    specials = [[id_ for id_ in ids if chat.tokenizer.is_special(id_)] for ids in (said, nothing)]
    assert specials[0] == specials[1]


@EVERY
@LAW
@given(messages=conversations(), last=ASSISTANT)
def test_samples_train_every_reply_once_as_it_was_written(
    chat: ChatFormat, messages: list[Message], last: Message
) -> None:
    try:
        samples = chat.training_renderings([*messages, last])
    except DataError as error:
        assume("as text" not in str(error))
        raise
    trained = [chat.parse(turn) for sample in samples for turn in turns(sample.ids, sample.mask)]
    assert trained == [chat.normalized(normal(chat, m)) for m in [*messages, last] if m.role == "assistant"]


@pytest.mark.parametrize("chat", ["qwen3", "deepseek-r1"], indirect=True)
def test_an_earlier_turn_is_not_trained_where_its_block_is_missing(chat: ChatFormat) -> None:
    """It stands there without `<think>`: trained so, a model would learn to leave its block out."""
    messages = [USER, Message("assistant", "one"), USER, Message("assistant", "two")]
    rendered = chat.render(messages)
    trained = [id_ for id_, on in zip(rendered.ids, rendered.mask) if on]
    assert "one" not in chat.tokenizer.decode(trained) and "two" in chat.tokenizer.decode(trained)
    assert len(chat.training_renderings(messages)) == 2


@pytest.mark.parametrize("chat", ["qwen3", "deepseek-r1", "chatml"], indirect=True)
def test_a_thought_that_the_prompt_opened_is_read_from_inside(chat: ChatFormat) -> None:
    assert chat.parse(chat.tokenizer.encode("so far"), "on") == Message("assistant", "", "so far")


def turns(ids: list[int], mask: list[bool]) -> list[list[int]]:
    found: list[list[int]] = []
    for at, (id_, on) in enumerate(zip(ids, mask)):
        if on and not (at and mask[at - 1]):
            found.append([])
        if on:
            found[-1].append(id_)
    return found


@EVERY
def test_the_tokens_that_thinking_took_are_counted(chat: ChatFormat) -> None:
    reply = reply_of(chat, [USER], Message("assistant", "four", "two and two"), "on")
    n = chat.n_thinking_tokens(reply)
    assert "two and two" in chat.tokenizer.decode(reply[:n]) and "four" in chat.tokenizer.decode(reply[n:])
    assert chat.n_thinking_tokens(reply[: n - 1]) == n - 1, "cut off, all of it is thought"


@EVERY
def test_an_open_turn_goes_on_where_it_was_left(chat: ChatFormat) -> None:
    for message in (
        Message("assistant", "It is"),
        Message("assistant", "It is", "so"),
        Message("assistant", "", "so I"),
    ):
        opened = chat.render([USER, message], continue_=True)
        whole = chat.tokenizer.decode(chat.render([USER, message]).ids, specials=True)
        assert whole.startswith(chat.tokenizer.decode(opened.ids, specials=True))
        assert opened.ids[-1] not in chat.stop_ids


@EVERY
def test_a_tokenizer_without_the_marks_is_refused_by_their_names(chat: ChatFormat) -> None:
    other = made("smollm2" if FAMILY[chat.name] == "llama3" else "llama3").tokenizer
    with pytest.raises(DataError, match=r"the tokenizer lacks .*which chat format") as caught:
        chat_format(other, chat.name)
    assert f"'{chat.name}'" in str(caught.value) and caught.value.where.endswith(".json")


def test_a_mark_alone_that_is_missing_is_named_alone() -> None:
    plain = made("smollm2").tokenizer
    with pytest.raises(DataError, match=r"the tokenizer lacks <think>, </think>, which chat format 'qwen3'"):
        chat_format(plain, "qwen3")
    assert chat_format(plain, "chatml").stop_ids  # its twin, which needs none


@pytest.mark.parametrize("chat", [name for name in FAMILY if name not in THINKS_BY_IDS], indirect=True)
def test_what_a_text_format_could_not_tell_apart_is_refused(chat: ChatFormat) -> None:
    for message in (Message("assistant", "<think>a"), Message("assistant", "b", "a</think>")):
        with pytest.raises(DataError, match=r"is ambiguous, because .* as text"):
            chat.render([USER, message])
    assert chat.render([USER, Message("assistant", "a <think>", "b")]).n_trained_tokens


@EVERY
def test_a_conversation_with_tools_is_trained_on_as_it_is_asked(chat: ChatFormat) -> None:
    """The prompt of each reply is a prefix, the mask covers exactly the replies, and the replies read back."""
    tools = [Tool("add", "Add two numbers.", {"type": "object", "properties": {"a": {"type": "integer"}}})]
    call = Message("assistant", "", tool_calls=(ToolCall("call_0", "add", '{"a": 2}'),))
    messages = [USER, call, Message("tool", "4", tool_call_id="call_0"), Message("assistant", "It is 4.")]
    if not chat.takes_tools:
        with pytest.raises(DataError, match=f"chat format '{chat.name}' does not support tools"):
            chat.render(messages, tools=tools)
        return
    if chat.name == "deepseek-r1":
        with pytest.raises(DataError, match="opens thinking, so replies without reasoning"):
            chat.training_renderings(messages, tools)
        return
    asked_first, asked_last = chat.prompt(messages[:1], tools=tools), chat.prompt(messages[:3], tools=tools)
    first, whole = chat.render(messages[:2], tools=tools), chat.render(messages, train_from=2, tools=tools)
    for rendered, prompt in ((first, asked_first), (whole, asked_last)):
        assert rendered.ids[: len(prompt)] == prompt
        assert rendered.mask == [False] * len(prompt) + [True] * (len(rendered.ids) - len(prompt))
        assert rendered.ids[-1] == chat.stop_ids[0]
    read = chat.parse(first.ids[len(asked_first) :], tools=tools)
    assert (read.text, read.tool_calls) == ("", call.tool_calls)
    mode = chat.effective_thinking(messages[:3], "auto")
    assert chat.parse(whole.ids[len(asked_last) :], mode, tools).text == "It is 4."
    reasoned = [*messages[:3], Message("assistant", "It is 4.", "2 + 2")]
    with pytest.raises(DataError, match="with tools that has reasoning"):
        chat.render(reasoned, tools=tools)


@EVERY
def test_a_turn_out_of_the_loss_is_not_trained_on(chat: ChatFormat) -> None:
    spoken = [USER, Message("assistant", "a"), USER, Message("assistant", "b")]
    silent = [USER, Message("assistant", "a", in_loss=False), USER, Message("assistant", "b")]
    alone = chat.render(spoken, train_from=2)
    assert [(one.ids, one.mask) for one in chat.training_renderings(silent)] == [(alone.ids, alone.mask)]
    last = chat.training_renderings([*silent[:3], Message("assistant", "b", in_loss=False)])
    assert last == []
