"""Answers of all rungs of a task."""

from __future__ import annotations

from collections.abc import Sequence

from rorqual.teach.encoder import Encoder
from rorqual.teach.examples import AnswerKind, Example
from rorqual.teach.rungs.ladder import rungs_of
from rorqual.teach.rungs.rung import TrainingRows
from rorqual.teach.rungs.simple import Rule


def answers_of_rungs(
    train: Sequence[Example],
    test: Sequence[Example],
    kind: AnswerKind,
    *,
    rule: Rule | None = None,
    encoder: Encoder | None = None,
) -> dict[str, list[str]]:
    """Return the answers of each rung to the test examples, by the rung's name."""
    found = {}
    for rung in rungs_of(kind, rule=rule, encoder=encoder):
        rung.fit(TrainingRows(train, kind))
        found[rung.name] = [guess.answer for guess in rung.predict([one.prompt for one in test])]
    return found
