"""A chat template that came with a checkpoint of an unknown family: rendered in jinja2's sandbox, to chat, never to train.

A template says how a conversation looks, not which of its tokens the assistant wrote. Training needs to know, so
`render` refuses; a family that is to be trained gets a file beside this one.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rorqual.core.errors import DataError
from rorqual.core.records import Message, Thinking, Tool, ToolCall
from rorqual.data.chat.base import ChatFormat, Rendered
from rorqual.data.chat.calls import (
    DEEPSEEK,
    DEEPSEEK_FRAME,
    FENCED_FRAME,
    HERMES,
    HERMES_FRAME,
    WHITE,
    CallForm,
    CallFrame,
)
from rorqual.data.chat.marks import NAME_OF
from rorqual.data.chat.reply import Begins, ReplyForm, Trim
from rorqual.data.chat.tools import check_tools, has_tools, schema, spelt, turns
from rorqual.data.tokenizer import Special, Tokenizer

MAX_OUTPUT = 4_000_000
"""Characters that a template may write before it is stopped; the longest context of the field holds less."""


class TemplateChat(ChatFormat):
    """Prompts by a jinja2 chat template. `where` names the template in errors; `stop` are the names of its end tokens.

    Whether it opens the thinking in its prompts is found by asking it once: then a reply begins inside.
    """

    name = "template"

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: str,
        *,
        where: str = "chat template",
        bos: str = Special.BOS,
        stop: Sequence[str] = (Special.EOS,),
    ) -> None:
        super().__init__(tokenizer)
        self._opens: dict[Thinking, bool] = {}
        self.where, self._source = where, template
        self._bos, self._stop = str(bos), [str(name) for name in stop]
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = self._refused
        environment.filters["tojson"] = spelt  # jinja2's own escapes for HTML; models were trained on transformers'
        try:
            self._template = environment.from_string(template)
        except jinja2.TemplateError as error:
            raise DataError(f"not a jinja2 template: {error}", where=where, remedy="Restore the file.") from None

    def render(
        self,
        messages: Sequence[Message],
        *,
        thinking: Thinking = "auto",
        continue_: bool = False,
        train_from: int = 0,
    ) -> Rendered:
        """Always refused: a template has no loss mask, and training on everything would be a guess."""
        raise DataError(
            "a chat template does not say which tokens the assistant wrote, so it has no loss mask to train with",
            where=self.where,
            remedy="Train with a known chat format (chat=deepseek), or write one beside rorqual/data/chat/deepseek.py.",
        )

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return tuple(self.tokenizer.special(name) for name in self._stop)

    @property
    def pad(self) -> int:
        """An end token: nothing is trained with a template, so nothing is padded."""
        return self.stop_ids[0]

    @property
    def bos(self) -> int | None:
        return self.tokenizer.special(self._bos) if self._bos else None

    @property
    def template(self) -> str:
        """The template itself, as it came."""
        return self._source

    def choice(self, thinking: Thinking) -> list[int]:
        """Empty: what a template does to make a model think is its own secret."""
        return []

    def kept(self, message: Message, thinking: Thinking = "auto") -> Message:
        """Content and reasoning without the white space around them."""
        reasoning = None if message.reasoning is None else message.reasoning.strip()
        return Message("assistant", message.text if reasoning is None else message.text.strip(), reasoning)

    def n_thought(self, ids: Sequence[int]) -> int:
        # By halves: a reply of 8,000 tokens read at each of them would take a minute.
        return bisect_left(range(len(ids)), True, key=lambda n: Special.END_THINK in self._text(ids[: n + 1]))

    def prompt(self, messages: Sequence[Message], thinking: Thinking = "auto", tools: Sequence[Tool] = ()) -> list[int]:
        """Ids of the template's text. What the messages say stays text, also where it spells a special token."""
        self.check_parts(messages)
        if tools or has_tools(messages):
            self._check(messages, tools)
        as_text = self.call_form is DEEPSEEK
        rows = [_row(message, as_text) for message in messages]
        hidden, pieces = _hide([rows, [schema(tool) for tool in tools]], self.tokenizer, self._source)
        variables: dict[str, Any] = {} if thinking == "auto" else {"thinking": thinking == "on"}
        variables |= {} if thinking == "auto" else {"enable_thinking": thinking == "on"}
        parts: list[str] = []
        size = 0
        try:
            for part in self._template.generate(
                messages=hidden[0],
                tools=hidden[1] or None,
                add_generation_prompt=True,
                bos_token=self._bos,
                eos_token=self._stop[0] if self._stop else "",
                **variables,
            ):
                parts.append(part)
                size += len(part)
                if size > MAX_OUTPUT:
                    self._refused(f"it wrote more than {MAX_OUTPUT} characters")
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            self._refused(str(error))
        return self._ids("".join(parts), pieces)

    @property
    def thinks(self) -> bool:
        """Found by the template's own text: whether it reads one of the two names of the switch."""
        return re.search(r"\b(enable_)?thinking\b", self._source) is not None

    @property
    def spoken(self) -> bool:
        return True

    @property
    def call_form(self) -> CallForm | None:
        """Found by the template's own text: it must speak of tools, and of one of the marks that we can read."""
        if not re.search(r"\btools\b", self._source):
            return None
        return next((form for form in (HERMES, DEEPSEEK) if NAME_OF[form.begin] in self._source), None)

    @property
    def call_frame(self) -> CallFrame | None:
        """The older of DeepSeek's two ways where the template writes a fence."""
        if self.call_form is DEEPSEEK:
            return FENCED_FRAME if "```json" in self._source else DEEPSEEK_FRAME
        return None if self.call_form is None else HERMES_FRAME

    def reply_form(self, thinking: Thinking) -> ReplyForm:
        """What stands before the first `</think>` is reasoning, if template or tokenizer know that mark; else only where `<think>` comes
        first, so that a model that does not think is not waited for.

        Where the prompt has opened the thinking, a reply without `</think>` is all reasoning, and its content empty.
        """
        known = Special.END_THINK in self._source or Special.END_THINK in self.tokenizer.special_names
        begins: Begins = "thought" if self._opened(thinking) else "late" if known else "mark"
        return ReplyForm(begins, WHITE, Trim(WHITE, WHITE), indented=True, empty="kept")

    def _check(self, messages: Sequence[Message], tools: Sequence[Tool]) -> None:
        if not self.takes_tools:
            raise DataError(
                "the chat template has no way to write tools that we can read back",
                where=self.where,
                remedy="Leave them out, or use a model of a family that was trained with tools.",
            )
        check_tools(tools)
        turns(messages)

    def _opened(self, thinking: Thinking) -> bool:
        if thinking not in self._opens:
            asked = self.tokenizer.decode(self.prompt([Message("user", "?")], thinking), specials=True)
            self._opens[thinking] = asked.rstrip().endswith(Special.THINK)
        return self._opens[thinking]

    def _text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, specials=True)

    def _refused(self, reason: str) -> NoReturn:
        raise DataError(f"the chat template failed: {reason}", where=self.where, remedy="Use a known chat format.")

    def _ids(self, text: str, pieces: dict[str, str]) -> list[int]:
        ids: list[int] = []
        start = 0
        for at, mark in enumerate(text):
            if mark in pieces:
                ids += self.tokenizer.encode_trusted(text[start:at]) + self.tokenizer.encode(pieces[mark])
                start = at + 1
        return ids + self.tokenizer.encode_trusted(text[start:])


def _row(message: Message, as_text: bool) -> dict[str, Any]:
    """A message as templates expect it: arguments are a mapping, or text where the template puts them together as text."""
    row: dict[str, Any] = {"role": str(message.role), "content": message.text}
    if message.reasoning is not None:
        row["reasoning_content"] = message.reasoning
    if message.tool_calls:
        row["tool_calls"] = [
            {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": _arguments(call, as_text)}}
            for call in message.tool_calls
        ]
    return row | ({} if message.tool_call_id is None else {"tool_call_id": message.tool_call_id})


def _arguments(call: ToolCall, as_text: bool) -> Any:
    if as_text:
        return call.arguments
    try:
        return json.loads(call.arguments)
    except (ValueError, RecursionError):
        return call.arguments


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        yield from _strings(list(value.values()))
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)


def _hide(values: list[Any], tokenizer: Tokenizer, template: str) -> tuple[list[Any], dict[str, str]]:
    """Messages and tools for a template, in which one private character stands for each special token's name that a user wrote.

    The template's text is encoded with special tokens; these characters are put back afterwards, as plain text. A
    template may still cut, strip and compare what the messages say.
    """
    said = "\n".join(_strings(values))
    free = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in said + template)
    names = sorted(tokenizer.special_names, key=len, reverse=True)
    marks = {name: next(free) for name in names if name in said}

    def hide(value: Any) -> Any:
        if isinstance(value, dict):
            return {hide(key): hide(one) for key, one in value.items()}
        if isinstance(value, list):
            return [hide(one) for one in value]
        if isinstance(value, str):
            for name, mark in marks.items():
                value = value.replace(name, mark)
        return value

    return hide(values), {mark: name for name, mark in marks.items()}
