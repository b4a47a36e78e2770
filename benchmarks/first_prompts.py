"""Ask quickstart teachers the thirty simplest prompts of each family, and sixty prompts outside all families.

    python benchmarks/first_prompts.py runs/seed-2 runs/seed-3 ...    # folders of `rorqual quickstart --seed N --out DIR`

The result is docs/results/first-prompts.json. The teacher is asked as `rorqual chat` asks it: it chooses whether to think, at
temperature 0. A simple prompt needs the right answer. An outside prompt needs the sentence that declines it, word for word.
`--run base` asks the model before GRPO.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import chain, combinations, islice, permutations, product
from pathlib import Path
from typing import Any

from record import made_by

from rorqual.core.records import Message, write_json
from rorqual.engine import Engine, Request, SamplingParams
from rorqual.tasks.families.outside import SENTENCE

NUMBERS = {
    "add": ((1, 1), (1, 2), (2, 2), (5, 7), (9, 9), (10, 1), (5, 12), (99, 1), (12, 34), (100, 20)),
    "sub": ((1, 1), (2, 1), (5, 3), (9, 4), (10, 1), (12, 5), (20, 7), (34, 12), (100, 1), (100, 50)),
    "mod": ((1, 2), (4, 2), (5, 2), (7, 3), (8, 5), (9, 7), (10, 3), (12, 5), (17, 9), (100, 7)),
}
"""Ten pairs of small numbers for each calculation. Each pair is asked in three forms."""
SIGNS = {"add": "+", "sub": "-", "mod": "%"}
COUNTED = (
    "a:at a:a t:at e:he e:be b:be o:so i:it n:on y:my a:cat t:cat z:cat e:bee e:eye o:dog o:too n:sun s:sun x:sun o:book b:book "
    "e:tree r:tree o:moon o:noon a:area l:ball a:ball e:word"
)
OUTSIDE = (
    "hello world", "Hi there!", "Good morning, Rorqual", "How are you today?", "who are you", "Please help me, Rorqual",
    "What can you do?", "bye bye", "What is the capital of France?", "Who wrote Hamlet?", "What is love?", "Why is the sky blue?",
    "Tell me a joke about cats and dogs, would you?", "Write a haiku about autumn leaves in the wind", "Translate 'house' into German",
    "Explain gravity", "When did the Titanic sink?", "i am bored", "Is 17 a prime number?", "List three colours", "okay then",
    "lol what?", "asdfghjkl", "The quick brown fox jumps.", "Rorqual", "yes please", "你好", "今天天气怎么样?", "1加1等于几",
    "こんにちは", "안녕하세요", "Привет, как дела?", "مرحبا",
    "¿Qué hora es?", "Wie geht es dir?", "Bonjour tout le monde", "🙂", "🐳🐳🐳", "84/12", "What is 96/12?",
    "371 / 7", "13*24", "17 x 38", "2^64", "sqrt(16)", "11+22+33", "90-25-13", "1.75+2.25", "What is half of 10?", "two plus three",
    "123456789012+987654321098", "99999999999-1", "mul 16*27", "div 96/32", "365!", "print('hello')", "SELECT * FROM users;",
    "https://example.com", "<b>bold</b>", "x = 3",
)  # fmt: skip
"""Sixty prompts that no family knows. `tests/tasks/test_plain.py` checks that training does not draw them."""


def swaps() -> Iterator[tuple[str, str]]:
    """Yield ten swaps of words of two, three and five letters. Each swaps the first and the last letter."""
    for length in (2, 3, 5):
        for letters in islice(permutations("abcde", length), 10):
            word = "".join(letters)
            yield f"swap {word} {word[0]}{word[-1]}", f"{word[-1]}{word[1:-1]}{word[0]}"


def puzzles() -> Iterator[tuple[str, str]]:
    """Yield puzzles about A and B that have one solution: first those with one statement, then those with two."""
    literals = [sign + person for person in "AB" for sign in ("", "-")]
    joined = [
        one + sign + other for one, other in product(literals, literals) for sign in "&|=" if one[-1] != other[-1]
    ]
    said = [f"{person}:{text}" for person in "AB" for text in (*literals, *joined) if text.strip("-") != person]
    for statements in chain(combinations(said, 1), combinations(said, 2)):
        fit = [case for case in ("11", "10", "01", "00") if all(can_say(case, one) for one in statements)]
        if len(fit) == 1:
            yield f"kk {' '.join(statements)}", fit[0]


def can_say(case: str, statement: str) -> bool:
    """Return whether the statement is true exactly if its speaker is a knight. In `case`, 1 is a knight: the first digit is A's."""
    speaker, text = statement.split(":")
    role = dict(zip("AB", (digit == "1" for digit in case), strict=True))
    for sign, join in (("&", bool.__and__), ("|", bool.__or__), ("=", bool.__eq__)):
        if sign in text:
            one, other = (role[part[-1]] != part.startswith("-") for part in text.split(sign))
            return join(one, other) == role[speaker]
    return (role[text[-1]] != text.startswith("-")) == role[speaker]


def simple_prompts() -> dict[str, dict[str, str]]:
    """Return thirty prompts of each family, each with its right answer."""
    value = {"add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mod": lambda a, b: a % b}
    found: dict[str, dict[str, str]] = {}
    for name, pairs in NUMBERS.items():
        found[name] = {
            form: str(value[name](a, b))
            for number, (a, b) in enumerate(pairs)
            for sign in [f" {SIGNS[name]} " if number % 2 else SIGNS[name]]
            for form in (f"{name} {a}{SIGNS[name]}{b}", f"{a}{sign}{b}", f"What is {a}{sign}{b}?")
        }
    found["swap"] = dict(islice(swaps(), 30))
    found["count"] = {f"count {pair}": str(pair[2:].count(pair[0])) for pair in COUNTED.split()}
    found["kk"] = dict(islice(puzzles(), 30))
    return found


def replies(run: Path, prompts: list[str]) -> dict[str, str]:
    """Return the model's reply to each prompt, without its reasoning."""
    params = SamplingParams(max_tokens=120, temperature=0)
    found = Engine(run, threads=2).generate([Request((Message("user", prompt),), params) for prompt in prompts])
    return {prompt: reply.text.strip() for prompt, [reply] in zip(prompts, found, strict=True)}


def ask(run: Path) -> dict[str, Any]:
    """Return how many prompts of each family are answered rightly, how many outside prompts are declined, and all other replies."""
    asked = simple_prompts()
    found = replies(run, [*chain.from_iterable(asked.values()), *OUTSIDE])
    right = {
        name: sum(found[prompt] == answer for prompt, answer in prompts.items()) for name, prompts in asked.items()
    }
    wanted = {**{p: a for prompts in asked.values() for p, a in prompts.items()}, **dict.fromkeys(OUTSIDE, SENTENCE)}
    wrong = {prompt: found[prompt] for prompt in found if found[prompt] != wanted[prompt]}
    return {"right": right, "declined": sum(found[prompt] == SENTENCE for prompt in OUTSIDE), "wrong": wrong}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--run", default="teacher", help="the run in each folder that is asked")
    parser.add_argument("--result", type=Path, default=Path("docs/results/first-prompts.json"))
    given = parser.parse_args()
    made = made_by({folder: f"runs/{folder.name}" for folder in given.folders})
    by_seed = {}
    for folder in given.folders:
        by_seed[folder.name] = ask(folder / given.run)
        print(
            folder.name, by_seed[folder.name]["right"], "declined", by_seed[folder.name]["declined"], "of", len(OUTSIDE)
        )
    write_json(given.result, {"made by": made, "asked": {"family": 30, "outside": len(OUTSIDE)}, "seeds": by_seed})


if __name__ == "__main__":
    main()
