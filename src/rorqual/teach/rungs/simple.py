"""Rungs that learn next to nothing: the most frequent answer, the prompt itself, and the user's rule."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rorqual.core.errors import ConfigError, TaskError
from rorqual.tasks.examples import load_function
from rorqual.tasks.find import wrap_user_error
from rorqual.teach.rungs.rung import Guess, Rung, TrainingRows

Rule = Callable[[str], str]
MAJORITY = "majority"
"""The name of the rung that always gives the most frequent answer."""


class Majority(Rung):
    """The most frequent answer. Of equally frequent answers, the first in the training examples is used."""

    name = MAJORITY

    def fit(self, rows: TrainingRows) -> None:
        [(place, count)] = Counter(rows.classes.tolist()).most_common(1)
        self.guess = Guess(rows.answers[place], count / len(rows.classes))

    def predict(self, prompts: Sequence[str]) -> list[Guess]:
        return [self.guess] * len(prompts)


class UnchangedInput(Rung):
    """The prompt itself."""

    name = "unchanged input"

    def fit(self, rows: TrainingRows) -> None:
        self.share = sum(one.prompt == one.answer for one in rows.examples) / len(rows.examples)

    def predict(self, prompts: Sequence[str]) -> list[Guess]:
        return [Guess(prompt, self.share) for prompt in prompts]


class UserRule(Rung):
    """The user's function from a prompt to an answer, which learns nothing. Raises TaskError if the function fails.

    `spec`, such as "./mine.py:function", names the function's file. A file of the rung keeps only this name; without it, the rung
    cannot be saved.
    """

    name = "rule"

    def __init__(self, rule: Rule, spec: str = "") -> None:
        self.rule, self.spec = rule, spec

    def fit(self, rows: TrainingRows) -> None:
        pass

    def predict(self, prompts: Sequence[str]) -> list[Guess]:
        return [Guess(apply_rule(self.rule, prompt), 1.0) for prompt in prompts]

    def __getstate__(self) -> dict[str, Any]:
        if not self.spec:
            raise ConfigError(
                "the rule names no file, so it cannot be saved",
                where="key 'rule'",
                remedy="Give rule=./mine.py:function.",
            )
        return {"spec": self.spec, "sha256": _digest(self.spec)}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.spec = state["spec"]
        if _digest(self.spec) != state["sha256"]:
            raise ConfigError(
                "the file of the rule is missing or has changed since `rorqual teach` measured it",
                where=self.spec,
                remedy="Restore the file, or run `rorqual teach` again in another folder.",
            )
        self.rule = load_function(self.spec, "rule")


def _digest(spec: str) -> str:
    """Return the SHA-256 of the file of a rule, or "" if there is no such file."""
    file = Path(spec.rpartition(":")[0])
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def apply_rule(rule: Rule, prompt: str) -> str:
    """Return the rule's answer to a prompt. Raises TaskError, with the prompt, if the rule raises or returns no text."""
    name, where = getattr(rule, "__name__", repr(rule)), f"the prompt {prompt!r:.80}"
    try:
        answer = rule(prompt)
    except Exception as error:  # a user's rule may raise any exception
        raise wrap_user_error(error, where, f"the rule `{name}`") from error
    if isinstance(answer, dict):
        with suppress(TypeError, ValueError):
            return json.dumps(answer, ensure_ascii=False)
    if not isinstance(answer, str):
        raise TaskError(
            f"the rule `{name}` returned a {type(answer).__name__}, not a string or a dict of JSON values",
            where=where,
            remedy="Return the answer as a string, or the fields of a JSON answer as a dict.",
        )
    return answer
