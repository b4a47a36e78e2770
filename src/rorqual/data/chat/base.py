"""The base class of chat formats: messages to token ids with a loss mask, and a reply's ids back to a message."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rorqual.core.errors import DataError
from rorqual.core.parts import ContentPart, TextPart, foreign_part
from rorqual.core.records import Message, Thinking, Tool
from rorqual.data.chat.calls import CallForm, CallFrame
from rorqual.data.chat.reply import ReplyForm
from rorqual.data.chat.special_tokens import SpecialTokenText
from rorqual.data.chat.stream import Reader
from rorqual.data.tokenizer import Special, Tokenizer


@dataclass(frozen=True)
class Rendered:
    """A conversation as token ids. `mask[i]` is true if the assistant wrote `ids[i]`; only such tokens may be trained on."""

    ids: list[int]
    mask: list[bool]

    @property
    def n_trained(self) -> int:
        """Number of tokens in the loss. The first token of a sequence has no prediction."""
        return sum(self.mask[1:])


class ChatFormat(ABC):
    """How one model family writes conversations. Each family has one file in this folder.

    The format alone decides which special tokens start, end and pad sequences; no other code reads them from the tokenizer.
    """

    name: str
    parts: ClassVar[tuple[type[ContentPart], ...]] = (TextPart,)
    """Content parts that the format can write. `prompt` and `render` refuse all others."""

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
        """Return token ids and loss mask of a whole conversation.

        `thinking` says who decided whether the last turn thinks. With `auto` the assistant decided, and its choice is
        trained. With `on` or `off` the prompt decided, and the choice is context. Therefore `prompt(messages[:-1], thinking)`
        is a prefix of `render(messages, thinking=thinking)`. If only the last turn is trained, the mask covers the rest, up
        to and including the end token of the turn. Text that a template writes after that token belongs to the next turn.

        `continue_` leaves the last assistant turn open, so that the model can continue it. Turns before message number
        `train_from` are context only.
        """

    @abstractmethod
    def prompt(self, messages: Sequence[Message], thinking: Thinking = "auto", tools: Sequence[Tool] = ()) -> list[int]:
        """Return the prompt's token ids, up to where the assistant's reply begins. `tools` are the tools it may call."""

    @abstractmethod
    def reply_form(self, thinking: Thinking) -> ReplyForm:
        """Return how to parse a reply to `prompt(..., thinking)`."""

    def foreign_part(self, messages: Sequence[Message]) -> tuple[int, int, ContentPart] | None:
        """Return the first unsupported content part, with the 0-based indices of its message and of the part."""
        for number, message in enumerate(messages):
            place = foreign_part(message.content, self.parts)
            if place is not None and not isinstance(message.content, str):
                return number, place, message.content[place]
        return None

    def check_parts(self, messages: Sequence[Message]) -> None:
        """Raise a DataError that names the first unsupported content part and its place."""
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
        """The syntax of tool calls in replies, or None if the format has none."""
        return None

    @property
    def call_frame(self) -> CallFrame | None:
        """How to write a reply that consists of tool calls so that `parse` reads them; None without a `call_form`."""
        return None

    @property
    def thinks(self) -> bool:
        """Whether models of this family were trained to think when the prompt asks for it."""
        return True

    @property
    def spoken(self) -> bool:
        """Whether thinking tags in a reply count as text too, not only as special tokens."""
        return False

    def reader(
        self, thinking: Thinking, tools: Sequence[Tool] = (), *, calls: str = "call_", plain: bool = False
    ) -> Reader:
        """Return a reader for a reply to `prompt(..., thinking, tools)`. Call ids are `calls` plus the call's index.

        Without `tools` nothing is parsed as a call: its text is content. `plain` reads the whole reply as content.
        """
        written = self.call_form if tools and not plain else None
        form = ReplyForm("answer") if plain else self.reply_form(thinking)
        return Reader(self.reply_marks(written, plain=plain), form, written, tools, self.stop_ids, calls)

    def parse(self, ids: Iterable[int], thinking: Thinking = "auto", tools: Sequence[Tool] = ()) -> Message:
        """Parse the token ids of a reply to `prompt(..., thinking, tools)`, complete or cut off at any token.

        Ids after the first end token are ignored. Special tokens that have no meaning in the format appear by name.
        """
        reader = self.reader(thinking, tools)
        reader.feed(*ids)
        reader.finish()
        return reader.message()

    def reply_marks(self, calls: CallForm | None, *, plain: bool = False) -> SpecialTokenText:
        """Return the special tokens that have a meaning in a reply, with those of tool calls if `calls` is given."""
        names = [] if plain else ["<think>", "</think>", *(calls.marks if calls else ())]
        return SpecialTokenText(self.tokenizer, names, spoken=names if self.spoken else ())

    @property
    def takes_tools(self) -> bool:
        """Whether the format can write tools and tool calls. If not, `prompt` refuses them."""
        return self.call_form is not None

    def mode(self, messages: Sequence[Message], thinking: Thinking) -> Thinking:
        """Return the thinking mode for parsing a reply to `prompt(messages, thinking)`.

        Some formats cannot think after a tool turn.
        """
        return thinking

    @abstractmethod
    def kept(self, message: Message, thinking: Thinking = "auto") -> Message:
        """Return the assistant message as it reads after being rendered and parsed: `parse` of its ids equals `kept(message)`.

        A template that strips newlines loses them; a format that strips nothing returns `message` itself.
        """

    @abstractmethod
    def n_thought(self, ids: Sequence[int]) -> int:
        """Return the number of ids before the tag that ends thinking, or all of them if it does not occur."""

    @abstractmethod
    def choice(self, thinking: Thinking) -> list[int]:
        """Return the ids at the end of a prompt that force or forbid thinking. Empty if the model chooses."""

    @property
    def thought_ids(self) -> tuple[int, int] | None:
        """The ids of `<think>` and `</think>`, if both are tokens."""
        if not {Special.THINK, Special.END_THINK} <= self.tokenizer.special_names:
            return None
        return self.tokenizer.think, self.tokenizer.end_think

    def chosen(self, prompt: Sequence[int]) -> Thinking:
        """Return the thinking mode that the last ids of a prompt set: `on`, `off`, or `auto` if they leave it to the model."""
        modes: tuple[Thinking, Thinking] = ("off", "on")
        for mode in modes:
            ids = self.choice(mode)
            if ids and list(prompt[-len(ids) :]) == ids:
                return mode
        return "auto"

    def as_written(self, message: Message) -> bool:
        """Return whether an earlier turn is rendered exactly as the assistant wrote it, so that it may be trained there."""
        return message.reasoning is None

    @property
    @abstractmethod
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a turn. `render` writes the first."""

    @property
    @abstractmethod
    def pad(self) -> int:
        """The padding id. It has no loss, and no token attends to it."""

    @property
    def bos(self) -> int | None:
        """The id that starts every conversation, or None."""
        return None

    @property
    def template(self) -> str | None:
        """An equivalent jinja2 chat template for exported checkpoints, or None if there is none."""
        return None

    def samples(self, messages: Sequence[Message]) -> list[Rendered]:
        """Return renderings in which each assistant turn is trained exactly once, as the assistant wrote it.

        A format that drops the reasoning of earlier turns needs one rendering for each turn with reasoning, in which that turn
        is the last. Other conversations need one. Without an assistant turn the list is empty.
        """
        turns = [number for number, message in enumerate(messages) if message.role == "assistant"]
        ends = [number for number in turns if not self.as_written(messages[number]) or number == turns[-1]]
        starts = [0, *(end + 1 for end in ends)]
        return [self.render(messages[: end + 1], train_from=start) for start, end in zip(starts, ends)]


def check_turns(messages: Sequence[Message], roles: Sequence[str]) -> None:
    """Raise a DataError for what no template can write: an unknown role, or an assistant turn that answers no user turn."""
    before = ""
    for number, message in enumerate(messages, start=1):
        where = f"message {number}"
        if message.role not in roles:
            raise DataError(
                f"this chat format has no role {message.role!r}",
                where=where,
                remedy=f"Use one of {', '.join(roles)}.",
            )
        if message.role == "assistant" and before != "user":
            raise DataError(
                f"an assistant turn follows {before or 'no'} turn",
                where=where,
                remedy="Put a user turn before it.",
            )
        if message.tool_calls:
            raise DataError(
                "tool calls cannot be trained on", where=where, remedy="Remove conversations with tools from the data."
            )
        if message.reasoning is not None and message.role != "assistant":
            raise DataError(
                f"a {message.role} turn has reasoning", where=where, remedy="Only assistant turns may have reasoning."
            )
        before = message.role if message.role != "system" else before
    if not before:
        raise DataError("the conversation has no user turn", where="messages", remedy="Add one.")
