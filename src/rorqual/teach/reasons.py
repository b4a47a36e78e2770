"""Ask a teacher for reasons: worked solutions of training examples that have only an answer.

The teacher answers each example. If the teacher's answer is right, the reply becomes the reasoning of the example. For an
example that the teacher does not solve, the teacher is told the answer and explains it. Explanations of a known answer are
counted separately, because such an explanation may be made up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rorqual.core.journal import read_lines
from rorqual.data.distilled import read_distilled
from rorqual.factory import FactoryConfig, FilterConfig, sample_teacher
from rorqual.factory.budget import Budget, BudgetReached
from rorqual.factory.config import RemoteAccess
from rorqual.factory.sampling_run import SAMPLES
from rorqual.factory.stored_samples import StoredSample, parse_sample
from rorqual.factory.teacher import LEDGER
from rorqual.tasks.examples import AnswerKind, write_examples
from rorqual.teach.answer_format import answer_format_instruction
from rorqual.teach.config import TeachConfig
from rorqual.teach.dataset import rows_of
from rorqual.teach.examples import Example

TRIES = 2
"""Number of replies that the teacher samples per example."""
TEMPERATURE, MAX_TOKENS = 0.7, 512
SMALLEST = 1e-9
"""The budget to set if no money is left, in the currency of the prices. A budget of 0 would mean no limit."""
ENOUGH = 0.5
"""Reasons are used if at least the share `ENOUGH` of the training examples has a reason. If reasons are used, examples without
a reason are left out."""
STEPS = "Think step by step, then state the answer on the last line."
GIVEN = "The right answer is {answer}. Explain step by step how to find it, then state the answer on the last line."


@dataclass(frozen=True)
class TeacherReasons:
    """The reasons that a teacher wrote. `texts` maps the key of an example to its reason. `given` has the keys of the examples whose answer the
    teacher was told. `stopped` says why the teacher stopped early, or is ""."""

    texts: Mapping[str, str]
    given: Sequence[str] = ()
    stopped: str = ""

    def with_reasons(self, train: Sequence[Example]) -> list[Example]:
        """Return the examples that have a reason, each with its reason as `reasoning`. If too few examples have a reason,
        return all examples unchanged."""
        found = [
            replace(one, reasoning=self.texts[one.key], told=one.key in self.given)
            for one in train
            if one.key in self.texts
        ]
        return found if self.has_enough_reasons(train) else list(train)

    def has_enough_reasons(self, train: Sequence[Example]) -> bool:
        """Return whether at least the share `ENOUGH` of the examples has a reason."""
        return len(self.texts) >= ENOUGH * len(train)

    def missing_reasons_note(self, train: Sequence[Example]) -> str:
        """Return a sentence that says what happens to examples without a reason, or "" if all examples have a reason."""
        missing = len(train) - len(self.texts)
        if not self.has_enough_reasons(train):
            return f"{missing:,} of {len(train):,} examples have no reason, so the reasons are not used, and the model learns only the answers"
        return f"{missing:,} examples without a reason are left out" if missing else ""


def read_reasons(path: Path) -> TeacherReasons:
    """Read the teacher's reasons from `path`, a file `reasons.json`."""
    return TeacherReasons(**json.loads(path.read_bytes()))


def teacher_reasons(
    config: TeachConfig,
    train: Sequence[Example],
    kind: AnswerKind,
    folder: Path,
    *,
    threads: int,
    api_key: str,
    say: Callable[[str], None],
) -> TeacherReasons:
    """Sample the teacher within its budget, and return the reasons. An interrupted call resumes from the samples in `folder`."""
    opening = answer_format_instruction(train, kind)
    texts: dict[str, str] = {}
    given, stopped = list[str](), ""
    for name, note in (("solved", STEPS), ("given", GIVEN)):
        left = [one for one in train if one.key not in texts]
        rows = [
            row | {"prompt": "\n\n".join(filter(None, (opening, one.prompt, note.format(answer=one.answer))))}
            for row, one in zip(rows_of(left), left, strict=True)
        ]
        found = {}
        if rows and not stopped:
            left_over = with_rest_of_budget(config, folder / "solved") if name == "given" else config
            stopped = sample_on_rows(left_over, rows, kind, folder / name, threads=threads, api_key=api_key)
            found = _right_replies(folder / name)
        texts |= found
        given += found if name == "given" else []
        say(
            f"  the teacher wrote reasons for {len(found):,} of {len(left):,} examples"
            + " that it did not solve" * (name == "given")
        )
    return TeacherReasons(texts, given, stopped)


def sample_on_rows(
    config: TeachConfig,
    rows: Sequence[Mapping[str, Any]],
    kind: AnswerKind,
    folder: Path,
    *,
    threads: int,
    api_key: str,
    **changes: Any,
) -> str:
    """Sample the teacher on `rows`, with `changes` of the factory's settings. Return the reason why sampling stopped early, or ""."""
    data = folder.with_name(f"{folder.name}-problems")
    write_examples(data, {"train": rows, "dev": [], "test": []}, {"kind": kind})
    factory = factory_config(config, data, len(rows)).model_copy(update=changes)
    try:
        sample_teacher(factory, folder, threads=threads, quiet=config.quiet, api_key=api_key)
    except BudgetReached as error:
        return error.what
    return ""


def factory_config(config: TeachConfig, data: Path, count: int) -> FactoryConfig:
    """Return the config for sampling the teacher on the `count` problems in the folder `data`."""
    return FactoryConfig(
        teacher=config.teacher,
        model=config.model,
        task="examples",
        data=str(data),
        options={"last_line": True} | ({"grader": config.grader} if config.grader else {}),
        problems=count,
        samples=TRIES,
        temperature=TEMPERATURE,
        max_tokens=MAX_TOKENS,
        seed=config.seed,
        keep="right",
        filters=FilterConfig(names=("length", "repetition")),
        access=RemoteAccess(budget=config.budget, price_in=config.price_in, price_out=config.price_out),
    )


def with_rest_of_budget(config: TeachConfig, folder: Path) -> TeachConfig:
    """Return the config with the money that the samples in `folder`, and answers that never arrived, leave of the budget."""
    if not config.budget:
        return config
    access = RemoteAccess(budget=config.budget, price_in=config.price_in, price_out=config.price_out)
    with Budget(folder / LEDGER, access, [], stored_samples(folder)) as account:
        return config.model_copy(update={"budget": max(config.budget - account.spending.total, SMALLEST)})


def stored_samples(folder: Path) -> list[StoredSample]:
    """Return the teacher's samples in `folder`, in the order of arrival."""
    return [parse_sample(line, str(folder / SAMPLES)) for line in read_lines(folder / SAMPLES)]


def _right_replies(folder: Path) -> dict[str, str]:
    """Return the reasoning of the shortest right reply to each example, by key."""
    found: dict[str, str] = {}
    for row in read_distilled(folder / "data.parquet").kept_samples:
        reply = row.messages[-1]
        text = (reply.reasoning or reply.text).strip()
        if text and (row.key not in found or len(text) < len(found[row.key])):
            found[row.key] = text
    return found
