"""Ask a teacher for new rows: inputs like some training examples, with their answers.

The teacher is shown training examples of one fold at a time, and never one of the dev or test split. `Example.shown` keeps their lines,
because cross-validation must leave out a row that was written after held-out examples. A row is kept if it is new and its answer is
verified:

- It is no duplicate or near-duplicate of a row of any split, and shares no eight consecutive words with one, as in the factory's
  contamination check. The test rows are compared with, and not shown or returned.
- Its answer is of the task's kind. For labels, the teacher is asked again, without the label, and gives the same one.

`written.jsonl` has all rows with their provenance, also those that were dropped, each with the reason.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from rorqual.core.journal import json_line, read_lines
from rorqual.core.records import write_atomic
from rorqual.data.distilled import read_distilled
from rorqual.engine.grammar.trial_process import build_validator
from rorqual.evals.stats import paired_interval
from rorqual.evals.table import percent_interval
from rorqual.factory.config import FilterConfig
from rorqual.factory.contamination import EvalItem, EvalItemIndex
from rorqual.tasks.examples import AnswerKind
from rorqual.tasks.file_task import normalize_text
from rorqual.teach.answer_format import answer_format_instruction, infer_json_schema
from rorqual.teach.config import TeachConfig
from rorqual.teach.dataset import Dataset, order_keys
from rorqual.teach.examples import Example, parse_json
from rorqual.teach.folds import DEV
from rorqual.teach.held_out import WITH_WRITTEN, Grade, HeldOut
from rorqual.teach.near_duplicates import find_near_duplicates
from rorqual.teach.reasons import sample_on_rows, stored_samples, with_rest_of_budget
from rorqual.teach.rungs.rung import Integers

SHOWN, PER_REQUEST = 5, 5
"""Largest number of examples that a request shows, and number of rows that it asks for."""
WRITING_SHARE = 0.25
"""Largest share of the budget for writing, if each row is checked by a request of its own."""
MAX_TOKENS, TEMPERATURE = 1024, 1.0
OF_LABEL = (
    "These inputs have the answer {label}:\n\n{examples}\n\nWrite {count} new inputs with the same answer, each on one line, with other "
    "words and other details. Write nothing else."
)
WITH_ANSWER = (
    "These are examples of a task, each as a JSON object on one line:\n\n{examples}\n\nWrite {count} new examples of the task in the same "
    "form, with other inputs and their right answers. Write nothing else."
)
LIST_MARK = re.compile(r"(?:[-*•]|\d{1,2}[.)])\s+")
LIKE_FILE, LIKE_WRITTEN = "like a row of the file", "like another written row"
OTHER_KIND, UNCHECKED, DISAGREES = "no answer of the task's kind", "not checked", "the teacher answers otherwise"


@dataclass(frozen=True)
class WritingRequest:
    """A request for new rows. `label` is their label, or "" for other kinds of answers. `shown` are the examples in the prompt."""

    label: str
    shown: Sequence[Example]

    def prompt(self, kind: AnswerKind) -> str:
        """Return the prompt that asks for the rows."""
        if self.label and not any("\n" in one.prompt for one in self.shown):
            examples = "\n".join(one.prompt for one in self.shown)
            return OF_LABEL.format(label=self.label, examples=examples, count=PER_REQUEST)
        pairs = ((one.prompt, json.loads(one.answer) if kind == "JSON" else one.answer) for one in self.shown)
        lines = (json.dumps({"prompt": prompt, "answer": answer}, ensure_ascii=False) for prompt, answer in pairs)
        return WITH_ANSWER.format(examples="\n".join(lines), count=PER_REQUEST)


@dataclass(frozen=True)
class WrittenRow:
    """A row that a teacher wrote, with its provenance.

    `shown` has the lines of the examples in the request, `model` is the model that answered, `prompt_hash` the hash of the request's
    messages, `money` the row's share of its request and the cost of its check, and `time` when the row was recorded. `dropped` is the reason
    why the row is not used, or "".
    """

    prompt: str
    answer: str
    shown: Sequence[int]
    model: str
    prompt_hash: str
    money: float
    time: str
    dropped: str = ""


def written_rows(
    config: TeachConfig,
    dataset: Dataset,
    grade: Grade,
    folder: Path,
    *,
    threads: int,
    api_key: str,
    say: Callable[[str], None],
) -> list[Example]:
    """Let the teacher write at most `config.write` rows within its budget, and return those that are new and verified.

    An interrupted call resumes from the samples in `folder`. A finished one is read from `written.jsonl`.
    """
    file = folder / "written.jsonl"
    if not file.is_file():
        sample = partial(sample_on_rows, threads=threads, api_key=api_key, samples=1, filters=FilterConfig(names=()))
        rows = _write(config, dataset, folder / "written", sample, say)
        rows = _verified(without_known_rows(rows, dataset), dataset, grade)
        if dataset.kind == "label":
            rows = _checked(config, rows, dataset, folder, sample, say)
        write_atomic(file, b"".join(json_line(vars(row)) for row in rows))
    lines = [*read_lines(file)]
    dropped = Counter(line["dropped"] for line in lines if line["dropped"])
    say(f"  the teacher wrote {len(lines):,} rows, and {len(lines) - dropped.total():,} are used")
    for reason, count in dropped.most_common():
        say(f"  {count:,} written rows are left out: {reason}")
    used = (line for line in lines if not line["dropped"])
    return [Example(0, line["prompt"], line["answer"], shown=tuple(line["shown"])) for line in used]


# ---- write


def writing_requests(pool: Sequence[Example], fold: Integers, kind: AnswerKind, count: int) -> Iterator[WritingRequest]:
    """Yield requests for `count` rows. Labels are asked for in turn, the rarest first, and each request shows examples of one fold."""
    groups: dict[str, dict[int, list[Example]]] = defaultdict(lambda: defaultdict(list))
    for one, number in zip(pool, fold.tolist(), strict=True):
        if number != DEV:
            groups[one.answer if kind == "label" else ""][number].append(one)
    labels = sorted(groups, key=lambda label: (sum(map(len, groups[label].values())), label))
    for number in range(-(-count // PER_REQUEST)):
        turn, place = divmod(number, len(labels))
        by_fold = [some for _, some in sorted(groups[labels[place]].items())]
        again, at = divmod(turn + place, len(by_fold))
        own = by_fold[at]
        shown = [own[(again * SHOWN + step) % len(own)] for step in range(min(SHOWN, len(own)))]
        yield WritingRequest(labels[place], shown)


def _write(
    config: TeachConfig,
    dataset: Dataset,
    folder: Path,
    sample: Callable[..., str],
    say: Callable[[str], None],
) -> list[WrittenRow]:
    """Sample the teacher on all requests for rows, and return the rows."""
    asked = [*writing_requests(dataset.pool, dataset.fold, dataset.kind, config.write)]
    rows = [
        {"line": number, "key": f"{number}", "prompt": one.prompt(dataset.kind), "completion": ""}
        for number, one in enumerate(asked)
    ]
    share = WRITING_SHARE if dataset.kind == "label" else 1.0
    own = config.model_copy(update={"budget": share * config.budget, "quiet": True})  # nothing is graded yet
    if stopped := sample(own, rows, "text", folder, keep="all", temperature=TEMPERATURE, max_tokens=MAX_TOKENS):
        say(f"  {stopped}")
    found = []
    time = datetime.now(UTC).isoformat(timespec="seconds")
    for reply in sorted(stored_samples(folder), key=lambda one: int(one.key)):
        request = asked[int(reply.key)]
        text = reply.text.rpartition("\n")[0] if reply.finish == "length" else reply.text  # the last line is cut off
        pairs = [*_pairs_in(text, request.label)][:PER_REQUEST]
        lines, cost = [one.line for one in request.shown], reply.money / max(1, len(pairs))
        found += [WrittenRow(*pair, lines, reply.model, reply.prompt, cost, time) for pair in pairs]
    return found[: config.write]


def _pairs_in(text: str, label: str) -> Iterator[tuple[str, str]]:
    """Yield the (prompt, answer) pairs of a reply. A line is a JSON object, or, with a label, the prompt alone."""
    for line in map(str.strip, text.splitlines()):
        value = parse_json(line)
        if isinstance(value, dict):
            prompt, answer = value.get("prompt"), value.get("answer")
            if isinstance(prompt, str) and prompt.strip():
                yield prompt.strip(), label or (answer if isinstance(answer, str) else json.dumps(answer))
        elif label and not line.startswith("```") and (prompt := LIST_MARK.sub("", line, count=1).strip('"')):
            yield prompt, label


# ---- verify


def without_known_rows(rows: Sequence[WrittenRow], dataset: Dataset) -> list[WrittenRow]:
    """Return the rows, marked as dropped if they are like a row of any split or like an earlier written row."""
    known = [one.prompt for one in (*dataset.pool, *dataset.splits["test"])]
    near = find_near_duplicates([*known, *(row.prompt for row in rows)]).earlier
    index = EvalItemIndex([EvalItem((text,), "") for text in known], FilterConfig().overlap)
    keys = {normalize_text(text): LIKE_FILE for text in known}
    marked = []
    for place, row in enumerate(rows, len(known)):
        key, like = normalize_text(row.prompt), LIKE_FILE if near.get(place, len(known)) < len(known) else ""
        like = keys.get(key, like) or (LIKE_FILE if index.match_problem(row.prompt) else LIKE_WRITTEN * (place in near))
        marked.append(replace(row, dropped=like))
        keys.setdefault(key, like or LIKE_WRITTEN)
    return marked


def _verified(rows: Sequence[WrittenRow], dataset: Dataset, grade: Grade) -> list[WrittenRow]:
    """Return the rows, marked as dropped if their answer is not of the task's kind. A JSON answer must match the schema of the file's."""
    schema: dict[str, Any] = {}
    if dataset.kind == "JSON":
        schema = infer_json_schema([json.loads(one.answer) for one in (*dataset.all_train, *dataset.pool)])
    validator = build_validator(schema)

    def verified(row: WrittenRow) -> WrittenRow:
        if schema and not row.dropped:
            value = parse_json(row.answer)
            if not validator.is_valid(value):
                return replace(row, dropped=OTHER_KIND)
            row = replace(row, answer=order_keys(row.answer, schema))
        right = row.dropped or grade(Example(0, row.prompt, row.answer), row.answer)
        return row if right else replace(row, dropped=OTHER_KIND)

    return [verified(row) for row in rows]


def _checked(
    config: TeachConfig,
    rows: Sequence[WrittenRow],
    dataset: Dataset,
    folder: Path,
    sample: Callable[..., str],
    say: Callable[[str], None],
) -> list[WrittenRow]:
    """Let the teacher classify the rows that are not dropped, and drop those to which it gives another label."""
    opening = answer_format_instruction(dataset.pool, "label")
    asked: list[dict[str, Any]] = [
        {"line": 0, "key": row.prompt, "prompt": f"{opening}\n\n{row.prompt}", "completion": row.answer}
        for row in rows
        if not row.dropped
    ]
    if not asked:
        return [*rows]
    left_over = with_rest_of_budget(config, folder / "written")
    if stopped := sample(left_over, asked, "label", folder / "checked", temperature=0.0):
        say(f"  {stopped}")
    replies = {one.key: one for one in read_distilled(folder / "checked" / "data.parquet").rows}

    def checked(row: WrittenRow) -> WrittenRow:
        reply = None if row.dropped else replies.get(row.prompt)
        if reply is None or reply.verdict == "ungraded":
            return replace(row, dropped=row.dropped or UNCHECKED)
        dropped = "" if reply.verdict == "right" else DISAGREES
        return replace(row, dropped=dropped, money=row.money + reply.money)

    return [checked(row) for row in rows]


# ---- report


def gain_sentences(results: Sequence[HeldOut], count: int, teacher: str) -> list[str]:
    """Return a sentence for each rung that was measured with the `count` written rows and without: its gain on held-out examples."""
    sentences, by_name = [], {one.name: one for one in results}
    for one in results:
        before = by_name.get(one.name.removesuffix(WITH_WRITTEN), one)
        changes = [one.right[key] - before.right[key] for key in one.right.keys() & before.right.keys()]
        if before is not one and changes:
            interval = paired_interval(changes.count(1), changes.count(-1), len(changes))
            sentences.append(
                f"With {count:,} rows that {teacher} wrote, {before.name} gains {100 * sum(changes) / len(changes):+.1f} points "
                f"{percent_interval(interval)} on {len(changes):,} held-out examples."
            )
    return sentences
