"""The base of chat formats written in code: turns, header, thinking choice, reply and end token."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from rorqual.core.errors import DataError
from rorqual.core.records import Message, Thinking, Tool
from rorqual.data.chat.base import ChatFormat, Rendered, check_turns
from rorqual.data.chat.special_tokens import SpecialTokenText
from rorqual.data.chat.tools import check_tools, has_tools, turns
from rorqual.data.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant")


class TurnChat(ChatFormat):
    """A conversation is an opening and turns. An assistant turn is a header, a thinking choice, a reply and an end token.

    The reply is encoded separately from the header, because the model generates it that way. A published template encodes
    both as one text; the ids agree unless the reply begins with white space. Conversations with tools can be prompts only:
    their loss mask is uncertain.
    """

    marks: ClassVar[tuple[str, ...]]
    """Special tokens that the format requires."""
    ends: ClassVar[tuple[str, ...]]
    """Tokens that end a reply. The first is written; the others also stop generation if the tokenizer has them."""
    pads: ClassVar[tuple[str, ...]]
    """Padding tokens; the first one that the tokenizer has is used."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self._spelling = SpecialTokenText(tokenizer, ())
        known = tokenizer.special_names
        if missing := [mark for mark in self.marks if mark not in known]:
            raise DataError(
                f"the tokenizer lacks {', '.join(missing)}, which chat format '{self.name}' requires",
                where=tokenizer.where,
                remedy="Use the tokenizer the model was trained with, or set `chat` to this tokenizer's format.",
            )
        self._stops = tuple(tokenizer.special(mark) for mark in self.ends if mark in known)
        self._pad = next(tokenizer.special(mark) for mark in self.pads if mark in known)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return self._stops

    @property
    def pad(self) -> int:
        return self._pad

    # ---- each family defines

    @abstractmethod
    def _opening(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids before the first turn."""

    @abstractmethod
    def _turn(self, message: Message, number: int) -> list[int]:
        """Return a user or system turn; empty if the opening already contains it."""

    @abstractmethod
    def _header(self) -> list[int]:
        """Return the ids that open an assistant turn."""

    @abstractmethod
    def _reply(self, message: Message, thinking: Thinking, *, closed: bool) -> list[int]:
        """Return a last turn from its thinking choice on, without the end token. If not `closed`, it may still continue."""

    def _past(self, message: Message) -> list[int]:
        """Return an earlier reply as later turns see it, without the end token."""
        return self.tokenizer.encode(message.text)

    def _gap(self) -> list[int]:
        """Return the ids between two turns."""
        return []

    # ---- each family with tools also defines

    def _told(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[int]:
        """Return the opening of a conversation with tools, including the first system turn if there is one."""
        raise NotImplementedError

    def _called(self, message: Message, before: str, *, current: bool) -> list[int]:
        """Return a whole earlier assistant turn. `before` is the previous role; `current` if no user turn follows."""
        raise NotImplementedError

    def _answers(self, turn: Sequence[Message]) -> list[int]:
        """Return one turn with tool results."""
        raise NotImplementedError

    def _asks(self, message: Message, number: int, tools: Sequence[Tool], *, first: bool) -> list[int]:
        """Return a user or system turn. `number` is its index among the turns; `first` marks the first user turn."""
        return self._turn(message, number)

    # ---- common to all families

    def prompt(self, messages: Sequence[Message], thinking: Thinking = "auto", tools: Sequence[Tool] = ()) -> list[int]:
        """See `ChatFormat.prompt`. Raises DataError if the last turn is an assistant turn."""
        self.check_parts(messages)
        if tools or has_tools(messages):
            return self._prompt_with_tools(messages, thinking, tools)
        check_turns(messages, ROLES)
        if messages[-1].role == "assistant":
            raise DataError("the last turn is an assistant turn", where="messages", remedy="End with a user turn.")
        return [*self._conversation(messages).ids, *self._gap(), *self._header(), *self.choice(thinking)]

    def render(
        self,
        messages: Sequence[Message],
        *,
        thinking: Thinking = "auto",
        continue_: bool = False,
        train_from: int = 0,
    ) -> Rendered:
        """See `ChatFormat.render`. An earlier turn that is not rendered as it was written is context only.

        Training on a turn without its reasoning would teach the model to answer at once. `samples` trains such turns where
        they are last.
        """
        self.check_parts(messages)
        check_turns(messages, ROLES)
        last = messages[-1]
        if last.role != "assistant":
            if continue_:
                raise DataError("no assistant turn to continue", where="messages", remedy="End with an assistant turn.")
            return self._conversation(messages, train_from)
        if (thinking == "on" and last.reasoning is None) or (thinking == "off" and last.reasoning is not None):
            fault = "has no reasoning" if thinking == "on" else "has reasoning"
            raise DataError(f"the last turn {fault} with thinking={thinking}", where="messages", remedy="Use 'auto'.")
        choice = self.choice(thinking)
        reply = self._reply(last, thinking, closed=not continue_)[len(choice) :]
        reply += [] if continue_ else self._stops[:1]
        history = self._conversation(messages[:-1], train_from)
        given = [*self._gap(), *self._header(), *choice]
        trained = train_from < len(messages)
        return Rendered([*history.ids, *given, *reply], [*history.mask, *[False] * len(given), *[trained] * len(reply)])

    def _prompt_with_tools(self, messages: Sequence[Message], thinking: Thinking, tools: Sequence[Tool]) -> list[int]:
        if not self.takes_tools:
            raise DataError(
                f"chat format '{self.name}' cannot write tools",
                where="tools" if tools else "messages",
                remedy="Remove the tools, or use a model of a family that was trained with tools.",
            )
        check_tools(tools)
        parts = turns(messages)
        last_user = max((number for number, turn in enumerate(parts) if turn[0].role == "user"), default=-1)
        ids = self._told(messages, tools)
        before = ""
        for number, turn in enumerate(parts):
            said = turn[0]
            if said.role == "assistant":
                given = self._called(said, before, current=number > last_user)
            elif said.role == "tool":
                given = self._answers(turn)
            else:
                given = self._asks(said, number, tools, first=said.role == "user" and not before)
            ids += [*(self._gap() if ids and given else ()), *given]
            before = said.role if said.role != "system" else before
        return [*ids, *self._begins_after(before, thinking)]

    def _begins_after(self, before: str, thinking: Thinking) -> list[int]:
        """Return the end of a prompt with tools."""
        return [*self._gap(), *self._header(), *self.choice(thinking)]

    def _conversation(self, messages: Sequence[Message], train_from: int = 0) -> Rendered:
        """Render finished turns as later turns see them."""
        ids = self._opening(messages)
        mask = [False] * len(ids)
        for number, message in enumerate(messages):
            if message.role == "assistant":
                given, reply = self._header(), [*self._past(message), *self._stops[:1]]
            else:
                given, reply = self._turn(message, number), []
            if ids and given:
                given = [*self._gap(), *given]
            trained = self.as_written(message) and number >= train_from
            ids += [*given, *reply]
            mask += [*[False] * len(given), *[trained] * len(reply)]
        return Rendered(ids, mask)

    def _text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, specials=True)
