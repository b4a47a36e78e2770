"""Passages with a planted text to which later tokens should attend: a key with its value (needle), or a line that is copied.

The tokens of question and answer should attend to the planted text. The share of their attention that lies on selected positions
is meaningful even if the model cannot answer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from rorqual.data.passages import load_passage
from rorqual.data.tokenizer import Tokenizer
from rorqual.evals.sparse_attention_damage import Passage

PlantedKind = Literal["needle", "copy"]
PLANTED: tuple[PlantedKind, ...] = get_args(PlantedKind)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Depths of the planted text: the share of the filler that precedes the planted text."""
LENGTHS = (0.25, 0.5, 0.75, 1.0)
"""Lengths of needle passages, as shares of the largest passage length."""
OWNERS = ("Ada", "Bo", "Cem", "Dora", "Eli", "Fay", "Gus", "Hal")
COPIED, CUE = 24, 6
"""A copied line has `COPIED` tokens. The first `CUE` tokens of the line form the question and are not scored."""


@dataclass(frozen=True)
class PlantedTokens:
    """The token ids of a planted text, its question and its answer. A passage ends with the question and the answer."""

    planted: tuple[int, ...]
    question: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def total_tokens(self) -> int:
        """The total number of tokens of planted text, question and answer."""
        return len(self.planted) + len(self.question) + len(self.answer)


def needles(tokenizer: Tokenizer, count: int) -> list[PlantedTokens]:
    """Return `count` keys with their values. The question asks for the value of the key."""
    found = []
    for index in range(count):
        owner = OWNERS[index % len(OWNERS)]
        value = tokenizer.encode(f"{random.Random(index).randrange(1000, 10000)}")
        planted = [*tokenizer.encode(f"\n{owner}'s key="), *value, *tokenizer.encode(".\n")]
        question = tokenizer.encode(f"\nWhat is {owner}'s key? {owner}'s key=")
        found.append(PlantedTokens(tuple(planted), tuple(question), tuple(value)))
    return found


def copies(tokenizer: Tokenizer, count: int) -> list[PlantedTokens]:
    """Return `count` lines to copy. Each copied line is the first `COPIED` tokens of a line from the sample passage "names".

    The first `CUE` tokens of a copied line are the question, and the later tokens are the answer.
    """
    lines = [line for line in load_passage("names").splitlines() if ";" in line]
    cut = [tokenizer.encode("\n" + lines[index % len(lines)])[:COPIED] for index in range(count)]
    return [PlantedTokens(tuple(line), tuple(line[:CUE]), tuple(line[CUE:])) for line in cut]


def plant(tokenizer: Tokenizer, parts: Sequence[PlantedTokens], length: int, depth: float) -> list[Passage]:
    """Return a passage of `length` tokens for each of `parts`, with the planted text at `depth` and the answer at the end.

    The queries are the tokens of question and answer, and the tokens of the answer are scored.

    The filler is the sample passage "prose", repeated as needed. Each passage starts at a different place in the filler.
    """
    text = tokenizer.encode(load_passage("prose"))
    found = []
    for index, part in enumerate(parts):
        room = length + 1 - part.total_tokens
        start, before = index * len(text) // len(parts), round(depth * room)
        filler = [text[(start + place) % len(text)] for place in range(room)]
        found.append(
            Passage(
                tokens=(*filler[:before], *part.planted, *filler[before:], *part.question, *part.answer),
                queries=range(room + len(part.planted), length),
                scored=range(length - len(part.answer), length),
                sought=range(before, before + len(part.planted)),
            )
        )
    return found
