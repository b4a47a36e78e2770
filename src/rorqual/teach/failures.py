"""What a taught model still gets wrong, and which answers became right or wrong between two evaluations of the same examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rorqual.evals.evaluation import Evaluation, GradedSample
from rorqual.evals.table import percent
from rorqual.report.table import Table
from rorqual.tasks.examples import AnswerKind, canonical_form
from rorqual.tasks.file_task import normalize_text
from rorqual.tasks.task import Verdict
from rorqual.teach.examples import parse_json, truncate
from rorqual.teach.rungs.fields import as_text, flatten

SHOWN_GROUPS = 15
CHANGES = ("gained", "lost", "still wrong", "still right")
SHOWN_CHANGES = ("lost", "still wrong", "gained")
LONG = 300
"""Maximum number of characters of a reply that are shown."""


@dataclass(frozen=True)
class BeforeAfterReplies:
    """The replies to one example in two evaluations, such as before and after training."""

    before: GradedSample
    after: GradedSample

    @property
    def change(self) -> str:
        """The change from the first evaluation's reply to the second's: `gained`, `lost`, `still wrong` or `still right`."""
        was, is_ = (one.verdict is Verdict.RIGHT for one in (self.before, self.after))
        names = {
            (False, True): "gained",
            (True, False): "lost",
            (False, False): "still wrong",
            (True, True): "still right",
        }
        return names[was, is_]


@dataclass(frozen=True)
class FailureGroup:
    """The results of two evaluations on a group of examples. A group has the examples with one right label, the examples with
    one field in their JSON answers, or all examples.

    `before` and `after` count the right answers of the two evaluations. `gained` and `lost` count the answers that became right
    and wrong. `answers` counts how often each wrong answer occurs in the second evaluation."""

    name: str
    count: int
    before: int
    after: int
    gained: int
    lost: int
    answers: Mapping[str, int]


def pair_replies(before: Evaluation, after: Evaluation) -> list[BeforeAfterReplies]:
    """Return the pairs of replies to the same example, in the order of `before`."""
    by_key = {one.key: one for one in after.samples}
    return [BeforeAfterReplies(one, by_key[one.key]) for one in before.samples if one.key in by_key]


def by_change(pairs: Sequence[BeforeAfterReplies]) -> dict[str, list[BeforeAfterReplies]]:
    """Return the pairs of replies with each kind of change (see `CHANGES`)."""
    return {change: [pair for pair in pairs if pair.change == change] for change in CHANGES}


def failure_groups(pairs: Sequence[BeforeAfterReplies], kind: AnswerKind) -> list[FailureGroup]:
    """Return the groups of examples. The group with the most failures in the second evaluation comes first. Examples whose
    answers are labels are grouped by the right label, and JSON answers by field."""
    members: dict[str, list[tuple[bool, bool, str]]] = {}
    for pair in pairs:
        for name, was, is_, answer in _graded_groups_of_pair(pair, kind):
            members.setdefault(name, []).append((was, is_, answer))
    found = [
        FailureGroup(
            name,
            len(rows),
            sum(was for was, _, _ in rows),
            sum(is_ for _, is_, _ in rows),
            sum(is_ and not was for was, is_, _ in rows),
            sum(was and not is_ for was, is_, _ in rows),
            dict(Counter(answer for _, is_, answer in rows if not is_).most_common()),
        )
        for name, rows in members.items()
    ]
    return sorted(found, key=lambda group: (group.after - group.count, group.name))


def _graded_groups_of_pair(pair: BeforeAfterReplies, kind: AnswerKind) -> Iterator[tuple[str, bool, bool, str]]:
    """Yield (group, right before, right after, answer after) for a pair of replies. A JSON answer yields one tuple for each of
    its fields."""
    was, is_ = (one.verdict is Verdict.RIGHT for one in (pair.before, pair.after))
    if kind != "JSON":
        name = (
            pair.after.answer
            if kind == "label"
            else "no answer"
            if canonical_form(pair.after.reply, kind) is None
            else "all"
        )
        yield name, was, is_, pair.after.reply.strip()
        return
    gold, old, new = (_json_fields(text) for text in (pair.after.answer, pair.before.reply, pair.after.reply))
    for name in {**gold, **new}:
        value = gold.get(name)
        yield name, old.get(name) == value, new.get(name) == value, new.get(name, "(missing)")


def _json_fields(text: str) -> dict[str, str]:
    """Return the values of a JSON answer, by dotted key. If `text` is not JSON, return an empty dictionary. A null is a missing key."""
    leaves = flatten(parse_json(text)).items()
    return {".".join(path): normalize_text(as_text(value)) for path, value in leaves if value is not None}


def failures_text(before: Evaluation, after: Evaluation, kind: AnswerKind, *, count: int) -> str:
    """Return as text a table of the groups of examples, and up to `count` examples of each kind of change."""
    pairs = pair_replies(before, after)
    changes = by_change(pairs)
    counts = ", ".join(f"{len(rows):,} {change}" for change, rows in changes.items())
    lines = [f"{len(pairs):,} examples, {before.model} and {after.model}: {counts}"]
    table = failures_table(failure_groups(pairs, kind)[:SHOWN_GROUPS], kind, before.model, after.model)
    lines.append(table.text())
    width = max(map(len, names := (before.model, after.model, "right answer")))
    for change in SHOWN_CHANGES:
        for pair in changes[change][:count]:
            lines += ["", f"{change}: {truncate(pair.after.prompt, 400)}"]
            texts = show_reply(pair.before), show_reply(pair.after), truncate(pair.after.answer, LONG)
            lines += [f"  {name:<{width}}  {text}" for name, text in zip(names, texts, strict=True)]
    sizes = [len(changes[change]) for change in SHOWN_CHANGES]
    if hidden := sum(max(0, size - count) for size in sizes):
        lines += ["", f"{hidden:,} more example{'s' * (hidden > 1)}: count={max(sizes)} shows all"]
    return "\n".join(lines)


def failures_table(found: Sequence[FailureGroup], kind: AnswerKind, before: str, after: str) -> Table:
    """Return a table of the groups of examples. `before` and `after` name the two evaluations."""
    group = "field" if kind == "JSON" else "right answer"
    heads = (group, "most frequent wrong answers", "examples", f"{before} %", f"{after} %", "gained", "lost")
    rows = [
        (
            truncate(one.name, 60),
            wrong_answers(one),
            str(one.count),
            percent(one.before / one.count),
            percent(one.after / one.count),
            str(one.gained),
            str(one.lost),
        )
        for one in found
    ]
    return Table(title="most failures first", heads=heads, rows=rows, text_columns=2)


def wrong_answers(group: FailureGroup) -> str:
    """Return a text with the two most frequent wrong answers of a group and their counts."""
    return ", ".join(f"{truncate(answer, 30)} ({count})" for answer, count in list(group.answers.items())[:2])


def show_reply(sample: GradedSample) -> str:
    """Return a reply as one line of text, with its reasoning."""
    thought = f"{truncate(' '.join((sample.reasoning or '').split()), 70)} => " if sample.reasoning else ""
    return thought + (truncate(" ".join(sample.reply.split()), LONG) or "(nothing)")
