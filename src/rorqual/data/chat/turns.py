"""The base class of chat formats that Rorqual knows. Each format has a Jinja template
of prompts in `templates/`, and rules for replies in Python."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, get_args

from rorqual.core.errors import DataError
from rorqual.core.records import Message, Thinking, Tool
from rorqual.data.chat.chat_format import ChatFormat, RenderedConversation
from rorqual.data.chat.prompt_template import REPLY_MARK, PromptTemplate, message_rows, thinking_variables, tool_rows
from rorqual.data.chat.tools import check_tools, group_into_turns, has_tools
from rorqual.data.tokenizer import Tokenizer

TEMPLATES = Path(__file__).parent / "templates"
MARK_CODE = "{{- reply_mark -}}\n"
"""Template code that marks the beginning and the end of replies. This template code is removed from exported templates."""


@cache
def _template_code(file: str) -> str:
    return (TEMPLATES / file).read_text(encoding="utf-8")


class BuiltinChatFormat(ChatFormat):
    """Base class of chat formats that Rorqual knows.

    A prompt consists of an opening, such as the BOS token, and turns. An assistant turn consists of a header, the ids that
    force or prevent thinking (`thinking_suffix`), a reply and an end token. The reply is encoded separately from the header,
    because a model generates it separately. A published template encodes header and reply as one text. The token ids differ
    from the ids of a published template only if the reply begins with white space.
    """

    marks: ClassVar[tuple[str, ...]]
    """Names of the special tokens that the chat format requires."""
    ends: ClassVar[tuple[str, ...]]
    """Names of tokens that end a reply. Names that the tokenizer lacks are ignored. `render` writes the first name that
    the tokenizer has."""
    pads: ClassVar[tuple[str, ...]]
    """Names of padding tokens in order of preference. The first name that is in the vocabulary is used."""
    probes: ClassVar[tuple[tuple[Message, ...], ...]] = ()
    """Additional conversations that `find.py` renders to recognise the chat templates of this format."""
    template_file: ClassVar[str]
    """Name of the format's prompt template in `templates/`."""
    settings: ClassVar[Mapping[str, Any]] = {}
    """Values of the prompt template's variables. Formats that share a template file differ in these values."""
    arguments_as_text: ClassVar[bool] = True
    """Whether the prompt template takes the arguments of tool calls as JSON text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        known = tokenizer.special_names
        if missing := [mark for mark in self.marks if mark not in known]:
            raise DataError(
                f"the tokenizer lacks {', '.join(missing)}, which chat format '{self.name}' requires",
                where=tokenizer.where,
                remedy="Use the tokenizer that the model was trained with, or set `chat` to the format of this tokenizer.",
            )
        self.stop_ids = tuple(tokenizer.special_id(mark) for mark in self.ends if mark in known)
        self.pad = next(tokenizer.special_id(mark) for mark in self.pads if mark in known)
        given = (
            f"{{%- set {name} = {json.dumps(value, ensure_ascii=False)} -%}}\n" for name, value in self.settings.items()
        )
        code = "".join(given) + _template_code(self.template_file)
        self.template = code.replace(MARK_CODE, "")
        self._prompts = PromptTemplate(tokenizer, code, self.template_file, trusted=True)
        question = (Message("user", ""),)
        self._suffixes = {mode: self._segments(question, mode)[-1] for mode in get_args(Thinking)}

    @abstractmethod
    def _reply_ids(self, message: Message, thinking: Thinking, *, closed: bool) -> list[int]:
        """Return the ids of the last reply, including the ids of `thinking_suffix`, without the end token.

        If `closed` is false, the model continues the reply, which may be incomplete.
        """

    def thinking_suffix(self, thinking: Thinking) -> list[int]:
        return list(self._suffixes[thinking])

    def prompt(self, messages: Sequence[Message], thinking: Thinking = "auto", tools: Sequence[Tool] = ()) -> list[int]:
        """Return the token ids of the prompt. Raises DataError if the last turn is an assistant turn."""
        return list(chain.from_iterable(self._segments(messages, thinking, tools)))

    def render(
        self,
        messages: Sequence[Message],
        *,
        thinking: Thinking = "auto",
        continue_: bool = False,
        train_from: int = 0,
        tools: Sequence[Tool] = (),
    ) -> RenderedConversation:
        """Return the token ids and the loss mask of a whole conversation (see `ChatFormat.render`).

        Earlier turns that are rendered without their reasoning get no loss, because a loss on these turns would teach the model
        to answer without thinking. For each earlier turn without a loss, `training_renderings` adds a rendering that ends with
        this turn and in which the turn gets a loss.
        """
        trained = [
            number >= train_from
            and message.in_loss
            and (number == len(messages) - 1 or self.renders_as_written(message))
            for number, message in enumerate(messages)
            if message.role == "assistant"
        ]
        if tools or has_tools(messages):
            return self._render_with_tools(messages, tools, trained)
        if not messages or messages[-1].role != "assistant":
            if continue_:
                raise DataError("no assistant turn to continue", where="messages", remedy="End with an assistant turn.")
            return _join_with_loss_mask(self._segments(messages, thinking, opens_reply=False), trained)
        last = messages[-1]
        self.check_parts(messages)
        if (thinking == "on" and last.reasoning is None) or (thinking == "off" and last.reasoning is not None):
            fault = "has no reasoning" if thinking == "on" else "has reasoning"
            raise DataError(
                f"the last turn {fault} with thinking={thinking}", where="messages", remedy="Use thinking='auto'."
            )
        *segments, header, suffix = self._segments(messages[:-1], thinking)
        reply = self._reply_ids(last, thinking, closed=not continue_)[len(suffix) :]
        reply += [] if continue_ else self.stop_ids[:1]
        return _join_with_loss_mask([*segments, [*header, *suffix], reply], trained)

    def _render_with_tools(
        self, messages: Sequence[Message], tools: Sequence[Tool], trained: Sequence[bool]
    ) -> RenderedConversation:
        """Return the token ids and the loss mask of a conversation with tools, which ends with a reply without reasoning."""
        if messages[-1].role != "assistant" or any(message.reasoning is not None for message in messages):
            raise DataError(
                "a conversation with tools that has reasoning, or does not end with an assistant turn",
                where="messages",
                remedy="Remove the reasoning, and end with an assistant turn.",
            )
        segments = self._segments([*messages, Message("user", "")], "auto", tools, opens_reply=False)
        rendered = _join_with_loss_mask(segments[: 2 * len(trained)], trained)
        replies = [number for number, message in enumerate(messages) if message.role == "assistant"]
        prompts = [
            self.prompt(messages[:end], "auto", tools) for end, is_trained in zip(replies, trained) if is_trained
        ]
        if any(rendered.ids[: len(prompt)] != prompt for prompt in prompts):
            raise DataError(
                f"chat format '{self.name}' opens thinking, so replies without reasoning cannot be trained on",
                where="messages",
                remedy="Remove the tools from the conversation, or use a model with another chat format.",
            )
        return rendered

    def _segments(
        self,
        messages: Sequence[Message],
        thinking: Thinking,
        tools: Sequence[Tool] = (),
        *,
        schema: Mapping[str, Any] | None = None,
        opens_reply: bool = True,
    ) -> list[list[int]]:
        """Return the ids of a prompt as segments. Segments with context alternate with replies, and the last segment is `thinking_suffix`.

        If `opens_reply` is false, the last segment is the context after the last reply.
        """
        self.check_parts(messages)
        if tools or has_tools(messages):
            if not self.takes_tools:
                raise DataError(
                    f"chat format '{self.name}' does not support tools",
                    where="tools" if tools else "messages",
                    remedy="Remove the tools, or use a model of a family that was trained with tools.",
                )
            check_tools(tools)
        messages = list(chain.from_iterable(group_into_turns(messages)))
        typed: dict[str, Any] = {
            "messages": message_rows(messages, as_text=self.arguments_as_text),
            "tools": tool_rows(tools),
        }
        typed |= {} if schema is None else {"response_schema": dict(schema)}
        settings = {"add_generation_prompt": opens_reply, "reply_mark": REPLY_MARK, **thinking_variables(thinking)}
        return self._prompts.segments(typed, settings)


def _join_with_loss_mask(segments: Sequence[Sequence[int]], trained: Sequence[bool]) -> RenderedConversation:
    """Return the joined segments with a loss mask. Every second segment is an assistant's reply. The i-th reply is in the loss
    if `trained[i]` is true."""
    mask: list[bool] = []
    for number, segment in enumerate(segments):
        mask += [number % 2 == 1 and trained[number // 2]] * len(segment)
    return RenderedConversation(list(chain.from_iterable(segments)), mask)
