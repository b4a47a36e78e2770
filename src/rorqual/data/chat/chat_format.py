"""The base class of chat formats. A format renders messages to token ids with a loss mask and parses replies to messages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rorqual.core.content_parts import ContentPart, TextPart, first_unsupported_part
from rorqual.core.errors import DataError
from rorqual.core.records import Message, Thinking, Tool
from rorqual.core.registry import Registered
from rorqual.data.chat.calls import ToolCallSyntax, ToolCallTemplate
from rorqual.data.chat.reply import ReplyRules
from rorqual.data.chat.special_tokens import ReplySpecialTokens
from rorqual.data.chat.stream import ReplyReader
from rorqual.data.tokenizer import SpecialToken, Tokenizer


@dataclass(frozen=True)
class RenderedConversation:
    """The token ids of a conversation, and the loss mask. `mask[i]` is true if the assistant wrote `ids[i]`."""

    ids: list[int]
    mask: list[bool]

    @property
    def n_trained_tokens(self) -> int:
        """Number of tokens in the loss. The first token of a conversation is excluded, because no position predicts the first
        token."""
        return sum(self.mask[1:])


class ChatFormat(Registered, ABC):
    """The chat format of a model family. Each model family has one file in this folder.

    Only the chat format decides which special tokens start, end and pad sequences. Other code must get the start, end and
    padding tokens from the format, not from the tokenizer.
    """

    name: str
    parts: ClassVar[tuple[type[ContentPart], ...]] = (TextPart,)
    """Classes of content parts that the format supports. `prompt` and `render` raise an error for parts of any other class."""
    stop_ids: tuple[int, ...]
    """Token ids that end an assistant turn. `render` ends assistant turns with the first of these token ids."""
    pad: int
    """The token id of padding. Padding tokens have no loss and are never attended to."""
    bos: int | None = None
    """The id of the first token of every conversation, or None."""
    template: str | None = None
    """An equivalent jinja2 chat template for exported checkpoints, or None if the format has no template."""
    call_form: ToolCallSyntax | None = None
    """The syntax of tool calls in replies, or None if the format has no tool calls."""
    call_frame: ToolCallTemplate | None = None
    """The template of a reply that consists of tool calls, or None if the format has no tool calls. `parse` reads replies that
    this template writes."""
    thinks: bool = True
    """Whether models of this family were trained to think when a prompt requests thinking."""
    tags_as_text: bool = False
    """Whether thinking tags are also recognised if a reply spells them with ordinary tokens."""

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
        tools: Sequence[Tool] = (),
    ) -> RenderedConversation:
        """Return the token ids and the loss mask of a whole conversation.

        `prompt(messages[:-1], thinking)` is always a prefix of `render(messages, thinking=thinking)`. The loss mask of the last
        turn covers all tokens after the prompt, up to and including the end token of the turn. With `thinking="auto"` the model
        chooses whether to think, so the tokens of this choice are in the loss. If `thinking` is `on` or `off`, the tokens that
        force or prevent thinking are part of the prompt and are not in the loss. Text that a template writes after the end
        token belongs to the next turn.

        `continue_` omits the end token of the last assistant turn, so that the model can continue the turn. Messages whose
        index is below `train_from` are not in the loss, nor are messages with `in_loss=False`. `tools` are in the prompt.
        """

    @abstractmethod
    def prompt(self, messages: Sequence[Message], thinking: Thinking = "auto", tools: Sequence[Tool] = ()) -> list[int]:
        """Return the token ids of the prompt, which ends before the first token of the reply. `tools` are the tools that the model may call."""

    def prompt_with_schema(
        self, messages: Sequence[Message], thinking: Thinking, tools: Sequence[Tool], schema: Mapping[str, Any]
    ) -> list[int]:
        """Return the token ids of a prompt whose answer must match a JSON schema.

        Most formats do not write the schema into the prompt, and return `prompt(messages, thinking, tools)`.
        """
        return self.prompt(messages, thinking, tools)

    @abstractmethod
    def reply_rules(self, thinking: Thinking) -> ReplyRules:
        """Return the rules for parsing a reply to `prompt(..., thinking)`."""

    def find_unsupported_part(self, messages: Sequence[Message]) -> tuple[int, int, ContentPart] | None:
        """Return (message index, part index, part) of the first content part that the format does not support, or None. Both
        indices start at 0."""
        for number, message in enumerate(messages):
            place = first_unsupported_part(message.content, self.parts)
            if place is not None and not isinstance(message.content, str):
                return number, place, message.content[place]
        return None

    def check_parts(self, messages: Sequence[Message]) -> None:
        """Raise a DataError that names the first content part that the format does not support, and the position of this
        part."""
        if unsupported := self.find_unsupported_part(messages):
            number, place, part = unsupported
            raise DataError(
                f"a part of type '{part.type}': chat format '{self.name}' does not accept {part.plural}",
                where=f"message {number + 1}, content[{place}]",
                remedy=f"Send parts of type {', '.join(kind.model_fields['type'].default for kind in self.parts)}, "
                "or use a model that was trained with such parts.",
            )

    def reader(
        self, thinking: Thinking, tools: Sequence[Tool] = (), *, calls: str = "call_", plain: bool = False
    ) -> ReplyReader:
        """Return a streaming parser for a reply to `prompt(..., thinking, tools)`.

        The id of a tool call consists of the prefix `calls` and the index of the call. Without `tools`, text in the syntax of
        a call is content. With `plain`, the whole reply is content.
        """
        syntax = self.call_form if tools and not plain else None
        form = ReplyRules("answer") if plain else self.reply_rules(thinking)
        return ReplyReader(self.reply_special_tokens(syntax, plain=plain), form, syntax, tools, self.stop_ids, calls)

    def parse(self, ids: Iterable[int], thinking: Thinking = "auto", tools: Sequence[Tool] = ()) -> Message:
        """Parse the token ids of a complete or truncated reply to `prompt(..., thinking, tools)`.

        Token ids after the first end token are ignored. Special tokens that the format does not use appear by name in the
        message.
        """
        reader = self.reader(thinking, tools)
        reader.feed(*ids)
        reader.finish()
        return reader.message()

    def reply_special_tokens(self, calls: ToolCallSyntax | None, *, plain: bool = False) -> ReplySpecialTokens:
        """Return the special tokens to recognise in a reply: the thinking tags and the tokens of the call syntax `calls`."""
        names = [] if plain else ["<think>", "</think>", *(calls.special_token_names if calls else ())]
        return ReplySpecialTokens(self.tokenizer, names, spoken=names if self.tags_as_text else ())

    @property
    def takes_tools(self) -> bool:
        """Whether the format supports tools. Without tool support, `prompt` raises an error for tools and tool calls."""
        return self.call_form is not None

    def effective_thinking(self, messages: Sequence[Message], thinking: Thinking) -> Thinking:
        """Return the thinking mode in which a reply to `prompt(messages, thinking)` is parsed.

        The returned mode differs from `thinking` for formats that cannot think after a tool turn.
        """
        return thinking

    @abstractmethod
    def normalized(self, message: Message, thinking: Thinking = "auto") -> Message:
        """Return the assistant message that `parse` returns for the rendered ids of `message`.

        The returned message differs from `message` if the template strips newlines or white space.
        """

    def n_thinking_tokens(self, ids: Sequence[int]) -> int:
        """Return the number of ids before the id that completes the tag `</think>`, or the number of all ids if `</think>` is
        missing."""
        if self.think_tag_ids is not None and not self.tags_as_text:
            return ids.index(self.think_tag_ids[1]) if self.think_tag_ids[1] in ids else len(ids)
        # Binary search, because decoding every prefix of an 8,000-token reply would take a minute.
        decode = self.tokenizer.decode
        return bisect_left(
            range(len(ids)), True, key=lambda n: SpecialToken.END_THINK in decode(ids[: n + 1], specials=True)
        )

    def thinking_suffix(self, thinking: Thinking) -> list[int]:
        """Return the token ids at the end of a prompt that force or prevent thinking, or an empty list if the model chooses
        whether to think."""
        return []

    @property
    def think_tag_ids(self) -> tuple[int, int] | None:
        """The token ids of `<think>` and `</think>`, or None if the tokenizer lacks either token."""
        if not {SpecialToken.THINK, SpecialToken.END_THINK} <= self.tokenizer.special_names:
            return None
        return self.tokenizer.special_id(SpecialToken.THINK), self.tokenizer.special_id(SpecialToken.END_THINK)

    @property
    def end_think_ids(self) -> list[int]:
        """The token ids of `</think>`, the tag that ends the reasoning: one id of a special token, or the ids of the tag's
        characters."""
        return self.tokenizer.encode(SpecialToken.END_THINK) if self.think_tag_ids is None else [self.think_tag_ids[1]]

    def can_limit_thinking(self, thinking: Thinking) -> bool:
        """Return whether an engine can end the reasoning of a reply in mode `thinking` after a number of tokens.

        The engine must see where reasoning begins: in the prompt, or at a `<think>` token.
        """
        begins = self.reply_rules(thinking).begins
        return begins == "thought" or (begins != "answer" and self.think_tag_ids is not None)

    def thinking_mode_of(self, prompt: Sequence[int]) -> Thinking:
        """Return the thinking mode of a prompt, given the prompt's last token ids: `on`, `off`, or `auto` if the model chooses
        whether to think."""
        modes: tuple[Thinking, Thinking] = ("off", "on")
        for mode in modes:
            ids = self.thinking_suffix(mode)
            if ids and list(prompt[-len(ids) :]) == ids:
                return mode
        return "auto"

    def renders_as_written(self, message: Message) -> bool:
        """Return whether an earlier turn is rendered exactly as the assistant wrote the turn. Only a turn rendered as written
        may be trained on."""
        return message.reasoning is None

    def training_renderings(
        self, messages: Sequence[Message], tools: Sequence[Tool] = ()
    ) -> list[RenderedConversation]:
        """Return renderings of a conversation in which each assistant turn is in the loss exactly once, as the assistant wrote
        the turn.

        A format may render an earlier assistant turn differently from the last turn, for example without its reasoning. Each
        earlier turn for which `renders_as_written` is false gets a separate rendering that ends with this turn. A conversation
        in which `renders_as_written` is true for all turns gets one rendering. A conversation without an assistant turn gets no
        rendering.
        """
        turns = [number for number, message in enumerate(messages) if message.role == "assistant"]
        ends = [number for number in turns if not self.renders_as_written(messages[number]) or number == turns[-1]]
        parts = [(messages[: end + 1], start) for start, end in zip([0, *(end + 1 for end in ends)], ends)]
        return [
            self.render(part, train_from=start, tools=tools)
            for part, start in parts
            if any(message.role == "assistant" and message.in_loss for message in part[start:])
        ]
