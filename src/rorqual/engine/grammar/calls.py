"""Replies that must call tools: a chat format's own way of writing calls, with arguments that each function's JSON schema allows.

A grammar of kind `calls` has as its source what `calls_source` writes. Marks are tokens where the tokenizer has them, else text, as
the chat format itself writes and reads them; so what ends is read as calls, whole, and as nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from rorqual.core.errors import DataError
from rorqual.core.records import Message, Tool
from rorqual.data.chat import ChatFormat
from rorqual.data.chat.calls import CallFrame
from rorqual.data.chat.marks import NAME_OF
from rorqual.engine.grammar.check import Judge
from rorqual.engine.grammar.source import parse_calls

Bools = npt.NDArray[np.bool_]
THINKING = ("<think>", "</think>")
_HOLE = "\0"
"""Stands for the arguments while a call is written; no name can hold it."""
_MARK = re.compile("([\ud800-\udfff])")


@dataclass(frozen=True)
class FunctionSchema:
    """A function that may be called; `schema`: the text of its arguments' JSON schema, of an object."""

    name: str
    schema: str


@dataclass(frozen=True)
class Calls:
    """What a reply may call: one of the functions, or, with `many`, one and then any. `answer`: the text of a JSON schema of which it may be
    instead."""

    functions: tuple[FunctionSchema, ...]
    many: bool
    answer: str | None = None


def read_calls(source: str) -> Calls:
    """The source of a grammar of kind `calls`; a `DataError` says what is wrong with it, or with which function's parameters."""
    found = parse_calls(source)
    functions = tuple(FunctionSchema(tool["name"], _object(**tool)) for tool in found["tools"])
    answer = json.dumps(found["answer"], ensure_ascii=False) if "answer" in found else None
    return Calls(functions, found["many"], answer)


def _object(name: str, parameters: Mapping[str, Any]) -> str:
    """The schema of arguments, which are always an object."""
    kind = parameters.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise blame(
            name, DataError(f"their type is {kind!r}"[:200], remedy='Arguments are an object: "type": "object".')
        )
    return json.dumps({**parameters, "type": "object"}, ensure_ascii=False)


def blame(name: str, error: DataError) -> DataError:
    """An error of one function's schema, with its name."""
    return DataError(f"the parameters of {name!r}: {error.what}", remedy=error.remedy)


class Spelling:
    """How one chat format writes calls in its tokenizer's ids.

    `marks` [n]: ids of the marks that stand in them. `unsaid`: texts that no call may hold, because wherever they stand they are marks of
    thinking, and a call that holds one is none.
    """

    def __init__(self, chat: ChatFormat, vocab_size: int) -> None:
        self._chat, self._tokenizer, self._vocab_size = chat, chat.tokenizer, vocab_size
        self._name, self._frame = chat.name, chat.call_frame
        spelt = chat.reply_marks(chat.call_form).by_text
        self.unsaid = tuple(name.encode() for name in THINKING if name in spelt)

    @cached_property
    def frame(self) -> CallFrame:
        if self._frame is None:
            raise DataError(
                f"chat format '{self._name}' has no way to write calls",
                remedy="Use a model of a family that was trained with tools.",
            )
        return self._frame

    @cached_property
    def marks(self) -> list[int]:
        frame = self.frame
        names = {NAME_OF[char] for char in frame.begin + frame.end + frame.call("", "") if char in NAME_OF}
        return [self._tokenizer.special(name) for name in names if name in self._tokenizer.special_names]

    def lark(
        self,
        functions: Mapping[str, Mapping[str, Any]],
        answer: Mapping[str, Any] | None,
        many: bool,
        options: Mapping[str, Any],
    ) -> str:
        """The grammar of a reply in llguidance's Lark dialect. `functions`: of each name the schema of its arguments, as llguidance enforces
        it; `answer` and `many` as `Calls` has them; `options`: of its JSON."""
        frame, names = self.frame, [f"call_{number}" for number in range(len(functions))]
        more = f" ({self._written(frame.gap)} call)*" if many else ""
        rules = [
            f"start: calls{'' if answer is None else ' | answer'}",
            f"calls: {self._written(frame.begin)} call{more} {self._written(frame.end)}",
            f"call: {' | '.join(names)}",
        ]
        if answer is not None:
            self._check_apart(frame)
            rules.append(f"answer: %json {_json(answer, options)}")
        for name, (function, schema) in zip(names, functions.items(), strict=True):
            before, _, after = frame.call(function, _HOLE).partition(_HOLE)
            rules += [
                f"{name}: {self._written(before)} arguments_{name} {self._written(after)}",
                f"arguments_{name}: %json {_json(schema, options)}",
            ]
        return "\n".join(rules)

    def _check_apart(self, frame: CallFrame) -> None:
        """Refuse an answer of JSON where a call is told from it by its text alone, which a text within the answer may hold, too."""
        first = (frame.begin + frame.call("", ""))[:1]
        if NAME_OF.get(first, "") not in self._tokenizer.special_names:
            raise DataError(
                f"chat format '{self._name}' begins calls without a token of their own here, so that JSON beside them could be read as one",
                remedy="Ask for calls or for JSON, in two requests.",
            )

    def _written(self, text: str) -> str:
        """A marked text in Lark: ids where a mark is a token, else strings."""
        parts: list[str] = []
        plain = ""
        for part in _MARK.split(text):
            name = NAME_OF.get(part, "")
            if name in self._tokenizer.special_names:
                parts += [*([_string(plain)] if plain else []), f"<[{self._tokenizer.special(name)}]>"]
                plain = ""
            else:
                plain += name or part
        return " ".join([*parts, *([_string(plain)] if plain else [])])

    def read(self, reply: Sequence[int], names: Iterable[str]) -> Message:
        """A reply without its thought, as calls of functions of these names, or as text."""
        return self._chat.parse(reply, thinking="off", tools=[Tool(name, "", {}) for name in names])

    def closing(self, tail: bytes) -> Bools:
        """Tokens [vocab] that would complete one of the texts that are `unsaid`, after `tail`."""
        return self._closing[tail]

    @cached_property
    def _closing(self) -> Mapping[bytes, Bools]:
        ends = {text[-1] for text in self.unsaid}
        written = ((id_, self._tokenizer.token_bytes(id_)) for id_ in range(self._vocab_size))
        last = [(id_, said) for id_, said in written if ends & set(said) and not self._tokenizer.is_special(id_)]
        found: dict[bytes, Bools] = {}
        for tail in {text[:length] for text in self.unsaid for length in range(len(text))}:
            found[tail] = np.zeros(self._vocab_size, np.bool_)
            found[tail][[id_ for id_, said in last if any(text in tail + said for text in self.unsaid)]] = True
        return found

    def warm(self) -> None:
        """Compute what `closing` needs, which takes a look at each token."""
        if self.unsaid:
            self.closing(b"")

    def tail(self, before: bytes, token: int) -> bytes:
        """What of the text so far may be the beginning of one that is `unsaid`."""
        text = before + self._tokenizer.token_bytes(token)
        longest = max(map(len, self.unsaid), default=1) - 1
        starts = (text[place:] for place in range(max(0, len(text) - longest), len(text)))
        return next((end for end in starts if any(one.startswith(end) for one in self.unsaid)), b"")


class CallsJudge:
    """Judges the arguments of calls that their grammar does not hold: `functions` by name, `answer` for JSON instead of calls."""

    def __init__(self, spelling: Spelling, functions: Mapping[str, Judge | None], answer: Judge | None) -> None:
        self._spelling, self._functions, self._answer = spelling, functions, answer

    def fault(self, reply: Sequence[int]) -> str:
        """What the first call that does not match is at fault for; empty where all match."""
        message = self._spelling.read(reply, self._functions)
        if not message.tool_calls:
            return "" if self._answer is None else self._answer.fault(message.text)
        for call in message.tool_calls:
            judge = self._functions[call.name]
            if judge is not None and (found := judge.fault(call.arguments)):
                return f"{found} (the parameters of {call.name!r})"
        return ""


def _json(schema: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    return json.dumps({**schema, "x-guidance": dict(options)})


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
