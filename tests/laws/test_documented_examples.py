"""Prompts that the documentation shows are answered rightly by the quickstart's teachers of five seeds (`make examples`)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULT = json.loads((ROOT / "docs/results/examples.json").read_text(encoding="utf-8"))
PROMPT = re.compile(
    r"\b(?:add \d+\+\d+|sub \d+-\d+|mod \d+%\d+|swap [a-z]{5}(?: [a-z]{2})+|count [a-z]:[a-z]+)(?![\w%*/])"
)
PAGES = [
    *(ROOT / name for name in ("README.md", "README.zh.md", "src/rorqual/cli/main.py", "examples")),
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if path.parent.name not in ("tour", "reference")),
]
SHOWN = {
    (path.relative_to(ROOT).as_posix(), prompt)
    for path in PAGES
    if path.is_file()
    for prompt in PROMPT.findall(path.read_text(encoding="utf-8"))
}


def test_pages_show_prompts() -> None:
    assert len({prompt for _, prompt in SHOWN}) >= 3 and len({page for page, _ in SHOWN}) >= 5


@pytest.mark.parametrize(("page", "prompt"), sorted(SHOWN))
def test_a_prompt_of_a_page_is_answered_rightly_by_all_teachers(page: str, prompt: str) -> None:
    assert prompt in RESULT["answers"], f"{page}: add '{prompt}' to scripts/examples.py and run `make examples`"
    assert RESULT["right"][prompt] == {"on": 5, "auto": 5}, f"{page}: show another prompt"


def test_the_result_counts_what_the_teachers_said() -> None:
    """The right answer is computed here, and the count is taken again from the answers of each seed."""
    assert len(RESULT["seeds"]) == 5
    for prompt, answer in RESULT["answers"].items():
        kind, _, rest = prompt.partition(" ")
        if kind in ("add", "sub", "mod"):
            first, sign, second = re.split(r"([-+%])", rest)
            value = {"+": int(first) + int(second), "-": int(first) - int(second), "%": int(first) % int(second)}[sign]
            assert answer == str(value)
        for thinking in ("on", "auto"):
            said = [found[prompt][thinking] for found in RESULT["seeds"].values()]
            assert said.count(answer) == RESULT["right"][prompt][thinking]


@pytest.mark.parametrize("page", ["README.md", "README.zh.md"])
def test_the_answer_that_readme_promises(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    [(prompt, answer)] = re.findall(r'echo "([^"]+)" \|.*# (?:answers|回答) (\d+)', text)
    assert RESULT["answers"][prompt] == answer
