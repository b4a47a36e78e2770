"""Replies as models write them, well formed and broken in each way that was reported, and what is to be read from them.

The fields expected are put together here from the rules of docs/how-to/tools.md; no reader of ours has a part in them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

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


TAG, END_TAG = "<｜DSML｜", "</｜DSML｜"
OPEN, CLOSE = f"{TAG}function_calls>\n", f"\n{END_TAG}function_calls>"


def _argument(key: str, value: str, string: str = "true") -> str:
    return f'{TAG}parameter name="{key}" string="{string}">{value}{END_TAG}parameter>'


def _invoke(name: str, *arguments: str) -> str:
    return f'{TAG}invoke name="{name}">\n' + "\n".join(arguments) + f"\n{END_TAG}invoke>"


def _around(*calls: str) -> str:
    return OPEN + "\n".join(calls) + CLOSE


def dsml() -> Iterator[tuple[str, str, Expected]]:
    """DeepSeek-V3.2's calls: each argument stands between tags."""
    t, city = f"<think>{PLAN}</think>", _argument("city", "Zürich")
    a = _invoke("get_weather", city)
    b = _invoke("add", _argument("a", "1", "false"), _argument("b", '[2.50, {"c": "}"}]', "false"))

    def one(*arguments: str) -> str:
        return _around(_invoke("add", *arguments))

    def read(text: str, arguments: str) -> tuple[str, Expected]:
        return f"{t}\n\n{text}", (PLAN, "", (("add", arguments),))

    def kept(text: str) -> tuple[str, Expected]:
        return f"{t}\n\n{text}", (PLAN, f"\n\n{text}", ())

    yield "an answer", t + "It is 20.\n\nWarm.", (PLAN, "It is 20.\n\nWarm.", ())
    yield "an answer at once", "</think>It is < 20 and </b>.", (None, "It is < 20 and </b>.", ())
    yield "a call", f"{t}\n\n{_around(a)}", (PLAN, "", (A,))
    yield "text and a call", f"{t}{LOOK}\n\n{_around(a)}", (PLAN, LOOK, (A,))
    yield "two calls", f"{t}\n\n{_around(a, b)}", (PLAN, "", (A, B))
    yield "text and two calls", f"{t}{LOOK}\n\n{_around(a, b)}", (PLAN, LOOK, (A, B))
    yield "two lists of calls", f"{t}\n\n{_around(a)}\n\n{_around(b)}\n", (PLAN, "", (A, B))
    yield "white space between tags", *read(f"{OPEN}\n \n" + b.replace("\n", " \n\t\n ") + f"\n\n{CLOSE}\n", B[1])
    yield "no white space between tags", *read((OPEN + b + CLOSE).replace("\n", ""), B[1])
    odd = 'a "b" \\n\n</parameter> <b> {"c": 1} '
    yield "a string is plain text", *read(one(_argument("a", odd)), json.dumps({"a": odd}))
    yield (
        "a string that is empty, or a number",
        *read(one(_argument("a", ""), _argument("b", "12")), '{"a": "", "b": "12"}'),
    )
    yield (
        "values of other types",
        *read(
            one(
                *(
                    _argument(key, text, "false")
                    for key, text in zip("abcde", ("-1.50", "true", "null", "[]", ' {"é": 1}\n'))
                )
            ),
            '{"a": -1.50, "b": true, "c": null, "d": [], "e":  {"é": 1}\n}',
        ),
    )
    yield "JSON of a string", *read(one(_argument("a", '"b\\n"', "false")), '{"a": "b\\n"}')
    yield "an odd key", *read(one(_argument('a "b" > é', "c")), '{"a \\"b\\" > é": "c"}')
    yield "no arguments", *read(one(), "{}")
    yield "no arguments and no empty line", *read(one().replace("\n\n", "\n"), "{}")
    yield "calls without tags around them", f"{t}\n\n{b}", (PLAN, "", (B,))
    yield "no end of the calls", f"{t}\n\n{OPEN}{b}", (PLAN, "", (B,))
    yield "half an end of the calls", f"{t}\n\n{OPEN}{b}\n{END_TAG}func", (PLAN, f"\n{END_TAG}func", (B,))
    yield "text after a call", f"{t}\n\n{_around(a)}\n\nDone.", (PLAN, "\n\nDone.", (A,))
    yield "text before and after a call", f"{t}{LOOK}\n\n{_around(a)}\n\nDone.", (PLAN, f"{LOOK}\n\nDone.", (A,))

    yield (
        "an argument that never ends",
        *kept(f'{OPEN}{TAG}invoke name="add">\n{TAG}parameter name="a" string="true">Zürich'),
    )
    yield "a call that never ends", *kept(OPEN + b.removesuffix(f"\n{END_TAG}invoke>"))
    yield "half an end of a call", *kept(OPEN + b.removesuffix("oke>"))
    yield "an argument without an end", *kept(_around(b.replace(f"{END_TAG}parameter>\n", "\n", 1)))
    yield "a call without an end", *kept(_around(b.removesuffix(f"\n{END_TAG}invoke>")))
    yield (
        "a call without an end before another",
        f"{t}\n\n" + _around(b.removesuffix(f"{END_TAG}invoke>"), a),
        (PLAN, "\n\n" + OPEN + b.removesuffix(f"\n{END_TAG}invoke>"), (A,)),
    )
    yield (
        "a broken call and a whole one",
        f"{t}\n\n{TAG}invoke name=\n\n{_around(a)}",
        (PLAN, f"\n\n{TAG}invoke name=", (A,)),
    )
    yield (
        "nested calls",
        f"{t}\n\n" + _around(f'{TAG}invoke name="add">\n{a}'),
        (PLAN, f'\n\n{OPEN}{TAG}invoke name="add">\n', (A,)),
    )
    yield "an unknown name", *kept(_around(_invoke("divide", city)))
    yield "no name", *kept(_around(_invoke("", city)))
    yield "a name without quotes", *kept(one(city).replace('"add"', "add"))
    yield "an argument without a type", *kept(one(city.replace(' string="true"', "")))
    yield "an argument of another type", *kept(one(_argument("a", "1", "maybe")))
    yield "one name for two arguments", *kept(one(_argument("a", "1"), _argument("a", "2", "false")))
    for value in ("Bern", "NaN", "", "'1'", '1, "b": 2', "1]", '"\n"', "[" * 120 + "]" * 120, "1" * 4400):
        yield f"JSON that is none: {value[:9]!r} {len(value)}", *kept(one(_argument("a", value, "false")))
    yield "text between tags", *kept(one(_argument("a", "1") + " so."))
    yield "a JSON object instead of tags", *kept(one('{"a": 1}'))
    yield "a tag that is too long", *kept(one(_argument("a" * 241, "1")))
    yield "a longest tag", *read(one(_argument("a" * 240, "1")), json.dumps({"a" * 240: "1"}))
    yield "a tag in an argument", *kept(one(_argument("a", f"b {TAG}invoke")))
    yield "a thinking mark in an argument", *kept(one(_argument("a", "b</think>")))
    yield "an argument outside a call", *kept(f"{OPEN}{city}{CLOSE}")
    yield "tags around no calls", *kept(f"{OPEN}Hm.{CLOSE}")
    yield "an end tag alone", *kept(f"Use {END_TAG}invoke> and {END_TAG}function_calls> for that.")
    yield "the mark alone", *kept("｜DSML｜ and <｜DSML｜> and < ｜DSML｜invoke")

    yield "a call before the end of a thought", f"<think>{PLAN}{_around(a)}</think>", (PLAN, "", (A,))
    yield "calls in a thought that never ends", f"<think>{PLAN}\n\n{_around(a, b)}", (f"{PLAN}\n\n", "", (A, B))
    inside = f"{PLAN} {_around(a)} No."
    yield "a call inside a thought", f"<think>{inside}</think>It is 20.", (inside, "It is 20.", ())
    quoted = f"{PLAN} {_around(a)}"
    yield "a call at the end of a thought, and another", f"<think>{quoted}</think>\n\n{_around(b)}", (quoted, "", (B,))
    yield "a thought that never ends", f"<think>{PLAN}\n\n{OPEN}", (f"{PLAN}\n\n{OPEN}", "", ())


def files() -> dict[str, list[dict[str, Any]]]:
    """The fixtures of each format."""
    cases = {style.name: [*whole(style), *broken(style)] for style in STYLES} | {"llama3.1": [*llama()]}
    cases["deepseek-v3.2"] = [*dsml()]
    stops = {style.name: style.stop for style in STYLES} | {"llama3.1": "<|eot_id|>", "deepseek-v3.2": EOS}
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
