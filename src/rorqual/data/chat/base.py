"""A chat format: messages to ids with the loss mask born beside them, and a reply's ids back to a message."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rorqual.core.errors import DataError
from rorqual.core.parts import ContentPart, TextPart, foreign_part
from rorqual.core.records import Message, Thinking, Tool
from rorqual.data.chat.calls import CallForm, CallFrame
from rorqual.data.chat.marks import Marks
from rorqual.data.chat.reply import ReplyForm
from rorqual.data.chat.stream import Reader
from rorqual.data.tokenizer import Special, Tokenizer


@dataclass(frozen=True)
class Rendered:
    """A conversation as ids; `mask[i]` says that the assistant wrote `ids[i]`, so that it may be trained on."""

    ids: list[int]
    mask: list[bool]

    @property
    def n_trained(self) -> int:
        """How many tokens a loss can count: the first token of a sequence is predicted by nothing."""
        return sum(self.mask[1:])


class ChatFormat(ABC):
    """How one family of models writes conversations. One file per family, beside this one.

    Which special token plays which role (start, end, padding) is the format's to know; nobody else asks the tokenizer.
    """

    name: str
    parts: ClassVar[tuple[type[ContentPart], ...]] = (TextPart,)
    """Kinds of content parts that the format can write; `prompt` and `render` refuse the others."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    @abstractmethod
    def render(
        self,
        messages: Sequence[Message],
        *,
        thinking: Thinking = "auto",
        continue_: bool = False,
        train_from: int = 0,
    ) -> Rendered:
        """Ids and loss mask of a whole conversation.

        `thinking` says who chose whether the last turn thinks: the assistant (`auto`: its choice is trained), or the
        prompt (`on`, `off`: the choice is context). So `prompt(messages[:-1], thinking)` is a prefix of
        `render(messages, thinking=thinking)` and, where the last turn is the only one trained, the mask covers the rest,
        up to and including the token that ends the turn; what a template writes after that token belongs to the next turn.
        `continue_` leaves the last assistant turn open, for the model to go on with. Turns before the message numbered
        `train_from` are context only.
        """

    @abstractmethod
    def prompt(self, messages: Sequence[Message], thinking: Thinking = "auto", tools: Sequence[Tool] = ()) -> list[int]:
        """Ids to feed so that the assistant's reply comes next. `tools` are those that it may call."""

    @abstractmethod
    def reply_form(self, thinking: Thinking) -> ReplyForm:
        """How a reply to `prompt(..., thinking)` is read."""

    def foreign_part(self, messages: Sequence[Message]) -> tuple[int, int, ContentPart] | None:
        """The first part that the format cannot write, with the number of its message and its own, both from 0."""
        for number, message in enumerate(messages):
            place = foreign_part(message.content, self.parts)
            if place is not None and not isinstance(message.content, str):
                return number, place, message.content[place]
        return None

    def check_parts(self, messages: Sequence[Message]) -> None:
        """Refuse a content part that the format cannot write, by name and place."""
        if found := self.foreign_part(messages):
            number, place, part = found
            raise DataError(
                f"a part of type '{part.type}': chat format '{self.name}' does not accept {part.plural}",
                where=f"message {number + 1}, content[{place}]",
                remedy=f"Send parts of type {', '.join(kind.model_fields['type'].default for kind in self.parts)}, "
                "or use a model that was trained with such parts.",
            )

    @property
    def call_form(self) -> CallForm | None:
        """How calls of tools are written; None: not at all."""
        return None

    @property
    def call_frame(self) -> CallFrame | None:
        """How a reply that only calls is written, so that `parse` reads those calls; None where there is no `call_form`."""
        return None

    @property
    def thinks(self) -> bool:
        """Whether models of this family were trained to think when the prompt says so."""
        return True

    @property
    def spoken(self) -> bool:
        """Whether marks count in a reply however they are spelt, as tokens or as text."""
        return False

    def reader(
        self, thinking: Thinking, tools: Sequence[Tool] = (), *, calls: str = "call_", plain: bool = False
    ) -> Reader:
        """A reader of a reply to `prompt(..., thinking, tools)`; the ids of its calls are `calls` and their number.

        Without `tools` there are no calls: whatever looks like one is content. `plain`: mere text, which has no parts.
        """
        written = self.call_form if tools and not plain else None
        form = ReplyForm("answer") if plain else self.reply_form(thinking)
        return Reader(self.reply_marks(written, plain=plain), form, written, tools, self.stop_ids, calls)

    def parse(self, ids: Iterable[int], thinking: Thinking = "auto", tools: Sequence[Tool] = ()) -> Message:
        """The message in a reply's ids: what came after `prompt(..., thinking, tools)`, whole or cut off at any token.

        Everything after the first end token is ignored. Any special token beside the format's marks stays visible, by name.
        """
        reader = self.reader(thinking, tools)
        reader.feed(*ids)
        reader.finish()
        return reader.message()

    def reply_marks(self, calls: CallForm | None, *, plain: bool = False) -> Marks:
        """The marks that count in a reply, with calls or without."""
        names = [] if plain else ["<think>", "</think>", *(calls.marks if calls else ())]
        return Marks(self.tokenizer, names, spoken=names if self.spoken else ())

    @property
    def takes_tools(self) -> bool:
        """Whether the format has a way to write tools and calls; `prompt` refuses them where it has none."""
        return self.call_form is not None

    def mode(self, messages: Sequence[Message], thinking: Thinking) -> Thinking:
        """How the reply to `prompt(messages, thinking)` is to be parsed: some formats cannot think after a tool's turn."""
        return thinking

    @abstractmethod
    def kept(self, message: Message, thinking: Thinking = "auto") -> Message:
        """What of an assistant's message survives being written and read: `parse` of its reply's ids is `kept(message)`.

        A template that strips newlines cannot give them back; a format that strips nothing returns `message` itself.
        """

    @abstractmethod
    def n_thought(self, ids: Sequence[int]) -> int:
        """How many of a reply's ids come before the mark that ends thinking; all of them where there is none."""

    @abstractmethod
    def choice(self, thinking: Thinking) -> list[int]:
        """Ids at the end of a prompt that say whether to think: empty where the model chooses."""

    @property
    def thought_ids(self) -> tuple[int, int] | None:
        """Ids of `<think>` and `</think>`, where both are tokens."""
        if not {Special.THINK, Special.END_THINK} <= self.tokenizer.special_names:
            return None
        return self.tokenizer.think, self.tokenizer.end_think

    def chosen(self, prompt: Sequence[int]) -> Thinking:
        """What the last ids of a prompt say about thinking: they force it, forbid it, or leave it to the model."""
        modes: tuple[Thinking, Thinking] = ("off", "on")
        for mode in modes:
            ids = self.choice(mode)
            if ids and list(prompt[-len(ids) :]) == ids:
                return mode
        return "auto"

    def as_written(self, message: Message) -> bool:
        """Whether an earlier turn stands in a conversation as the assistant wrote it, so that it may be trained there."""
        return message.reasoning is None

    @property
    @abstractmethod
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a turn; the first is the one that `render` writes."""

    @property
    @abstractmethod
    def pad(self) -> int:
        """Id that fills the rest of a row. No loss counts it and nothing attends to it."""

    @property
    def bos(self) -> int | None:
        """Id that opens every conversation, or None where the format has none."""
        return None

    @property
    def template(self) -> str | None:
        """A jinja2 chat template that writes the same prompts, for a checkpoint that leaves the house; None: there is none."""
        return None

    def samples(self, messages: Sequence[Message]) -> list[Rendered]:
        """Renderings in which each assistant turn is trained exactly once, as it was written.

        A format that drops the reasoning of earlier turns needs one rendering for each turn that reasons: there that
        turn is the last one. A conversation of single answers needs one only. Empty without an assistant turn.
        """
        turns = [number for number, message in enumerate(messages) if message.role == "assistant"]
        ends = [number for number in turns if not self.as_written(messages[number]) or number == turns[-1]]
        starts = [0, *(end + 1 for end in ends)]
        return [self.render(messages[: end + 1], train_from=start) for start, end in zip(starts, ends)]


def check_turns(messages: Sequence[Message], roles: Sequence[str]) -> None:
    """Refuse what no template can write: nobody speaking, a role it does not know, an answer to no one."""
    before = ""
    for number, message in enumerate(messages, start=1):
        where = f"message {number}"
        if message.role not in roles:
            raise DataError(
                f"this chat format has no role {message.role!r}", where=where, remedy=f"It has {', '.join(roles)}."
            )
        if message.role == "assistant" and before != "user":
            raise DataError(
                f"an assistant turn after {before or 'nothing'}",
                where=where,
                remedy="An assistant answers a user turn.",
            )
        if message.tool_calls:
            raise DataError(
                "calls of tools, which are not trained on", where=where, remedy="Leave conversations with tools out."
            )
        if message.reasoning is not None and message.role != "assistant":
            raise DataError(f"a {message.role} turn with reasoning", where=where, remedy="Only the assistant reasons.")
        before = message.role if message.role != "system" else before
    if not before:
        raise DataError("a conversation without a user turn", where="messages", remedy="Add one.")
