"""Conversations with tools in every family: tokenizers that have marks for them, and what the published templates write.

`python tests/data/chat/tool_families.py FOLDER` writes `golden/tools.json` anew, by transformers; FOLDER holds the templates that may not
be kept here (`deepseek-v3.jinja`, `llama3.1.jinja`).
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from chat_families import FAMILY, GOLDEN, PUBLISHED, SPECIALS, TEMPLATES

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
SWITCHES: dict[str, dict[str, dict[str, bool]]] = {
    "qwen3": {"auto": {}, "off": {"enable_thinking": False}},
    "deepseek": {"on": {"thinking": True}, "off": {"thinking": False}},
}


def row(message: Message, *, as_text: bool, empty: str | None) -> dict[str, Any]:
    """A message as transformers takes it."""
    said: dict[str, Any] = {
        "role": str(message.role),
        "content": message.content or (empty if message.tool_calls else ""),
    }
    if message.reasoning is not None:
        said["reasoning_content"] = message.reasoning
    if message.tool_calls:
        said["tool_calls"] = [
            {
                "type": "function",
                "function": {"name": c.name, "arguments": c.arguments if as_text else json.loads(c.arguments)},
            }
            for c in message.tool_calls
        ]
    return said


def offered(tools: tuple[Tool, ...]) -> list[dict[str, Any]] | None:
    rows = [{"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)} for tool in tools]
    return [{"type": "function", "function": one} for one in rows] or None


def write(elsewhere: Path) -> None:
    """The golden file; our formats have no part in it."""
    from tokenizers import Tokenizer as Theirs
    from transformers import PreTrainedTokenizerFast

    lines = []
    for name, names in WRITTEN.items():
        family = FAMILY[name]
        file = TEMPLATES / f"{PUBLISHED.get(name, name)}.jinja"
        template = (file if file.is_file() else elsewhere / file.name).read_text(encoding="utf-8")
        bos = SPECIALS[family][0] if family in ("llama3", "deepseek") else None
        peer = PreTrainedTokenizerFast(tokenizer_object=Theirs.from_str(source(family)), bos_token=bos)
        for case in (case for case in CASES if case in names):
            messages, tools = CASES[case]
            rows = [row(m, as_text=family == "deepseek", empty=None if name == "deepseek-v3" else "") for m in messages]
            for thinking, told in SWITCHES.get(name, {"auto": {}}).items():
                wanted: dict[str, Any] = {
                    "chat_template": template,
                    "add_generation_prompt": True,
                    "tools": offered(tools),
                    **told,
                }
                if name == "deepseek-v3":  # its template asks for a content of None, which transformers leaves out
                    text = jinja2.Template(template).render(messages=rows, add_generation_prompt=True, bos_token=bos)
                    ids = peer.encode(text, add_special_tokens=False)
                else:
                    text = peer.apply_chat_template(rows, tokenize=False, **wanted)
                    ids = peer.apply_chat_template(rows, tokenize=True, return_dict=False, **wanted)
                lines.append({"format": name, "case": case, "thinking": thinking, "text": text, "ids": ids})
    text = ",\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (GOLDEN / "tools.json").write_text(f"[\n{text}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
