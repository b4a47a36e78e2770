r"""What between dollars is a formula on the page, and what is money. Gradio draws `\( \)` and `\[ \]` alone: test_page.py looks at that."""

from __future__ import annotations

import time

import pytest

from rorqual.serve.ui_chat import FORMULAS
from rorqual.serve.ui_math import shown, typed
from rorqual.serve.ui_turn import corrected, pictured

PRICES = [
    "$5 and $6", "$5", "$", "$$", "$$$", "from $5 to $10.", "US$5 or US$6", "A$5/US$6", "5$ or 6$", "$5 and 6$", "$5,$6", "$5-$10", "$5–$10",
    "**$5** and **$6**", "| $5 | $6 |", "- $5\n- $6", "$5 (was $10)", "$100k for A, $200k for B", "$20 to 30$",
    "$5 ou 6$", "价格$5,约$6", "$5 и 6$", "5元和$6, $7元",
    "cheap ($), mid ($$), high ($$)", "$5\n\n6$", "$ 5 $", r"\$5 and \$6", "$HOME/$USER", "$PATH:$HOME", "echo $HOME and $USER",
]  # fmt: skip
CODE = [
    "`$x$`", "``a ` $x$``", "```sh\n$a$ $b$\n```", "```\n$a$", "~~~\n$a$\n~~~\nend", "  ```\n  $a$\n  ```", "> ```\n> $a$\n> ```", "`$a",
]  # fmt: skip
FOUND = [
    ("$x^2$", r"\(x^2\)"),
    ("$$x^2$$", r"\[x^2\]"),
    ("$$\na\n+ b\n$$", "\\[\na\n+ b\n\\]"),
    ("$a\n+ b$", "\\(a\n+ b\\)"),
    ("$5$", r"\(5\)"),
    ("$5x + 3$", r"\(5x + 3\)"),
    (r"$1{,}000$", r"\(1{,}000\)"),
    (r"$2 \text{ and more}$", r"\(2 \text{ and more}\)"),
    (r"$\$5 + x$", r"\(\$5 + x\)"),
    ("($x$), $y$.", r"(\(x\)), \(y\)."),
    ("the $n$th $k$-mean", r"the \(n\)th \(k\)-mean"),
    ("**$x$**", r"**\(x\)**"),
    ("| $x$ | $y$ |", r"| \(x\) | \(y\) |"),
    ("$x$ for $5 or $6", r"\(x\) for $5 or $6"),
    ("$5, and $x$ for $6", r"$5, and \(x\) for $6"),
    ("`$x$` is $x$", r"`$x$` is \(x\)"),
    ("```\n$a$\n```\n$a$", "```\n$a$\n```\n\\(a\\)"),
    (r"\(x\) and \[y\] and $z$", r"\(x\) and \[y\] and \(z\)"),
    ("$2α + β$", r"\(2α + β\)"),
    ("公式$x$在此", r"公式\(x\)在此"),
]


def test_gradio_is_told_of_no_dollar() -> None:
    assert not any("$" in left + right for left, right, _ in FORMULAS)


@pytest.mark.parametrize("text", PRICES + CODE)
def test_what_is_no_formula_stays_as_it_is(text: str) -> None:
    assert shown(text) == text


@pytest.mark.parametrize(("text", "picture"), FOUND)
def test_a_formula_is_shown_as_one_and_comes_back_as_it_was_typed(text: str, picture: str) -> None:
    assert shown(text) == picture
    assert typed(picture, text) == text
    assert typed(picture + " more", text) == text + " more"


def test_a_question_that_is_changed_keeps_its_own_formulas() -> None:
    rows = [{"role": "user", "content": r"$x$ and \(y\) for $5"}, {"role": "assistant", "content": "$z$"}]
    assert [row["content"] for row in pictured(rows)] == [r"\(x\) and \(y\) for $5", r"\(z\)"]
    assert rows[1]["content"] == "$z$", "what was said is not touched"
    asked = corrected(rows, 0, [{"type": "text", "text": r"\(x\) and \(y\) for $6"}])
    assert [row["content"] for row in asked] == [r"$x$ and \(y\) for $6"]
    assert [row["content"] for row in corrected(rows, 7, "a")] == [rows[0]["content"], "$z$", "a"]


@pytest.mark.parametrize(
    "text", ["$", "$a ", "$$ ", "`", "`a ", "\\(", "```$\n", "$a", "$5 and ", "".join("`" * n + "a" for n in range(60))]
)
def test_the_work_grows_with_the_text_and_not_with_its_square(text: str) -> None:
    """A step is a character; sixteen times the text would be 256 times the work."""

    def seconds(size: int) -> float:
        whole = "$" + text * (size // len(text))
        began = time.process_time()
        shown(whole)
        return time.process_time() - began

    assert min(seconds(320_000) for _ in range(3)) < 60 * max(min(seconds(20_000) for _ in range(3)), 0.002)
