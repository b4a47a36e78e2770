"""Replies as models write them, well formed and broken in each way that was reported, and what is to be read from them.

`python tests/data/chat/stream_fixtures.py` writes `tests/data/fixtures/streams/`. The fields expected are put together here from the rules of
docs/how-to/tools.md; no reader of ours has a part in them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "fixtures" / "streams"
A, B = ("get_weather", '{"city": "Zürich"}'), ("add", '{"a": 1, "b": [2.50, {"c": "}"}]}')
PLAN, LOOK = "What do I know?\n\nNothing.", "Let me see."


@dataclass(frozen=True)
class Style:
    """How one format writes. `call(name, arguments)` has no end mark; `around` encloses calls; `between` stands between two.

    `pad`, `gap`: what is written inside a thought's marks, and after them. `before`: between a text and its calls.
    """

    name: str
    call: Callable[[str, str], str]
    begin: str
    end: str
    around: tuple[str, str] = ("", "")
    between: str = ""
    pad: str = ""
    gap: str = ""
    before: str = ""
    stop: str = ""
    strips: bool = False
    """Whether newlines at the beginning of a content are dropped after a thought."""

    def thought(self, text: str = PLAN) -> str:
        return f"<think>{self.pad}{text}{self.pad}</think>{self.gap}"

    def calls(self, *calls: tuple[str, str]) -> str:
        return self.around[0] + self.between.join(self.call(*one) + self.end for one in calls) + self.around[1]


def _hermes(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n'


def _fenced(name: str, arguments: str) -> str:
    return f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{arguments}\n```"


def _bare(name: str, arguments: str) -> str:
    return f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{arguments}"


def _llama(name: str, arguments: str) -> str:
    return f'{{"name": "{name}", "parameters": {arguments}}}'


AROUND = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
EOS, END = "<｜end▁of▁sentence｜>", "<｜tool▁call▁end｜>"
BEGIN = "<｜tool▁call▁begin｜>"
STYLES = (
    Style("qwen3", _hermes, "<tool_call>", "</tool_call>", ("", ""), "\n", "\n", "\n\n", "\n", "<|im_end|>", True),
    Style("chatml", _hermes, "<tool_call>", "</tool_call>", ("", ""), "\n", "\n", "\n\n", "\n", "<|im_end|>", True),
    Style("smollm2", _hermes, "<tool_call>", "</tool_call>", ("", ""), "\n", "\n", "\n\n", "\n", "<|im_end|>", True),
    Style("deepseek", _bare, BEGIN, END, AROUND, stop=EOS),
    Style("deepseek-v3", _fenced, BEGIN, END, AROUND, "\n", "\n", "\n\n", stop=EOS, strips=True),
    Style("deepseek-r1", _fenced, BEGIN, END, AROUND, "\n", "\n", "\n\n", stop=EOS, strips=True),
)

Expected = tuple[str | None, str, tuple[tuple[str, str], ...]]


def whole(style: Style) -> Iterator[tuple[str, str, Expected]]:
    """Replies as they should be."""
    s = style
    yield "an answer", s.thought() + "It is 20.\n\nWarm.", (PLAN, "It is 20.\n\nWarm.", ())
    yield "a call", s.thought() + s.calls(A), (PLAN, "", (A,))
    yield "text and a call", s.thought() + LOOK + s.before + s.calls(A), (PLAN, LOOK, (A,))
    yield "two calls", s.thought() + s.calls(A, B), (PLAN, "", (A, B))
    yield "text and two calls", s.thought() + LOOK + s.before + s.calls(A, B), (PLAN, LOOK, (A, B))
    yield "white space around calls", s.thought() + s.calls(A) + " \n\n " + s.calls(B) + "\n", (PLAN, "", (A, B))
    yield "two calls without a separator", s.thought() + s.calls(A) + s.calls(B), (PLAN, "", (A, B))
    quoted = ("add", json.dumps({"a": f"{s.begin}{s.end}\\", "b": '"}'}, ensure_ascii=False))
    yield "marks in a string of the arguments", s.thought() + s.calls(quoted), (PLAN, "", (quoted,))


def broken(style: Style) -> Iterator[tuple[str, str, Expected]]:
    """Replies that are broken; nothing of them is lost."""
    s = style
    t = s.thought()

    def kept(text: str) -> tuple[str, Expected]:
        return t + text, (PLAN, text, ())

    yield "JSON that never ends", *kept(s.around[0] + s.call(*A)[: -8 if s.begin == "<tool_call>" else -6])
    yield "arguments that are no JSON", *kept(s.calls(("add", "{'a': 1}")))
    yield "arguments that are no object", *kept(s.calls(("add", "[1]")))
    yield "arguments that no strict reader takes", *kept(s.calls(("add", '{"a": NaN}')))
    yield "a raw newline in a string", *kept(s.calls(("add", '{"a": "\n"}')))
    yield "arguments that nest beyond reason", *kept(s.calls(("add", '{"a": ' + "[" * 120 + "]" * 120 + "}")))
    yield "an unknown name", *kept(s.calls(("divide", "{}")))
    yield "no name", *kept(s.calls(("", "{}")))
    yield "a begin mark alone", *kept(f"Use {s.begin} for that.")
    yield "an end mark alone", *kept(f"Use {s.end} for that.")
    yield "text inside a call", *kept(s.around[0] + s.call(*A) + " so." + s.end + s.around[1])
    yield "a thinking mark inside a call", *kept(s.begin + '{"a": "</think>"}' + s.end)
    after = s.calls(A) + "\n\nDone."
    yield "text after a call", t + after, (PLAN, "Done." if s.strips else "\n\nDone.", (A,))
    yield "text before and after a call", t + LOOK + s.before + after, (PLAN, f"{LOOK}\n\nDone.", (A,))
    yield "a missing end mark", t + s.around[0] + s.call(*A), (PLAN, "", (A,))
    missing = s.around[0] + s.call(*A) + s.call(*B) + s.end + s.around[1]
    yield "a missing end mark before another call", t + missing, (PLAN, "", (A, B))
    nested = s.begin + s.before + s.call(*A) + s.end
    yield "nested marks", t + nested, (PLAN, s.begin, (A,))
    first = s.begin + '{"name": '
    yield "a broken call and a whole one", t + first + s.before + s.calls(A), (PLAN, first, (A,))
    yield (
        "a call before the end of a thought",
        f"<think>{s.pad}{PLAN}{s.pad}{s.calls(A)}{s.pad}</think>{s.gap}",
        (PLAN, "", (A,)),
    )
    yield "calls in a thought that never ends", f"<think>{s.pad}{PLAN}{s.pad}{s.calls(A, B)}", (PLAN, "", (A, B))
    inside = f"{PLAN} {s.calls(A)} No."
    yield "a call inside a thought", f"<think>{s.pad}{inside}{s.pad}</think>{s.gap}It is 20.", (inside, "It is 20.", ())
    quoted = f"{PLAN} {s.calls(A)}"
    yield "a call at the end of a thought, and an answer", s.thought(quoted) + "It is 20.", (quoted, "It is 20.", ())
    yield "a call at the end of a thought, and another", s.thought(quoted) + s.calls(B), (quoted, "", (B,))
    yield "a call inside a thought that never ends", f"<think>{s.pad}{inside}", (inside, "", ())
    yield "a thought that never ends", f"<think>{s.pad}{PLAN}", (PLAN, "", ())
    yield "a thought that ends twice", t + f"So.</think>{s.gap}Yes.", (PLAN, f"So.</think>{s.gap}Yes.", ())
    yield (
        "an empty thought",
        f"<think>{s.pad}</think>{s.gap}{s.calls(A)}",
        ("" if s.name == "deepseek" else None, "", (A,)),
    )
    if s.around[0]:
        yield "a mark around no calls", *kept(f"{s.around[0]}Hm.{s.around[1]}")
        yield "calls without marks around them", t + s.call(*A) + s.end, (PLAN, "", (A,))
        yield "no end of the calls", t + s.calls(A).removesuffix(s.around[1]), (PLAN, "", (A,))
    else:
        call = s.begin + "\n" + json.dumps({"name": "add", "arguments": '{"a": 1}'}) + "\n" + s.end
        yield "arguments in a string", t + call, (PLAN, "", (("add", '{"a": 1}'),))
        yield "no arguments", t + f'{s.begin}{{"name": "add"}}{s.end}', (PLAN, "", (("add", "{}"),))
        yield (
            "more members",
            t + f'{s.begin}{{"id": 7, "name": "add", "arguments": {{}}}}{s.end}',
            (PLAN, "", (("add", "{}"),)),
        )


def llama() -> Iterator[tuple[str, str, Expected]]:
    """Llama's calls have no marks: an answer that begins as one is one."""
    a, b = _llama(*A), _llama(*B)
    yield "an answer", "It is 20.", (None, "It is 20.", ())
    yield "a call", a, (None, "", (A,))
    yield "a call behind a tag", f"<|python_tag|>{a}", (None, "", (A,))
    yield "two calls", f"{a}; {b}", (None, "", (A, B))
    yield "two calls without a separator", a + b, (None, "", (A, B))
    yield "a call with arguments", a.replace("parameters", "arguments"), (None, "", (A,))
    yield "text after a call", f"{a}\nDone.", (None, "Done.", (A,))
    yield "text before a call", f"Sure: {a}", (None, f"Sure: {a}", ())
    yield "an answer in JSON", '{"city": "Zürich"}', (None, '{"city": "Zürich"}', ())
    yield "an unknown name", _llama("divide", "{}"), (None, _llama("divide", "{}"), ())
    yield "JSON that never ends", a[:-2], (None, a[:-2], ())
    yield "arguments that are no object", _llama("add", "[1]"), (None, _llama("add", "[1]"), ())
    yield "a tag without a call", "<|python_tag|>print(1)", (None, "<|python_tag|>print(1)", ())
    yield "a call and a broken one", f"{a}; {b[:-2]}", (None, f"; {b[:-2]}", (A,))
    yield "a call after a thought", f"<think>\n{PLAN}\n</think>\n\n{a}", (PLAN, "", (A,))
    yield "a call that is all of a thought", f"<think>\n{a}\n</think>", (None, "", (A,))
    yield "braces in a thought", f"<think>\n{a} {{ no\n</think>\n\nYes.", (f"{a} {{ no", "Yes.", ())


def files() -> dict[str, list[dict[str, Any]]]:
    """The fixtures of each format."""
    cases = {style.name: [*whole(style), *broken(style)] for style in STYLES} | {"llama3.1": [*llama()]}
    stops = {style.name: style.stop for style in STYLES} | {"llama3.1": "<|eot_id|>"}
    ended = {
        name: [(case, text + stops[name], expected) for case, text, expected in rows] for name, rows in cases.items()
    }
    return {
        name: [
            {
                "case": case,
                "text": text,
                "reasoning": expected[0],
                "content": expected[1],
                "calls": [{"name": call[0], "arguments": call[1]} for call in expected[2]],
            }
            for case, text, expected in rows
        ]
        for name, rows in ended.items()
    }


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, rows in files().items():
        lines = ",\n".join(json.dumps(one, ensure_ascii=False) for one in rows)
        (FOLDER / f"{name}.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
