"""The chat page's modules that need no browser, in Node: which text is a formula, what a request contains, and how a reply is counted."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rorqual.serve.chat_page import FILES

pytestmark = pytest.mark.browser
SCRIPT = Path(__file__).parent / "clients" / "page_modules.mjs"

NONE = [
    "$5 and $6", "$5", "$", "$$", "$$$", "from $5 to $10.", "US$5 or US$6", "A$5/US$6", "5$ or 6$", "$5 and 6$", "$5,$6", "$5-$10", "$5–$10",
    "**$5** and **$6**", "| $5 | $6 |", "- $5\n- $6", "$5 (was $10)", "$100k for A, $200k for B", "$20 to 30$",
    "$5 ou 6$", "价格$5,约$6", "$5 и 6$", "5元和$6, $7元",
    "cheap ($), mid ($$), high ($$)", "$5\n\n6$", "$ 5 $", r"\$5 and \$6", "$HOME/$USER", "$PATH:$HOME", "echo $HOME and $USER",
    r"\(x", r"\(x\]", "\\(x\n\ny\\)", "`$x$`", "``a ` $x$``", "```sh\n$a$ $b$\n```", "```\n$a$", "~~~\n$a$\n~~~\nend", "  ```\n  $a$\n  ```",
    "> ```\n> $a$\n> ```", "`$a", "`\\(a\\)`",
]  # fmt: skip
FOUND: list[tuple[str, list[tuple[str, bool]]]] = [
    ("$x^2$", [("x^2", False)]),
    ("$$x^2$$", [("x^2", True)]),
    ("$$\na\n+ b\n$$", [("\na\n+ b\n", True)]),
    ("$a\n+ b$", [("a\n+ b", False)]),
    ("$5$", [("5", False)]),
    ("$5x + 3$", [("5x + 3", False)]),
    (r"$1{,}000$", [(r"1{,}000", False)]),
    (r"$2 \text{ and more}$", [(r"2 \text{ and more}", False)]),
    (r"$\$5 + x$", [(r"\$5 + x", False)]),
    ("($x$), $y$.", [("x", False), ("y", False)]),
    ("the $n$th $k$-mean", [("n", False), ("k", False)]),
    ("| $x$ | $y$ |", [("x", False), ("y", False)]),
    ("$x$ for $5 or $6", [("x", False)]),
    ("$5, and $x$ for $6", [("x", False)]),
    ("`$x$` is $x$", [("x", False)]),
    ("```\n$a$\n```\n$a$", [("a", False)]),
    (r"\(x\) and \[y_1\] and $z$", [("x", False), ("y_1", True), ("z", False)]),
    (r"\(\frac{1}{2}\)", [(r"\frac{1}{2}", False)]),
    ("$2α + β$", [("2α + β", False)]),
    ("公式$x$在此", [("x", False)]),
]
SLOW = ["$", "$a ", "$$ ", "`", "`a ", "\\(", "\\[a ", "```$\n", "$a", "$5 and "]
USER, REPLY = (
    {"role": "user", "content": "a\tb"},
    {"role": "assistant", "content": "c", "reasoning": "hm", "seconds": 1.0},
)
DEFAULT: dict[str, Any] = {"thinking": "auto", "temperature": 0, "maxTokens": 0}
REQUESTS = [
    ([USER, REPLY, USER], DEFAULT),
    ([USER, USER], {**DEFAULT, "temperature": None}),
    ([USER], {"thinking": "on", "temperature": 0.5, "maxTokens": 20}),
    ([USER], {**DEFAULT, "thinking": "off"}),
]


def chunk(reason: str | None = None, **delta: str) -> dict[str, Any]:
    return {"chunk": {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}}


STEPS = [
    [
        chunk(role="assistant"), chunk(reasoning_content="let me "), {"wait": 3200, **chunk(content="4")},
        {"wait": 1800, **chunk(content="6")}, chunk("length"), {"chunk": {"choices": [], "usage": {"completion_tokens": 20}}},
    ],
    [chunk(reasoning_content="let me "), {"wait": 2000, "stop": True}, {"wait": 2000, "stop": True}],
    [chunk(role="assistant", refusal="not sure"), chunk("stop")],
]  # fmt: skip


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    node = shutil.which("node")
    assert node, "node is needed: apt-get install nodejs"
    inputs = {
        "texts": NONE + [text for text, _ in FOUND],
        "long": [("$", text, size) for text in SLOW for size in (20_000, 320_000, 20_000, 320_000)],
        "requests": REQUESTS, "conversations": [[USER, REPLY, USER, REPLY], []], "replies": STEPS,
    }  # fmt: skip
    done = subprocess.run(
        [node, SCRIPT, FILES, json.dumps(inputs)], capture_output=True, text=True, check=True, timeout=240
    )
    return dict(json.loads(done.stdout))


def test_what_is_a_formula_and_what_is_money_or_code(found: dict[str, Any]) -> None:
    formulas = [[(one["tex"], one["display"]) for one in each["formulas"]] for each in found["texts"]]
    expected = [*([] for _ in NONE), *(expected for _, expected in FOUND)]
    texts = NONE + [text for text, _ in FOUND]
    assert [pair for pair in zip(texts, formulas, expected) if pair[1] != pair[2]] == []
    assert [each["back"] for each in found["texts"]] == texts


def test_the_work_grows_with_the_text_and_not_with_its_square(found: dict[str, Any]) -> None:
    """Sixteen times the text would be 256 times the work."""
    for place, text in enumerate(SLOW):
        few, many, few_again, many_again = found["long"][4 * place : 4 * place + 4]
        assert min(many, many_again) < 60 * max(few, few_again, 2.0), text


def test_a_request_has_the_settings_and_no_reasoning(found: dict[str, Any]) -> None:
    conversation, missing, on, off = found["requests"]
    answer = {"role": "assistant", "content": "c"}
    assert conversation == {"model": "tiny", "messages": [USER, answer, USER], "temperature": 0}
    assert missing == {"model": "tiny", "messages": [USER, {**answer, "content": ""}, USER]}, "two questions in a row"
    assert on == {
        "model": "tiny", "messages": [USER], "temperature": 0.5, "max_tokens": 20, "chat_template_kwargs": {"thinking": True},
    }  # fmt: skip
    assert off["chat_template_kwargs"] == {"thinking": False}
    assert found["conversations"] == [[USER, REPLY, USER], []]


def test_a_thought_is_timed_and_what_ended_a_reply_is_said(found: dict[str, Any]) -> None:
    whole, stopped, refused = found["replies"]
    assert refused[-1]["turn"]["content"] == "not sure"
    assert [step["phase"] for step in whole[:3]] == ["Waiting", "Thinking", "Answering"]
    assert [step["empty"] for step in whole[:2]] == [True, False]
    assert whole[-1]["turn"] == {"role": "assistant", "content": "46", "reasoning": "let me ", "seconds": 3.2}
    assert whole[-1]["summary"] == "20 tokens in 5.0 s, 4 tokens per second. The reply reached the token limit."
    assert stopped[-1]["turn"]["seconds"] == 2.0
