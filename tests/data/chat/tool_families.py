"""Conversations with tools in every family: tokenizers that have marks for them, and which of them the published templates write.

`golden/tools.json` holds what `apply_chat_template` of transformers writes of the cases in `WRITTEN`, with a generation prompt and the tools.
DeepSeek's templates get arguments as text. Our formats had no part in it.
"""

from __future__ import annotations

import json
from functools import cache

from chat_families import FAMILY, GOLDEN

from rorqual.core.records import Message, Tool, ToolCall
from rorqual.data.chat import ChatFormat, chat_format
from rorqual.data.tokenizer import Tokenizer

MARKS: dict[str, tuple[str, ...]] = {
    "qwen": ("<tool_response>", "</tool_response>"),
    "llama3": ("<|python_tag|>",),
    "smollm2": (),
    "deepseek": (*(
        f"<｜tool▁{name}｜>"
        for name in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep", "outputs▁begin", "outputs▁end", "output▁begin", "output▁end")
    ), "｜DSML｜"),
}  # fmt: skip
"""Added tokens that a family has for tools, beyond those of the small tokenizers in `golden/`."""
NAMES = tuple(name for name in FAMILY if name != "llama3")
"""Formats that take tools."""


@cache
def source(family: str) -> str:
    """The family's tokenizer with its marks for tools."""
    data = json.loads((GOLDEN / f"tokenizer-{family}.json").read_text(encoding="utf-8"))
    first = max([*data["model"]["vocab"].values(), *(token["id"] for token in data["added_tokens"])]) + 1
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    data["added_tokens"] += [{"id": first + n, "content": name, **plain} for n, name in enumerate(MARKS[family])]
    return json.dumps(data, ensure_ascii=False)


@cache
def with_marks(name: str) -> ChatFormat:
    """A format on a tokenizer that has the family's marks as tokens."""
    return chat_format(Tokenizer(source(FAMILY[name])), name)


@cache
def without_marks(name: str) -> ChatFormat:
    """A format on a tokenizer that lacks the marks of calls, so that they are spelt out."""
    return chat_format(Tokenizer.load(GOLDEN / f"tokenizer-{FAMILY[name]}.json"), name)


WEATHER = Tool(
    "get_weather",
    "What the weather is: <é> & 'now'.",
    {"type": "object", "properties": {"city": {"type": "string", "description": "Ville"}}, "required": ["city"]},
)
ADD = Tool("add", "Adds.", {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}})
TOOLS = (WEATHER, ADD)

SYSTEM = Message("system", "You are brief.\n\nAlways.")
ASKED = Message("user", "And in Zürich <b>?")
ZURICH = ToolCall("call_0", "get_weather", '{"city": "Zürich"}')
SUM = ToolCall("call_1", "add", '{"a": 1, "b": 2.5}')
CALLED = Message("assistant", "", tool_calls=(ZURICH,))
BOTH = Message("assistant", "", tool_calls=(ZURICH, SUM))
SAID = Message("tool", '{"temp": 20, "sky": "clear"}', tool_call_id="call_0")
ADDED = Message("tool", "3.5", tool_call_id="call_1")
ANSWER = Message("assistant", "It is 20.")
AGAIN = Message("user", "Thank you.")
SPOKEN = Message("assistant", "Let me see.", tool_calls=(ZURICH,))
THOUGHT = Message("assistant", "Let me see.", "What do I know?\n\nNothing.", (ZURICH,))

Case = tuple[tuple[Message, ...], tuple[Tool, ...]]
CASES: dict[str, Case] = {
    "offered": ((ASKED,), TOOLS),
    "offered after a system turn": ((SYSTEM, ASKED), (WEATHER,)),
    "called": ((ASKED, CALLED, SAID), TOOLS),
    "called, no longer offered": ((SYSTEM, ASKED, CALLED, SAID), ()),
    "two calls": ((ASKED, BOTH, SAID, ADDED), ()),
    "two rounds": ((ASKED, CALLED, SAID, Message("assistant", "", tool_calls=(SUM,)), ADDED), ()),
    "answered, and asked again": ((ASKED, CALLED, SAID, ANSWER, AGAIN), ()),
    "text and a call": ((ASKED, SPOKEN, SAID), ()),
    "a thought and a call": ((ASKED, THOUGHT, SAID), TOOLS),
    "a thought of an earlier round": ((ASKED, THOUGHT, SAID, ANSWER, AGAIN), TOOLS),
}
HISTORY = {"called, no longer offered", "two calls", "two rounds", "answered, and asked again", "text and a call"}
WRITTEN: dict[str, set[str]] = {
    "chatml": {*CASES} - {"a thought and a call", "a thought of an earlier round"},
    "qwen3": {*CASES},
    "llama3.1": {"offered", "offered after a system turn", "called", "called, no longer offered", "two rounds", "answered, and asked again"},
    "deepseek": HISTORY,
    "deepseek-r1": {"called, no longer offered", "two calls", "answered, and asked again"},
    "deepseek-v3": {"two calls"},
}  # fmt: skip
"""Cases that a published template writes as it was meant to. DeepSeek's say nothing about tools that are offered; R1's and V3's leave
marks out in a second round, and V3's also after a single call."""
