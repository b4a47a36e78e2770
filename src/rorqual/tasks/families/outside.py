"""Prompts that no family knows. The answer to each is the same sentence."""

from __future__ import annotations

import random
import string
from dataclasses import replace
from typing import ClassVar

from rorqual.tasks.families.family import FORMS, Family, random_number
from rorqual.tasks.task import Problem

SENTENCE = "I only know add, sub, mod, swap, count and kk."
"""The sentence that declines a prompt. It names the first words of the prompts that a model knows."""
LONGEST = 40
"""Maximum length of a prompt in UTF-8 bytes. With 80 tokens for the reply, the prompt fits into the quickstart's rows of 128 tokens."""
WORDS = (
    "a about all and are bad best big bird blue book by can car cat city cold color come country day do does dog draw eat end "
    "every explain father feel find fish food for friend from game get girl give go good great green happy have he help her hot "
    "house how i in is it joke king know language learn life like list long look love make man many me mean moon money more "
    "mother much music my name new night no not of old on one or our people play please poem red river say school sea she "
    "should sing sky small some song star start story sun talk tell than thank that the there they thing think three time "
    "to today tree true two under use very war was water we weather week what when where which white who why will word work "
    "world would write year yes you young your"
)
STARTS = (
    "", "", "", "what is ", "what ", "who is ", "where is ", "when was ", "why do ", "how do i ", "how many ", "can you ", "write ",
    "tell me ", "i ", "do you ", "give me ", "hello ", "hi ", "hey ", "good ", "thanks ", "translate ",
)  # fmt: skip
"""The beginnings of sentences."""
ALPHABETS = (
    *(f"{string.ascii_lowercase}   ", f"{string.ascii_letters} ", f"{string.punctuation}{string.digits} abc") * 3,
    *(
        "".join(map(chr, range(*bounds)))
        for bounds in (
            (0x4E00, 0x9FA0), (0x4E00, 0x5400), (0x3041, 0x3097), (0xAC00, 0xD7A4), (0x0430, 0x0450), (0x0391, 0x03CA),
            (0x05D0, 0x05EB), (0x0621, 0x064B), (0x0905, 0x093A), (0x1F300, 0x1F650), (0x00C0, 0x0180),
        )
    ),
)  # fmt: skip
"""Latin letters and signs, then Chinese, Japanese, Korean, Russian, Greek, Hebrew, Arabic, Hindi, emoji, and letters with accents."""
OPERATORS = ("*", "/", "x", "^", "**", "//", "÷", "×", ":", "=", "<", ">", "&", " and ", " plus ", " minus ", " times ")
NAMES = ("add", "sub", "mod", "swap", "count", "kk")
OTHER_FORMS = (*FORMS, *FORMS, "mul {question}", "div {question}", "{question}=", "{question}?", "sqrt {question}")


class Outside(Family):
    """Prompts outside the other families: sentences, other scripts, other calculations, very large numbers, and unfinished prompts."""

    name: ClassVar[str] = "outside"
    easy: ClassVar[range] = range(0)
    hard: ClassVar[range] = range(0)
    numeric: ClassVar[bool] = False

    def sample(self, rng: random.Random, difficulty: int) -> Problem:
        make = rng.choice((_sentence, _sentence, _characters, _characters, _calculation, _calculation, _misuse))
        text = make(rng).encode()[:LONGEST].decode(errors="ignore").strip() or "?"
        problem = self.problem(difficulty, key=text, prompt=text, steps="outside", answer=SENTENCE, form="{question}")
        return replace(problem, meta={"declined": True})

    def count_keys(self, difficulty: int) -> int:
        return len(WORDS.split()) ** 4


def _sentence(rng: random.Random) -> str:
    """Return random words, most of the time after a usual beginning of a question or a request."""
    text = rng.choice(STARTS) + " ".join(rng.choices(WORDS.split(), k=rng.randint(0, 6)))
    return rng.choice((text, text.capitalize(), text.capitalize(), text.title())) + rng.choice(("", "", "?", ".", "!"))


def _characters(rng: random.Random) -> str:
    """Return random characters of one alphabet."""
    return "".join(rng.choices(rng.choice(ALPHABETS), k=rng.randint(1, 16)))


def _calculation(rng: random.Random) -> str:
    """Return a calculation that no family knows: another operator, a third number, a sign, a point, a negative result, another
    divisor, a number of more than seven digits, or a part of a calculation."""
    (a, b, c), gap, known = (random_number(rng, 0) for _ in range(3)), rng.choice(("", " ")), rng.choice("+-%")
    large = rng.randrange(10**7, 10 ** rng.randint(8, 15))
    question = rng.choice(
        (
            f"{a}{gap}{rng.choice(OPERATORS)}{gap}{b}",
            f"{a}{gap}{rng.choice(OPERATORS)}{gap}{b}",
            f"{a}{gap}{known}{gap}{b}{gap}{rng.choice('+-%*/')}{gap}{c}",
            f"{rng.choice('-(')}{a}{gap}{known}{gap}{b}",
            f"{a}.{b}{gap}{known}{gap}{c}",
            f"{large}{gap}{known}{gap}{rng.choice((large, a))}",
            f"{a}{gap}{known}{gap}{large}",
            f"{min(a, b)}{gap}-{gap}{max(a, b) + 1}",
            f"{a}{gap}%{gap}{rng.choice((0, 1, 4, 6, 8, rng.randint(10, 999)))}",
            rng.choice((f"{a}", f"{a}{gap}{known}", f"{known}{gap}{a}", f"{a} {b}")),
        )
    )
    return rng.choice(OTHER_FORMS).format(name=rng.choice(NAMES), question=question)


def _misuse(rng: random.Random) -> str:
    """Return the name of a family with something that does not belong to it."""
    word = _characters(rng)
    rest = rng.choice((word, _sentence(rng), f"{random_number(rng, 0)}", f"{word} {word[:2]}", f"{word}:"))
    return f"{rng.choice(NAMES)} {rest}"
