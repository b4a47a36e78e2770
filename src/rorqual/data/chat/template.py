"""A chat template that came with a checkpoint of an unknown family: rendered in jinja2's sandbox, to chat, never to train.

A template says how a conversation looks, not which of its tokens the assistant wrote. Training needs to know, so
`render` refuses; a family that is to be trained gets a file beside this one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rorqual.core.errors import DataError
from rorqual.core.records import Message, Thinking, Tool
from rorqual.data.chat.base import ChatFormat, Rendered
from rorqual.data.chat.calls import WHITE
from rorqual.data.chat.reply import Begins, ReplyForm, Trim
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
        return Message("assistant", message.content if reasoning is None else message.content.strip(), reasoning)

    def n_thought(self, ids: Sequence[int]) -> int:
        # By halves: a reply of 8,000 tokens read at each of them would take a minute.
        return bisect_left(range(len(ids)), True, key=lambda n: Special.END_THINK in self._text(ids[: n + 1]))

    def prompt(self, messages: Sequence[Message], thinking: Thinking = "auto", tools: Sequence[Tool] = ()) -> list[int]:
        """Ids of the template's text. What the messages say stays text, also where it spells a special token."""
        hidden, pieces = _hide(messages, self.tokenizer, self._source)
        variables: dict[str, Any] = {} if thinking == "auto" else {"thinking": thinking == "on"}
        variables |= {} if thinking == "auto" else {"enable_thinking": thinking == "on"}
        parts: list[str] = []
        size = 0
        try:
            for part in self._template.generate(
                messages=hidden,
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
    def spoken(self) -> bool:
        return True

    def reply_form(self, thinking: Thinking) -> ReplyForm:
        """What stands before the first `</think>` is reasoning, if template or tokenizer know that mark; else only where `<think>` comes
        first, so that a model that does not think is not waited for.

        Where the prompt has opened the thinking, a reply without `</think>` is all reasoning, and its content empty.
        """
        known = Special.END_THINK in self._source or Special.END_THINK in self.tokenizer.special_names
        begins: Begins = "thought" if self._opened(thinking) else "late" if known else "mark"
        return ReplyForm(begins, WHITE, Trim(WHITE, WHITE), indented=True, empty="kept")

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


def _hide(
    messages: Sequence[Message], tokenizer: Tokenizer, template: str
) -> tuple[list[dict[str, str]], dict[str, str]]:
    """Messages for a template, in which one private character stands for each special token's name that a user wrote.

    The template's text is encoded with special tokens; these characters are put back afterwards, as plain text. A
    template may still cut, strip and compare what the messages say.
    """
    said = "".join(message.content + (message.reasoning or "") for message in messages)
    free = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in said + template)
    names = sorted(tokenizer.special_names, key=len, reverse=True)
    marks = {name: next(free) for name in names if name in said}

    def hide(text: str) -> str:
        for name, mark in marks.items():
            text = text.replace(name, mark)
        return text

    hidden = []
    for message in messages:
        row = {"role": str(message.role), "content": hide(message.content)}
        if message.reasoning is not None:
            row["reasoning_content"] = hide(message.reasoning)
        hidden.append(row)
    return hidden, {mark: name for name, mark in marks.items()}
