"""The base class of chat formats that are implemented in Python instead of a jinja2 template."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from rorqual.core.errors import DataError
from rorqual.core.records import Message, Thinking, Tool
from rorqual.data.chat.chat_format import ChatFormat, Rendered, check_turns
from rorqual.data.chat.special_tokens import SpecialTokenText
from rorqual.data.chat.tools import check_tools, has_tools, turns
from rorqual.data.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant")


class TurnChat(ChatFormat):
    """Base class of chat formats that are implemented in Python.

    A prompt consists of an opening, such as the BOS token, and turns. An assistant turn consists of a header, the ids that
    force or prevent thinking (`choice`), a reply and an end token. The reply is encoded separately from the header, because a
    model generates it separately. A published template encodes header and reply as one text. This gives different ids
    only if the reply begins with white space. Conversations with tools are supported as prompts only, because their
    loss mask is not defined.
    """

    marks: ClassVar[tuple[str, ...]]
    """Special tokens that the format requires."""
    ends: ClassVar[tuple[str, ...]]
    """Names of tokens that end a reply. Names that the tokenizer lacks are ignored. `render` writes the first name that
    the tokenizer has."""
    pads: ClassVar[tuple[str, ...]]
    """Names of padding tokens in order of preference. The first name that is in the vocabulary is used."""
    probes: ClassVar[tuple[tuple[Message, ...], ...]] = ()
    """Additional conversations. `find.py` renders them to recognise the chat templates of this format."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self._special_text = SpecialTokenText(tokenizer, ())
        known = tokenizer.special_names
        if missing := [mark for mark in self.marks if mark not in known]:
            raise DataError(
                f"the tokenizer lacks {', '.join(missing)}, which chat format '{self.name}' requires",
                where=tokenizer.where,
                remedy="Use the tokenizer that the model was trained with, or set `chat` to the format of this tokenizer.",
            )
        self.stop_ids = tuple(tokenizer.special(mark) for mark in self.ends if mark in known)
        self.pad = next(tokenizer.special(mark) for mark in self.pads if mark in known)

    # ---- each family defines

    @abstractmethod
    def _opening(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids before the first turn."""

    @abstractmethod
    def _turn(self, message: Message, number: int) -> list[int]:
        """Return the ids of a user or system turn, or an empty list if the opening already contains the turn."""

    @abstractmethod
    def _header(self) -> list[int]:
        """Return the ids that open an assistant turn."""

    @abstractmethod
    def _reply(self, message: Message, thinking: Thinking, *, closed: bool) -> list[int]:
        """Return the ids of the last reply, including the ids of `choice`, without the end token.

        If `closed` is false, the model continues the reply, which may be incomplete.
        """

    def _earlier_reply(self, message: Message) -> list[int]:
        """Return the ids of an earlier reply as part of the context, without the end token."""
        return self.tokenizer.encode(message.text)

    def _gap(self) -> list[int]:
        """Return the ids between two turns."""
        return []

    def _no_reply(self, before: str) -> list[int]:
        """Return the ids between a turn without a reply and the next user turn. `before` is the role of the turn without a
        reply: `user` or `tool`."""
        return []

    # ---- each family with tools also defines

    def _opening_with_tools(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[int]:
        """Return the ids that open a conversation with tools. The opening includes the first system turn, if any."""
        raise NotImplementedError

    def _earlier_assistant_turn(self, message: Message, before: str, *, current: bool) -> list[int]:
        """Return the ids of a complete earlier assistant turn in a conversation with tools.

        `before` is the role of the previous turn. `current` is true if no user turn follows this turn.
        """
        raise NotImplementedError

    def _tool_results(self, turn: Sequence[Message]) -> list[int]:
        """Return the ids of a turn with tool results."""
        raise NotImplementedError

    def _turn_with_tools(self, message: Message, number: int, tools: Sequence[Tool], *, first: bool) -> list[int]:
        """Return the ids of a user or system turn. `number` is the index of the turn; `first` is true for the first user
        turn."""
        return self._turn(message, number)

    # ---- common to all families

    def prompt(self, messages: Sequence[Message], thinking: Thinking = "auto", tools: Sequence[Tool] = ()) -> list[int]:
        """Return the token ids of the prompt. Raises DataError if the last turn is an assistant turn."""
        self.check_parts(messages)
        if tools or has_tools(messages):
            return self._prompt_with_tools(messages, thinking, tools)
        check_turns(messages, ROLES)
        if messages[-1].role == "assistant":
            raise DataError("the last turn is an assistant turn", where="messages", remedy="End with a user turn.")
        return [*self._conversation(messages).ids, *self._gap(), *self._header(), *self.thinking_suffix(thinking)]

    def render(
        self,
        messages: Sequence[Message],
        *,
        thinking: Thinking = "auto",
        continue_: bool = False,
        train_from: int = 0,
    ) -> Rendered:
        """Return the token ids and the loss mask of a whole conversation (see `ChatFormat.render`).

        Earlier turns that are rendered without their reasoning get no loss: a loss would teach the model to answer
        without thinking. For each such turn, `samples` adds a rendering that ends with this turn, and there the turn
        gets a loss.
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
            raise DataError(
                f"the last turn {fault} with thinking={thinking}", where="messages", remedy="Use thinking='auto'."
            )
        choice = self.thinking_suffix(thinking)
        reply = self._reply(last, thinking, closed=not continue_)[len(choice) :]
        reply += [] if continue_ else self.stop_ids[:1]
        history = self._conversation(messages[:-1], train_from)
        header = [*self._gap(), *self._header(), *choice]
        trained = train_from < len(messages)
        mask = [*history.mask, *[False] * len(header), *[trained] * len(reply)]
        return Rendered([*history.ids, *header, *reply], mask)

    def _prompt_with_tools(self, messages: Sequence[Message], thinking: Thinking, tools: Sequence[Tool]) -> list[int]:
        if not self.takes_tools:
            raise DataError(
                f"chat format '{self.name}' does not support tools",
                where="tools" if tools else "messages",
                remedy="Remove the tools, or use a model of a family that was trained with tools.",
            )
        check_tools(tools)
        parts = turns(messages)
        last_user = max((number for number, turn in enumerate(parts) if turn[0].role == "user"), default=-1)
        ids = self._opening_with_tools(messages, tools)
        before = ""
        for number, turn in enumerate(parts):
            message = turn[0]
            if message.role == "assistant":
                turn_ids = self._earlier_assistant_turn(message, before, current=number > last_user)
            elif message.role == "tool":
                turn_ids = self._tool_results(turn)
            else:
                turn_ids = self._turn_with_tools(message, number, tools, first=message.role == "user" and not before)
                if message.role == "user" and before in ("user", "tool"):
                    turn_ids = [*self._no_reply(before), *turn_ids]
            ids += [*(self._gap() if ids and turn_ids else ()), *turn_ids]
            before = message.role if message.role != "system" else before
        return [*ids, *self._reply_opening(before, thinking)]

    def _reply_opening(self, before: str, thinking: Thinking) -> list[int]:
        """Return the ids that open the reply in a conversation with tools. `before` is the role of the last turn."""
        return [*self._gap(), *self._header(), *self.thinking_suffix(thinking)]

    def _conversation(self, messages: Sequence[Message], train_from: int = 0) -> Rendered:
        """Render complete turns as the context of later turns."""
        ids = self._opening(messages)
        mask = [False] * len(ids)
        before = ""
        for number, message in enumerate(messages):
            if message.role == "assistant":
                context, reply = self._header(), [*self._earlier_reply(message), *self.stop_ids[:1]]
            else:
                context, reply = self._turn(message, number), []
                if message.role == before == "user":
                    context = [*self._no_reply(before), *context]
            before = message.role if message.role != "system" else before
            if ids and context:
                context = [*self._gap(), *context]
            trained = self.as_written(message) and number >= train_from
            ids += [*context, *reply]
            mask += [*[False] * len(context), *[trained] * len(reply)]
        return Rendered(ids, mask)
