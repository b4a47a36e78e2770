"""The page's picture of a conversation: thoughts timed and folded, nothing sent that was only shown."""

from __future__ import annotations

from typing import Any

import pytest

from rorqual.serve.ui_turn import Turn, Wanted, messages_of, upto_question

USER: dict[str, Any] = {"role": "user", "content": "a\tb"}
THOUGHT: dict[str, Any] = {"role": "assistant", "content": "hm", "metadata": {"title": "Thought for 1.0 s"}}
ANSWER: dict[str, Any] = {"role": "assistant", "content": "c"}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def chunk(reason: str | None = None, **delta: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


def test_a_thought_is_open_while_it_lasts_and_timed_when_the_answer_begins() -> None:
    clock = Clock()
    turn = Turn(clock)
    assert turn.rows() == [] and turn.phase == "Waiting"
    turn.add(chunk(reasoning_content="let me "))
    clock.now += 3.2
    [row] = turn.rows()
    assert row["metadata"]["status"] == "pending" and turn.phase == "Thinking"
    turn.add(chunk(content="4"))
    clock.now += 5
    turn.add(chunk(content="6"))
    thought, answer = turn.rows()
    assert thought["metadata"] == {"title": "Thought for 3.2 s", "status": "done"}
    assert answer["content"] == "46" and turn.phase == "Answering"


def test_a_thought_that_is_stopped_is_closed_and_timed() -> None:
    clock = Clock()
    turn = Turn(clock)
    turn.add(chunk(reasoning_content="let me "))
    clock.now += 2
    turn.stop()
    clock.now += 2
    assert turn.rows()[0]["metadata"] == {"title": "Thought for 2.0 s", "status": "done"}
    assert "Stopped" in turn.summary(stopped=True)


def test_what_ended_a_reply_is_said() -> None:
    clock = Clock()
    turn = Turn(clock)
    turn.add(chunk(content="4"))
    turn.add(chunk("length"))
    turn.add({"choices": [], "usage": {"completion_tokens": 12}})
    clock.now += 3
    assert turn.summary() == "12 tokens in 3.0 s, 4 tokens per second. The reply reached the token limit."


def test_thoughts_are_not_sent_again_and_text_is_sent_as_it_was_written() -> None:
    assert messages_of([USER, THOUGHT, ANSWER, USER]) == [
        {"role": "user", "content": "a\tb"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "a\tb"},
    ]


def test_a_reply_that_never_came_is_an_empty_one() -> None:
    """Two questions in a row are what no chat format can write."""
    assert [row["role"] for row in messages_of([USER, THOUGHT, USER])] == ["user", "assistant", "user"]


def test_retry_asks_the_last_question_and_forgets_the_reply() -> None:
    assert upto_question([USER, ANSWER, USER, THOUGHT, ANSWER]) == [USER, ANSWER, USER]
    assert upto_question([]) == []


@pytest.mark.parametrize(
    ("thinking", "sent"), [("auto", None), ("on", {"thinking": True}), ("off", {"thinking": False})]
)
def test_settings_become_the_requests_own_parameters(thinking: Any, sent: Any) -> None:
    body = Wanted(thinking, 0.0, 20).body("tiny", [USER])
    assert (body["temperature"], body["max_tokens"], body.get("chat_template_kwargs")) == (0.0, 20, sent)
    assert "max_tokens" not in Wanted().body("tiny", [USER])
