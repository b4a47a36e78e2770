"""Grammars for tool calls: calls in the syntax of the chat format, with arguments that match each function's JSON
schema.

`core.sampling.Grammar` documents the source of a grammar of kind `calls`. A special token that delimits tool calls is written
as a token id if the tokenizer has the special token, and otherwise as text. The grammar uses the same syntax of tool calls as
the chat format, so the chat format can parse every complete reply.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from rorqual.core.errors import DataError
from rorqual.core.records import Message, Tool
from rorqual.data.chat import ChatFormat
from rorqual.data.chat.calls import ToolCallTemplate
from rorqual.data.chat.dsml import DSML_FRAME
from rorqual.data.chat.special_tokens import NAME_OF
from rorqual.engine.grammar.dsml import DsmlRules
from rorqual.engine.grammar.source import AllowedCalls
from rorqual.engine.grammar.trial import FinishedAnswer

NO_CALL = "no call can be read in the reply, because its arguments contain a tag of the reasoning"
"""Error message for a reply whose call arguments contain `</think>`, if the chat format also recognises `</think>` in plain
text."""
_HOLE = "\0"
"""Placeholder for the arguments in the text of a tool call. No function name can contain the character `_HOLE`."""
_MARK = re.compile("([\ud800-\udfff])")


class CallSyntax:
    """The syntax of tool calls in one chat format.

    `special_token_ids` are the ids of the special tokens in tool calls.
    """

    def __init__(self, chat: ChatFormat) -> None:
        self._chat, self._tokenizer = chat, chat.tokenizer

    @cached_property
    def call_template(self) -> ToolCallTemplate:
        """The template for tool calls in the chat format.

        Raises DataError if the chat format has no tool calls.
        """
        frame = self._chat.call_frame
        if frame is None:
            raise DataError(
                f"chat format '{self._chat.name}' has no tool-call syntax",
                remedy="Use a model that was trained with tools.",
            )
        return frame

    @cached_property
    def special_token_ids(self) -> list[int]:
        """Ids of the special tokens in tool calls."""
        frame = self.call_template
        names = {NAME_OF[char] for char in frame.begin + frame.end + frame.call("", "{}") if char in NAME_OF}
        return [self._tokenizer.special_id(name) for name in names if name in self._tokenizer.special_names]

    def lark_grammar(self, calls: AllowedCalls, options: Mapping[str, Any]) -> str:
        """Return the grammar of a reply in llguidance's Lark dialect. `options` are llguidance's options for JSON grammars."""
        frame, names = self.call_template, [f"call_{number}" for number in range(len(calls.parameter_schemas))]
        more_calls = f" ({self._call_grammar(frame.gap)} call)*" if calls.many else ""
        rules = [
            f"start: calls{'' if calls.answer is None else ' | answer'}",
            f"calls: {self._call_grammar(frame.begin)} call{more_calls} {self._call_grammar(frame.end)}",
            f"call: {' | '.join(names)}",
        ]
        if calls.answer is not None:
            self._check_special_token_start(frame)
            rules.append(f"answer: %json {_schema_grammar(calls.answer, options)}")
        for name, (function, schema) in zip(names, calls.parameter_schemas.items(), strict=True):
            if frame is DSML_FRAME:
                rules += DsmlRules(self._lark_terminals, options, bool(self.special_token_ids)).call_rules(
                    name, function, schema
                )
                continue
            before, _, after = frame.call(function, _HOLE).partition(_HOLE)
            rules += [
                f"{name}: {self._call_grammar(before)} arguments_{name} {self._call_grammar(after)}",
                f"arguments_{name}: %json {_schema_grammar(schema, options)}",
            ]
        return "\n".join(rules)

    def _check_special_token_start(self, frame: ToolCallTemplate) -> None:
        """Raise DataError if tool calls do not start with a special token, because a string in a JSON answer could then look
        like a tool call."""
        first = next((char for char in frame.begin + frame.call("", "{}") if char in NAME_OF), "")
        if NAME_OF.get(first, "") not in self._tokenizer.special_names:
            raise DataError(
                f"chat format '{self._chat.name}' starts calls without a special token, so a JSON answer could be mistaken for a call",
                remedy="Request either calls or JSON, in separate requests.",
            )

    def _call_grammar(self, text: str) -> str:
        return " ".join(self._lark_terminals(text))

    def _lark_terminals(self, text: str) -> list[str]:
        """Convert a marked text to Lark terminals.

        A surrogate character stands for a special token (`NAME_OF`). If the tokenizer has the special token, the surrogate
        becomes a token id.
        """
        parts: list[str] = []
        plain = ""
        for part in _MARK.split(text):
            name = NAME_OF.get(part, "")
            if name in self._tokenizer.special_names:
                parts += [*([_lark_string(plain)] if plain else []), f"<[{self._tokenizer.special_id(name)}]>"]
                plain = ""
            else:
                plain += name or part
        return [*parts, *([_lark_string(plain)] if plain else [])]

    def parse_reply(self, reply: Sequence[int], names: Iterable[str]) -> Message:
        """Parse a reply from which the reasoning was removed. The reply is text or has tool calls of the functions `names`."""
        opened = self._chat.reply_rules("off").begins == "thought"
        ids = [*self._chat.end_think_ids, *reply] if opened else reply
        return self._chat.parse(ids, thinking="off", tools=[Tool(name, "", {}) for name in names])

    def parse_answers(self, reply: Sequence[int], calls: AllowedCalls) -> list[FinishedAnswer]:
        """Return the arguments of each tool call in a reply, or the JSON answer of a reply without tool calls. Return [] if the reply
        must contain a tool call, but no call can be read."""
        functions = calls.parameter_schemas
        message = self.parse_reply(reply, functions)
        if message.tool_calls:
            return [FinishedAnswer(call.arguments, functions[call.name], call.name) for call in message.tool_calls]
        return [] if calls.answer is None else [FinishedAnswer(message.text, calls.answer)]


def _schema_grammar(schema: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    return json.dumps({**schema, "x-guidance": dict(options)})


def _lark_string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
