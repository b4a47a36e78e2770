"""Jinja templates of prompts. Rendering and encoding never turn the text of users into special tokens.
Before a template is rendered, each name of a special token in the text of users, tools and schemas is replaced by a lone
surrogate. If the output contains the name of a special token, the template wrote this name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rorqual.core.content_parts import TextPart, content_json, first_unsupported_part
from rorqual.core.errors import DataError
from rorqual.core.records import Message, Thinking, Tool
from rorqual.data.chat.tools import template_json
from rorqual.data.tokenizer import Tokenizer

MAX_OUTPUT = 4_000_000
"""Maximum number of characters in the output of a template. Prompts that fit current context lengths are shorter."""
REPLY_MARK = "\ud800"
"""A character that Rorqual's templates write before and after each reply, and at the beginning of the next reply."""
FIRST_HIDDEN = ord(REPLY_MARK) + 1
_SURROGATE = re.compile("[\ud800-\udfff]")
FAILURES = (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError)
"""Exceptions that a template raises if the template is broken or hostile, or does not support the conversation."""


def _raise(reason: str) -> NoReturn:
    raise jinja2.TemplateError(reason)


@cache
def _compile(source: str, trusted: bool) -> jinja2.Template:
    kind = jinja2.Environment if trusted else ImmutableSandboxedEnvironment  # the sandbox doubles the time
    environment = kind(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.globals["raise_exception"] = _raise
    # jinja2's `tojson` escapes HTML, but transformers' `tojson`, which models were trained with, does not.
    environment.filters["tojson"] = template_json
    return environment.from_string(source)


class PromptTemplate:
    """A Jinja template of prompts, and the tokenizer that encodes them. `where` names the template in errors.

    A template that is not `trusted` is rendered in jinja2's sandbox.
    """

    def __init__(self, tokenizer: Tokenizer, source: str, where: str, *, trusted: bool = False) -> None:
        self._tokenizer, self._where = tokenizer, where
        names = sorted(tokenizer.special_names, key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, names)) or "(?!)")
        try:
            self._template = _compile(source, trusted)
        except jinja2.TemplateError as error:
            raise DataError(f"not a valid jinja2 template: {error}", where=where, remedy="Restore the file.") from None

    def segments(self, typed: dict[str, Any], settings: Mapping[str, Any]) -> list[list[int]]:
        """Return the token ids of a prompt, cut at the marks of replies.

        `typed` holds the variables with the text of users, such as `messages` and `tools`. Raises DataError if the template
        fails.
        """
        hidden: dict[str, str] = {}
        variables = self._hide_special_tokens(typed, hidden) | dict(settings)
        by_char = {char: name for name, char in hidden.items()}
        return [self._encode(part, by_char) for part in self._render(variables).split(REPLY_MARK)]

    def _render(self, variables: dict[str, Any]) -> str:
        parts: list[str] = []
        size = 0
        try:
            for part in self._template.generate(variables):
                parts.append(part)
                size += len(part)
                if size > MAX_OUTPUT:
                    _raise(f"its output has more than {MAX_OUTPUT} characters")
        except FAILURES as error:
            raise DataError(
                f"the chat template failed: {error}", where=self._where, remedy="Use a known chat format."
            ) from None
        return "".join(parts)

    def _hide_special_tokens(self, value: Any, hidden: dict[str, str]) -> Any:
        """Return `value` with each name of a special token replaced by a lone surrogate. `hidden` maps each replaced name to its surrogate."""
        if isinstance(value, str):
            check_no_surrogates(value)
            return self._names.sub(
                lambda match: hidden.setdefault(match.group(), chr(FIRST_HIDDEN + len(hidden))), value
            )
        if isinstance(value, dict):
            return {
                self._hide_special_tokens(key, hidden): self._hide_special_tokens(item, hidden)
                for key, item in value.items()
            }
        return [self._hide_special_tokens(item, hidden) for item in value] if isinstance(value, list | tuple) else value

    def _encode(self, text: str, by_char: Mapping[str, str]) -> list[int]:
        ids: list[int] = []
        start = 0
        for match in _SURROGATE.finditer(text):
            ids += self._tokenizer.encode_trusted(text[start : match.start()])
            ids += self._tokenizer.encode(by_char[match.group()])
            start = match.end()
        return ids + self._tokenizer.encode_trusted(text[start:])


def check_no_surrogates(text: str) -> None:
    """Raise DataError if a text contains a lone surrogate."""
    if match := _SURROGATE.search(text):
        raise DataError(
            f"the lone surrogate {match.group()!a} at character {match.start()} cannot be encoded as UTF-8",
            where="messages",
            remedy="Remove this character. A lone surrogate is often half of an emoji that was split in JSON.",
        )


def thinking_variables(thinking: Thinking) -> dict[str, bool]:
    """Return the variables that tell a template the thinking mode. In mode `auto`, return no variables."""
    on = thinking == "on"
    return {} if thinking == "auto" else {"thinking": on, "enable_thinking": on}


def message_rows(messages: Sequence[Message], *, as_text: bool) -> list[dict[str, Any]]:
    """Return messages in the form that chat templates expect.

    The content of a message becomes one text, or a list of parts if any part is not text. If `as_text` is true, the arguments
    of tool calls are JSON text.
    """
    return [_message_row(message, as_text) for message in messages]


def _message_row(message: Message, as_text: bool) -> dict[str, Any]:
    only_text = first_unsupported_part(message.content, (TextPart,)) is None
    row: dict[str, Any] = {
        "role": str(message.role),
        "content": message.text if only_text else content_json(message.content),
    }
    if message.reasoning is not None:
        row["reasoning_content"] = message.reasoning
    if message.tool_calls:
        row["tool_calls"] = [
            {
                "type": "function",
                "id": call.id,
                "function": {"name": call.name, "arguments": _template_arguments(call.arguments, as_text)},
            }
            for call in message.tool_calls
        ]
    return row | ({} if message.tool_call_id is None else {"tool_call_id": message.tool_call_id})


def _template_arguments(text: str, as_text: bool) -> Any:
    if as_text:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def tool_rows(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Return the definitions of tools in the format of OpenAI's API, which chat templates expect."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                **({"description": tool.description} if tool.description else {}),
                "parameters": dict(tool.parameters),
            },
        }
        for tool in tools
    ]
