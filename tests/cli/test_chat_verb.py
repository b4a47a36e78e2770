"""Chat: what is streamed is what was said, thinking stands apart, and the history stays within the context."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from commands import typed
from rorqual.cli.conversation import ROOM, ChatSettings, Conversation, reply_pieces
from rorqual.cli.terminal import Terminal
from rorqual.core.errors import DataError
from rorqual.core.records import Message, TaskDefaults, Thinking
from rorqual.data.chat import DeepSeekChat
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.engine import Engine
from rorqual.engine.request import Grammar

CHAT = DeepSeekChat(Tokenizer.byte_level())
MARKS = ("<think>", "</think>", "<｜end▁of▁sentence｜>", "<｜User｜>")
SPECIAL = st.sampled_from([CHAT.tokenizer.special_id(name) for name in MARKS])
MODES = st.sampled_from(["auto", "on", "off"])


class Notes(Terminal):
    """A terminal that remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def _write(self, text: str, style: str) -> None:
        self.said.append(text)

    def print_note(self, text: str) -> None:
        self.said.append(text)


@given(reasoning=st.none() | st.text(), content=st.text(), thinking=MODES)
def test_a_reply_streamed_token_by_token_is_the_reply(reasoning: str | None, content: str, thinking: Thinking) -> None:
    if (thinking == "on") != (reasoning is not None) and thinking != "auto":
        return
    asked = [Message("user", "?")]
    try:
        whole = CHAT.render([*asked, Message("assistant", content, reasoning)], thinking=thinking).ids
    except DataError:  # half of a surrogate pair
        return
    told = list(reply_pieces(whole[len(CHAT.prompt(asked, thinking)) :], CHAT, thinking))
    assert "".join(text for is_reasoning, text in told if is_reasoning) == (reasoning or "")
    assert "".join(text for is_reasoning, text in told if not is_reasoning) == content
    assert all("\ufffd" not in text for _, text in told) or "\ufffd" in content + (reasoning or "")


@settings(max_examples=60)
@given(ids=st.lists(st.integers(7, 262) | SPECIAL, max_size=30), thinking=MODES)
def test_whatever_a_model_draws_is_shown_whole_in_the_end(ids: list[int], thinking: Thinking) -> None:
    told = list(reply_pieces(ids, CHAT, thinking))
    message = CHAT.parse(ids, thinking)
    assert "".join(text for is_reasoning, text in told if is_reasoning).endswith(message.reasoning or "")
    assert "".join(text for is_reasoning, text in told if not is_reasoning).endswith(message.content)


@pytest.fixture(scope="module")
def engine(tiny: Path) -> Engine:
    return Engine(tiny, slots=1)


def test_the_history_is_kept_and_its_oldest_turns_forgotten_where_the_context_ends(engine: Engine) -> None:
    conversation, screen = Conversation(engine, ChatSettings(thinking="off", max_tokens=4)), Notes()
    for turn in range(12):
        reply = conversation.say(f"{turn} is what I say", screen)
        assert conversation.history[-1] == reply
        assert len(CHAT.prompt(conversation.history[:-1], "off")) <= engine.max_len - ROOM
    assert conversation.history[-2].content == "11 is what I say"
    assert conversation.history[0].role == "user"
    assert any(text.startswith("dropped the oldest") for text in screen.said)
    with pytest.raises(DataError, match="context of 128"):
        conversation.say("long " * 100, screen)


@pytest.mark.parametrize("calculator", [True, False])
def test_the_defaults_of_the_run_hold_in_every_turn(engine: Engine, calculator: bool) -> None:
    task = TaskDefaults(grammar=Grammar("regex", r"1\+1=[0-9]"), calculator=calculator)
    replies = set()
    for seed in range(8):
        conversation = Conversation(engine, ChatSettings(temperature=2.0, seed=10 * seed, thinking="off"), task)
        replies |= {conversation.say("go", Notes()).content for _ in range(2)}
    assert all(re.fullmatch(r"1\+1=[0-9]", reply) for reply in replies)
    assert (replies == {"1+1=2"}) is calculator


def test_thinking_is_dimmed_and_marked_in_a_terminal_and_marked_in_a_pipe() -> None:
    for force, dim in ((True, "\x1b[2m"), (False, "")):
        terminal, file = Terminal(), io.StringIO()
        terminal.console = Console(
            file=file, force_terminal=force, highlight=False, markup=False, color_system="standard" if force else None
        )
        terminal.print_reasoning("so [b]")
        terminal.print_reasoning(" then")
        terminal.print_answer("it [i]")
        terminal.end_reply()
        text = file.getvalue()
        assert (dim in text) if dim else text == "<think>so [b] then</think>\nit [i]\n"
        assert "it [i]" in text


def test_each_line_of_a_pipe_is_a_message_up_to_quit(place: Path) -> None:
    done = typed(place, "chat", "run", "thinking=off", "max_tokens=3", stdin="one\n\n/new\ntwo\n/quit\nthree\n")
    assert done.code == 0, done.err
    assert done.err.count("cut off after 3 tokens") == 2


def test_a_run_of_one_task_answers_each_message_alone(place: Path) -> None:
    def replies(messages: str) -> str:
        return typed(place, "chat", "run", "thinking=off", "max_tokens=8", stdin=messages).out

    apart = replies("add 1 2\n/new\nadd 3 4\n/new\nadd 5 6\n")
    assert replies("add 1 2\nadd 3 4\nadd 5 6\n") == apart, "the run was trained on generated problems"
    (place / "run" / "prompts.json").unlink()
    assert replies("add 1 2\nadd 3 4\nadd 5 6\n") != apart, "the history changes these replies"
    (place / "run" / "defaults.json").write_text('{"max_tokens": 8}')
    try:
        assert replies("add 1 2\nadd 3 4\nadd 5 6\n") == apart
        (place / "run" / "defaults.json").write_text('{"temperature": 2}')
        assert replies("add 1 2\nadd 3 4\nadd 5 6\n") != apart
    finally:
        (place / "run" / "defaults.json").unlink()


def test_a_message_unlike_all_that_the_run_was_trained_on_is_noted(place: Path) -> None:
    told = "this looks like nothing that the run was trained on, such as: add 1+2; sub 9-3"
    (place / "run" / "prompts.json").write_text('["add 1+2", "sub 9-3", "add 7+8"]')
    for lines, times in (("add 3+4\nhello\n", 1), ("hello\nadd 3+4\nadd 3 4\n", 2), ("add 3+4\nadd 1+1\n", 0)):
        done = typed(place, "chat", "run", "thinking=off", "max_tokens=3", stdin=lines)
        assert done.code == 0 and " ".join(done.err.split()).count(told) == times, done.err
