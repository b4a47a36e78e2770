"""A conversation with a model in the terminal. Replies are streamed, and the oldest turns are dropped when the context is
full."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from pydantic import Field

from rorqual.cli.machine import available_cores
from rorqual.cli.settings import EngineSettings, refuse_ineffective_settings
from rorqual.cli.terminal import Terminal, read_input_lines
from rorqual.core.config import Count, Natural, NonNegative, Seed
from rorqual.core.errors import DataError
from rorqual.core.records import Message, TaskDefaults, Thinking
from rorqual.data.chat import ChatFormat
from rorqual.engine.deltas import Delta
from rorqual.engine.engine import Engine
from rorqual.engine.request import Request, SamplingParams
from rorqual.teach.answerer import load_answerer
from rorqual.teach.contract import abstention, check_length, prompt_of_text

ROOM = 8
"""Number of context tokens that are reserved for the reply."""


class ChatSettings(EngineSettings):
    """Settings of `rorqual chat`."""

    thinking: Thinking = Field("auto", description="whether the model thinks")
    system: str = Field("", description="system message")
    temperature: NonNegative = Field(0.0, description="0 is greedy decoding")
    max_tokens: Count = Field(1024, description="maximum tokens of a reply")
    think_budget: Natural = Field(0, description="maximum thinking tokens; 0: no limit")
    seed: Seed = Field(0, description="seed of the first reply; each further reply has the next")
    threads: Natural = Field(0, description="threads; 0: all cores")


def reply_pieces(ids: Iterable[int], chat: ChatFormat, thinking: Thinking) -> Iterator[tuple[bool, str]]:
    """Yield (is_reasoning, new text) as the reply's tokens arrive.

    The joined texts equal the reasoning and the answer that `chat.parse` returns for all tokens, with one exception. If the
    model closes a reasoning section that it never opened, text that was already yielded as answer is yielded again as
    reasoning. A UTF-8 character is yielded when all bytes of the character have arrived.
    """
    reader, shown_early = chat.reader(thinking), ""  # shown_early: yielded answer text that may still become reasoning
    for id_ in chain(ids, (None,)):
        piece = reader.finish() if id_ is None else reader.feed(id_)
        if piece.reasoning:
            shown_early = ""
            yield True, piece.reasoning
        new_text = piece.content.removeprefix(shown_early)
        if tentative := reader.tentative_content:
            new_text = tentative.removeprefix(shown_early)
        shown_early = tentative
        if new_text:
            yield False, new_text


class Conversation:
    """A conversation with a model, and its history of messages. `task` holds the grammar of the replies, and whether
    the engine inserts the results of calculations."""

    def __init__(self, engine: Engine, settings: ChatSettings, task: TaskDefaults | None = None) -> None:
        self.engine, self.settings, self.task = engine, settings, task or TaskDefaults()
        self.history: list[Message] = []
        self.turns = 0

    def say(self, text: str, terminal: Terminal) -> Message:
        """Send a user message, stream the reply to `terminal`, add message and reply to the history, and return the reply.

        Raises DataError if the user message alone does not fit in the context.
        """
        messages = self._truncate([*self.history, Message("user", text)], terminal)
        params = SamplingParams(
            max_tokens=self.settings.max_tokens,
            temperature=self.settings.temperature,
            seed=self.settings.seed + self.turns,
            think_budget=self.settings.think_budget or None,
            grammar=self.task.grammar,
            calculator=bool(self.task.calculator),
        )
        request = Request(self._with_system(messages), params, self.settings.thinking)
        generated: list[Delta] = []
        for is_reasoning, piece in reply_pieces(
            self._stream_tokens(request, generated), self.engine.chat, self.settings.thinking
        ):
            (terminal.print_reasoning if is_reasoning else terminal.print_answer)(piece)
        reply = self.engine.chat.parse((delta.token for delta in generated), self.settings.thinking)
        last = generated[-1].completion if generated else None
        if last is not None and last.finish_reason == "length":
            terminal.print_note(f"reply cut off after {len(generated)} tokens")
        self.history = [*messages, reply]
        self.turns += 1
        return reply

    def _stream_tokens(self, request: Request, generated: list[Delta]) -> Iterator[int]:
        for delta in self.engine.stream(request):
            generated.append(delta)
            yield delta.token

    def _with_system(self, messages: list[Message]) -> tuple[Message, ...]:
        system = [Message("system", self.settings.system)] if self.settings.system else []
        return (*system, *messages)

    def _truncate(self, messages: list[Message], terminal: Terminal) -> list[Message]:
        """Drop the oldest exchanges until `messages` fit in the context. A note on `terminal` gives the number of dropped
        exchanges."""
        kept, room = messages, self.engine.max_len - ROOM
        while len(kept) > 1 and len(self.engine.chat.prompt(self._with_system(kept), self.settings.thinking)) > room:
            kept = kept[2:]
        if len(kept) < len(messages):
            terminal.print_note(
                f"dropped the oldest {(len(messages) - len(kept)) // 2} exchanges to fit the context of {room + ROOM} tokens"
            )
        return kept


def answer_lines(folder: Path, settings: ChatSettings, terminal: Terminal) -> None:
    """Answer each line of standard input with what `rorqual teach` chose in `folder`. A note gives probability and rung.

    Raises DataError for a line that is no prompt if the input is not a terminal.
    """
    refuse_ineffective_settings(settings, ("threads",), str(folder))
    answerer = load_answerer(folder, threads=settings.threads or available_cores())
    for text in read_input_lines():
        try:
            [answer] = answerer.answer([check_length(prompt_of_text(text, answerer.config.columns), answerer.config)])
        except DataError as error:
            if not sys.stdin.isatty():
                raise
            terminal.print_note(str(error))
            continue
        if answer.reasoning:
            terminal.print_reasoning(answer.reasoning)
        terminal.print_answer(abstention(answer, answerer.config) or answer.text)
        terminal.end_reply()
        terminal.print_note(f"probability {answer.probability:.3g}, {answer.rung}")
