"""The rungs of a task without a language model, from the cheapest to the most expensive."""

from __future__ import annotations

from collections.abc import Iterator

from rorqual.teach.encoder import Encoder
from rorqual.teach.examples import AnswerKind
from rorqual.teach.rungs.calculation import RankedCalculations
from rorqual.teach.rungs.classifiers import NEAREST, LogisticRegression, NearestNeighbour
from rorqual.teach.rungs.features import Embeddings, TfIdf
from rorqual.teach.rungs.fields import Fields
from rorqual.teach.rungs.regression import NumberRegression
from rorqual.teach.rungs.rung import Rung
from rorqual.teach.rungs.simple import Majority, Rule, UnchangedInput, UserRule
from rorqual.teach.rungs.tuned_fields import TunedFields
from rorqual.teach.rungs.tuned_labels import TunedLabels


def rungs_of(
    kind: AnswerKind, *, rule: Rule | None = None, rule_spec: str = "", encoder: Encoder | None = None
) -> Iterator[Rung]:
    """Yield the rungs for answers of a kind, in the order of cost. Rungs that need the encoder are left out without it.

    Logistic regression is for labels only, ranked calculations for numbers, conditional random fields for JSON, and the unchanged input
    for free text. `rule_spec`, such as "./mine.py:function", names the file of `rule`; a rule without it cannot be saved.
    """
    yield Majority()
    if kind == "text":
        yield UnchangedInput()
    if rule is not None:
        yield UserRule(rule, rule_spec)
    yield NearestNeighbour(NEAREST, TfIdf(words=True))
    if kind == "label":
        choices = {"words and characters": TfIdf(words=True), "characters": TfIdf(words=False)}
        yield LogisticRegression("logistic regression", choices)
    if kind == "number":
        yield RankedCalculations()
        yield NumberRegression()
    if kind == "JSON":
        yield Fields()
    if encoder is not None:
        embeddings = Embeddings(encoder)
        yield NearestNeighbour("nearest neighbour, embeddings", embeddings)
        if kind == "label":
            yield LogisticRegression("logistic regression, embeddings", {"embeddings": embeddings})
            yield TunedLabels(encoder)
        if kind == "JSON":
            yield TunedFields(encoder)
