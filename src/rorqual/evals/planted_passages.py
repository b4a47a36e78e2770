"""Passages with a planted text to which later tokens should attend: a key with its value (needle), or a line that is copied.

The tokens of question and answer attend to the planted text. The module measures how much of the dense attention to the planted
text lies on selected positions. The share on selected positions is meaningful even if the model cannot answer. The module also
counts the answer tokens that the model predicts correctly.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch

from rorqual.data.passages import load_passage
from rorqual.data.tokenizer import Tokenizer
from rorqual.evals.sparse_attention_misses import (
    run_sparse_and_dense,
    sparse_layers,
    trained_budget,
    weights_and_selection,
)
from rorqual.model.decoder import Decoder

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


@dataclass(frozen=True)
class PlantedPassage:
    """A passage of n tokens that ends with an answer, as n + 1 ids: the last id is only a target.

    `planted` are the positions of the planted text. `queries` are the positions of the question and of the answer, whose tokens
    should attend to the planted text. `answers` are the queries whose next token is part of the answer.
    """

    tokens: tuple[int, ...]
    planted: range
    queries: range
    answers: range


@dataclass(frozen=True)
class PlantedMisses:
    """How much of the dense attention to a planted text lies outside the selected positions, at `budget` positions per query,
    over `passages` passages of `length` tokens.

    - `depth`: share of the filler before the planted text.
    - `distance`: mean number of tokens from the start of the planted text to the start of the question. The question of
      a copied line is the start of the second copy.
    - `attention`, one value per layer: share of the dense attention weights on planted positions, averaged over queries and
      heads.
    - `inside`, one value per layer: share of `attention` that lies on selected positions.
    - `right_sparse`, `right_dense`: share of answer tokens that the model ranks first. `answers` is the number of answer
      tokens.
    - `loss_sparse`, `loss_dense`: loss per answer token, in nats.
    """

    kind: PlantedKind
    budget: int
    length: int
    depth: float
    distance: int
    passages: int
    answers: int
    attention: tuple[float, ...]
    inside: tuple[float, ...]
    right_sparse: float
    right_dense: float
    loss_sparse: float
    loss_dense: float

    @property
    def selected_share(self) -> float:
        """Share of the dense attention to the planted text that lies on selected positions, over all layers."""
        total = sum(self.attention)
        return sum(a * b for a, b in zip(self.attention, self.inside, strict=True)) / total if total else 1.0

    def to_json(self) -> dict[str, Any]:
        """Return all measured values as JSON."""
        return asdict(self) | {"kept": self.selected_share}


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


def plant(tokenizer: Tokenizer, parts: Sequence[PlantedTokens], length: int, depth: float) -> list[PlantedPassage]:
    """Return a passage of `length` tokens for each of `parts`, with the planted text at `depth` and the answer at the end.

    The filler is the sample passage "prose", repeated as needed. Each passage starts at a different place in the filler.
    """
    text = tokenizer.encode(load_passage("prose"))
    found = []
    for index, part in enumerate(parts):
        room = length + 1 - part.total_tokens
        start, before = index * len(text) // len(parts), round(depth * room)
        filler = [text[(start + place) % len(text)] for place in range(room)]
        tokens = (*filler[:before], *part.planted, *filler[before:], *part.question, *part.answer)
        planted = range(before, before + len(part.planted))
        queries = range(room + len(part.planted), length)
        found.append(PlantedPassage(tokens, planted, queries, range(length - len(part.answer), length)))
    return found


@torch.no_grad()
def measure_planted(
    model: Decoder, kind: PlantedKind, passages: Sequence[PlantedPassage], depth: float, budget: int = 0
) -> PlantedMisses | None:
    """Measure how much of the dense attention to the planted texts lies outside the selected positions, at `budget` positions
    per query (0: the model's index_topk).

    Returns None if a query sees at most `budget` positions, because the attention of such a query is dense. The passages must
    have equal lengths. Raises ConfigError if the model has no sparse attention.
    """
    layers = sparse_layers(model)
    budget = budget or trained_budget(layers)
    if min(one.queries.start for one in passages) < budget:
        return None
    device = next(model.parameters()).device
    length = len(passages[0].tokens) - 1
    attention, inside = np.zeros(len(layers)), np.zeros(len(layers))
    right, losses, queries, answers = np.zeros(2), np.zeros(2), 0, 0
    for one in passages:
        tokens = torch.tensor([one.tokens], device=device)
        recorded, *both = run_sparse_and_dense(model, layers, tokens[:, :-1], budget)
        at, targets = slice(one.answers.start, one.answers.stop), tokens[0, one.answers.start + 1 :]
        for index, hidden in enumerate(both):
            logprobs = model.logits(hidden[at]).log_softmax(-1)
            right[index] += int((logprobs.argmax(-1) == targets).sum())
            losses[index] -= float(logprobs.gather(1, targets[:, None]).double().sum())
        queries, answers = queries + len(one.queries), answers + len(targets)
        for layer in range(len(layers)):
            of_layer = {name: values[layer] for name, values in recorded.items()}
            weights, chosen = weights_and_selection(of_layer, slice(one.queries.start, one.queries.stop))
            place = slice(one.planted.start, one.planted.stop)
            attention[layer] += float(weights[:, place].sum())
            inside[layer] += float((weights * chosen)[:, place].sum())
    return PlantedMisses(
        kind=kind,
        budget=budget,
        length=length,
        depth=depth,
        distance=round(sum(one.queries.start - one.planted.start for one in passages) / len(passages)),
        passages=len(passages),
        answers=answers,
        attention=tuple((attention / queries).tolist()),
        inside=tuple(np.divide(inside, attention, out=np.ones_like(inside), where=attention > 0).tolist()),
        right_sparse=float(right[0]) / answers,
        right_dense=float(right[1]) / answers,
        loss_sparse=float(losses[0]) / answers,
        loss_dense=float(losses[1]) / answers,
    )
