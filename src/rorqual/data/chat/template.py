"""Chat templates of unknown model families, rendered in jinja2's sandbox. Templates of unknown families support chat,
but not training.

A loss mask selects the tokens that the assistant wrote, but a template's output does not show which tokens these are.
`render` therefore raises an error. To train a family, add a chat format for it in this folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rorqual.core.errors import DataError
from rorqual.core.records import Message, Thinking, Tool, ToolCall
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
from rorqual.data.chat.chat_format import ChatFormat, Rendered
from rorqual.data.chat.reply import Begins, ReplyForm, Trim
from rorqual.data.chat.special_tokens import NAME_OF
from rorqual.data.chat.tools import check_tools, has_tools, schema, spelt, turns
from rorqual.data.tokenizer import Special, Tokenizer

MAX_OUTPUT = 4_000_000
"""Maximum number of characters in the output of a template. Prompts for current context lengths are shorter."""


class TemplateChat(ChatFormat):
    """A chat format that renders prompts with a jinja2 chat template.

    `where` names the template in errors, and `stop` lists the names of the end tokens. A test prompt is rendered to detect
    whether the template opens thinking; if so, replies begin inside the reasoning.
    """

    name = "template"
    template: str
    tags_as_text = True

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
        self.where, self.template = where, template
        self._bos, self._eos = str(bos), str(stop[0]) if stop else ""
        self.stop_ids = tuple(tokenizer.special(name) for name in stop)
        self.pad = self.stop_ids[0] if stop else 0  # never used, because templates are not used for training
        self.bos = tokenizer.special(self._bos) if bos else None
        self.thinks = re.search(r"\b(enable_)?thinking\b", template) is not None
        self.call_form, self.call_frame = _call_syntax(template)
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = self._fail
        environment.filters["tojson"] = (
            spelt  # jinja2's `tojson` escapes HTML, but transformers' `tojson`, which models were trained with, does not
        )
        try:
            self._compiled = environment.from_string(template)
        except jinja2.TemplateError as error:
            raise DataError(f"not a valid jinja2 template: {error}", where=where, remedy="Restore the file.") from None

    def render(
        self,
        messages: Sequence[Message],
        *,
        thinking: Thinking = "auto",
        continue_: bool = False,
        train_from: int = 0,
    ) -> Rendered:
        """Raise a DataError, because a template gives no loss mask."""
        raise DataError(
            "a chat template does not show which tokens the assistant wrote, so there is no loss mask for training",
            where=self.where,
            remedy="Train with a known chat format (chat=deepseek), or add a format in rorqual/data/chat/.",
        )

    def normalized(self, message: Message, thinking: Thinking = "auto") -> Message:
        """Return the message without white space around reasoning and content.

        If there is no reasoning, the content is unchanged.
        """
        reasoning = None if message.reasoning is None else message.reasoning.strip()
        return Message("assistant", message.text if reasoning is None else message.text.strip(), reasoning)

    def prompt(self, messages: Sequence[Message], thinking: Thinking = "auto", tools: Sequence[Tool] = ()) -> list[int]:
        """Render the template and encode its output. Message text is encoded as plain text, even if it spells a special token."""
        self.check_parts(messages)
        if tools or has_tools(messages):
            self._check(messages, tools)
        as_text = self.call_form is DEEPSEEK
        rows = [_row(message, as_text) for message in messages]
        hidden, pieces = _hide([rows, [schema(tool) for tool in tools]], self.tokenizer, self.template)
        variables: dict[str, Any] = {} if thinking == "auto" else {"thinking": thinking == "on"}
        variables |= {} if thinking == "auto" else {"enable_thinking": thinking == "on"}
        parts: list[str] = []
        size = 0
        try:
            for part in self._compiled.generate(
                messages=hidden[0],
                tools=hidden[1] or None,
                add_generation_prompt=True,
                bos_token=self._bos,
                eos_token=self._eos,
                **variables,
            ):
                parts.append(part)
                size += len(part)
                if size > MAX_OUTPUT:
                    self._fail(f"its output has more than {MAX_OUTPUT} characters")
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            self._fail(str(error))
        return self._ids("".join(parts), pieces)

    def reply_form(self, thinking: Thinking) -> ReplyForm:
        """Return rules that parse the text before the first `</think>` as reasoning.

        If the template and the tokenizer both lack a `</think>` tag, a reply has reasoning only if it begins with
        `<think>`. All other replies are then streamed without buffering. If the prompt opened thinking and the reply
        has no `</think>`, the whole reply is reasoning and the content is empty.
        """
        known = Special.END_THINK in self.template or Special.END_THINK in self.tokenizer.special_names
        begins: Begins = "thought" if self._opened(thinking) else "late" if known else "mark"
        return ReplyForm(begins, WHITE, Trim(WHITE, WHITE), indented=True, empty="kept")

    def _check(self, messages: Sequence[Message], tools: Sequence[Tool]) -> None:
        if not self.takes_tools:
            raise DataError(
                "the chat template does not support tools in a known syntax",
                where=self.where,
                remedy="Remove the tools, or use a model of a family that was trained with tools.",
            )
        check_tools(tools)
        turns(messages)

    def _opened(self, thinking: Thinking) -> bool:
        if thinking not in self._opens:
            prompt = self.tokenizer.decode(self.prompt([Message("user", "?")], thinking), specials=True)
            self._opens[thinking] = prompt.rstrip().endswith(Special.THINK)
        return self._opens[thinking]

    def _fail(self, reason: str) -> NoReturn:
        raise DataError(f"the chat template failed: {reason}", where=self.where, remedy="Use a known chat format.")

    def _ids(self, text: str, pieces: dict[str, str]) -> list[int]:
        ids: list[int] = []
        start = 0
        for at, mark in enumerate(text):
            if mark in pieces:
                ids += self.tokenizer.encode_trusted(text[start:at]) + self.tokenizer.encode(pieces[mark])
                start = at + 1
        return ids + self.tokenizer.encode_trusted(text[start:])


def _call_syntax(template: str) -> tuple[CallForm | None, CallFrame | None]:
    """Return the call syntax whose begin token occurs in a template, and the template for writing a reply with calls.

    Both are None if there is no begin token or the template does not mention `tools`. If the template contains a code fence,
    calls in DeepSeek's syntax have a code fence around their arguments.
    """
    if re.search(r"\btools\b", template):
        if NAME_OF[HERMES.begin] in template:
            return HERMES, HERMES_FRAME
        if NAME_OF[DEEPSEEK.begin] in template:
            return DEEPSEEK, FENCED_FRAME if "```json" in template else DEEPSEEK_FRAME
    return None, None


def _row(message: Message, as_text: bool) -> dict[str, Any]:
    """Return a message as a dict in the form that chat templates expect.

    If `as_text` is true, the arguments of tool calls are JSON text.
    """
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
        for item in value:
            yield from _strings(item)


def _hide(values: list[Any], tokenizer: Tokenizer, template: str) -> tuple[list[Any], dict[str, str]]:
    """Replace the names of special tokens in `values` by private-use characters. Return the changed values and a
    dictionary {character: name}.

    When the template's output is encoded, names of special tokens in it become special tokens. Each private-use
    character is turned back into its name, which is encoded as plain text. Messages stay strings, so the template can
    cut, strip and compare them.
    """
    text = "\n".join(_strings(values))
    free = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in text + template)
    names = sorted(tokenizer.special_names, key=len, reverse=True)
    marks = {name: next(free) for name in names if name in text}

    def hide(value: Any) -> Any:
        if isinstance(value, dict):
            return {hide(key): hide(item) for key, item in value.items()}
        if isinstance(value, list):
            return [hide(item) for item in value]
        if isinstance(value, str):
            for name, mark in marks.items():
                value = value.replace(name, mark)
        return value

    return hide(values), {mark: name for name, mark in marks.items()}
