"""Check a file of examples for unreadable rows, duplicates, contradictions and leaked answers. Report the lengths of the
examples and the sizes of the splits."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rorqual.model.config import ModelConfig
from rorqual.plan.hardware import device
from rorqual.plan.memory import PRECISIONS, Layout, device_memory
from rorqual.plan.numbers import format_bytes
from rorqual.plan.time import training_cost, training_flops
from rorqual.tasks.answer import final_answer
from rorqual.tasks.examples import canonical_form
from rorqual.tasks.task import Split
from rorqual.teach.columns import Columns
from rorqual.teach.example_table import ExampleTable, RowFault, read_table
from rorqual.teach.examples import AnswerKind, Example, answer_kind, canonical_answer, truncate
from rorqual.teach.folds import divide, split_of_fold
from rorqual.teach.near_duplicates import find_near_duplicates
from rorqual.teach.rungs.rung import TrainingRows

LEAK_SHARE = 0.9
"""If at least the share `LEAK_SHARE` of the prompts contains the right label and no other label, the prompts leak the answer."""
SPLITS: tuple[Split, ...] = ("train", "dev", "test")
DEFAULT_MODEL, BYTES_PER_TOKEN = "smollm2-135m", 4
"""The model for which the cost is forecast if no base model is given, and the assumed number of bytes per token."""
NO_NUMBER = "no number"
WARNINGS = frozenset({"duplicate", "near-duplicate", "near-contradiction"})
"""Kinds of faults that are only warnings. A file whose faults are all warnings passes the check."""
MARKED = r"(?:label|answer|category|class|intent|target|solution|output)"


@dataclass(frozen=True)
class FileCheck:
    """The result of checking a file of examples.

    `rows` is the number of rows in the file that were read. `lengths` has the number of tokens of each example: prompt,
    reasoning and answer together. `labels` counts the examples with each label if the answers are labels. `splits` counts the
    examples of each split. `against` is the test file, if there is one.
    """

    path: Path
    columns: Columns
    rows: int
    examples: tuple[Example, ...]
    kind: AnswerKind
    faults: tuple[RowFault, ...]
    lengths: tuple[int, ...]
    labels: Mapping[str, int]
    splits: Mapping[Split, int]
    against: Path | None

    @property
    def longest_example_line(self) -> int:
        """The line number of the longest example, or 0 if there are no examples."""
        return self.examples[max(range(len(self.lengths)), key=self.lengths.__getitem__)].line if self.lengths else 0

    @property
    def passes(self) -> bool:
        """Whether all faults of the file are warnings."""
        return all(fault.kind in WARNINGS for fault in self.faults)

    def fault_counts(self) -> Mapping[str, int]:
        """Return the number of faults of each kind, most frequent first."""
        return dict(Counter(fault.kind for fault in self.faults).most_common())


def check_file(
    path: Path,
    count_tokens: Callable[[str], int],
    *,
    prompt: str = "",
    answer: str = "",
    reasoning: str = "",
    against: Path | None = None,
) -> FileCheck:
    """Check the examples of the file `path`. `against` is a test file whose prompts must not occur in the file `path`. Raises
    DataError if the file as a whole cannot be read, and ConfigError if the columns are not found.
    """
    names = {"prompt": prompt, "answer": answer, "reasoning": reasoning}
    table = read_table(path, **names)
    examples = table.examples
    kind = answer_kind(examples) if examples else "text"
    near = find_near_duplicates([one.prompt for one in examples])
    faults = list(table.faults)
    if kind in ("number", "JSON"):
        faults += [
            RowFault(one.line, f"no {kind}", f"the answer is no {kind}: {truncate(one.answer, 40)!r}")
            for one in examples
            if canonical_form(one.answer, kind) is None
        ]
    faults += _repeat_faults(examples, kind, near.earlier)
    faults += _labels_in_prompts(examples, kind)
    if against is not None:
        faults += _test_overlap_faults(examples, read_table(against, **names, system=table.columns.system), against)
    fold = divide(examples, kind, [examples[first].key for first in near.groups])
    splits = Counter(map(split_of_fold, fold.tolist()))
    data = TrainingRows(examples, kind)
    labels = Counter(data.answers[place] for place in data.classes.tolist()) if kind == "label" else Counter[str]()
    return FileCheck(
        path,
        table.columns,
        table.rows,
        tuple(examples),
        kind,
        tuple(sorted(faults, key=lambda fault: (fault.line, fault.kind))),
        tuple(count_tokens("\n".join(filter(None, (one.prompt, one.reasoning, one.answer)))) for one in examples),
        dict(labels.most_common()),
        {split: splits[split] for split in SPLITS},
        against,
    )


def training_cost_sentence(model: ModelConfig, lengths: Sequence[int]) -> str:
    """Return a sentence with the time of one epoch of full training on the device `cpu` of `rorqual plan`, and the memory of
    all tensors. The memory is for training in fp32 with one row at a time, whose length is that of the longest example. For
    LoRA, the returned sentence counts only the weights and the activations, because the gradients and the optimizer moments of
    the adapter are small.
    """
    tokens, laptop = sum(lengths), device("cpu")
    flops = training_flops(model, max(lengths))
    cost = training_cost(flops, tokens, n=1, peak=laptop.flops("fp32"), utilisation=laptop.utilisation, price=0.0)
    memory = device_memory(model, Layout(recompute="none"), context=max(lengths), precision=PRECISIONS["fp32"])
    return (
        f"an epoch has {tokens:,} tokens, {100 * max(lengths) / tokens:.1f} % of them in the longest example: "
        f"about {cost.seconds / 60:,.1f} minutes of training on {laptop.title}; "
        f"the tensors take about {format_bytes(memory.total_bytes)}, or {format_bytes(memory.weights + memory.activations)} with LoRA"
    )


def _repeat_faults(examples: Sequence[Example], kind: AnswerKind, earlier: Mapping[int, int]) -> list[RowFault]:
    """Return the duplicates, contradictions, near-duplicates and near-contradictions among `examples`. Answers of free text
    never contradict each other."""
    first: dict[str, Example] = {}
    faults = []
    for number, one in enumerate(examples):
        before, near = first.setdefault(one.key, one), False
        if before is one and number in earlier:
            before, near = examples[earlier[number]], True
        if before is one:
            continue
        problem = f"{'nearly ' * near}the same prompt as line {before.line}"
        same = kind == "text" or canonical_answer(before, kind) == canonical_answer(one, kind)
        if not same:
            problem += f", but another answer: {truncate(one.answer, 40)!r}, not {truncate(before.answer, 40)!r}"
        name = "near-" * near + ("duplicate" if same else "contradiction")
        faults.append(RowFault(one.line, name, problem, before.line))
    return faults


def _labels_in_prompts(examples: Sequence[Example], kind: AnswerKind) -> list[RowFault]:
    """Return a fault for each prompt that states the answer: after a word such as "label:", or as the only label if most prompts do so."""
    answers = {one.line: final_answer(one.answer) if kind == "number" else one.answer for one in examples}
    labels = {one.answer.lower() for one in examples} if kind == "label" else set()
    names = "|".join(map(re.escape, sorted(labels, key=len, reverse=True)))
    pattern = re.compile(rf"(?<!\w)({names})(?!\w)")
    leaks = []
    for one in examples:
        answer = answers[one.line]
        marked = rf"\b{MARKED}\s*[:=]\s*[\"'`]?{re.escape(answer)}(?!\w|[.,]\d)"
        found = re.finditer(marked, one.prompt, re.IGNORECASE) if 0 < len(answer) <= 200 else ()
        sentences = (re.split(r"[.?!\n]", one.prompt[match.start() :].lower())[0] for match in found)
        if any(not labels or len({*pattern.findall(sentence)} - {answer.lower()}) == 0 for sentence in sentences):
            leaks.append(one)  # a sentence that also has another label offers a choice: "answer: yes or no?"
    if kind == "label" and len(examples) >= 10:
        stated = [{*pattern.findall(one.prompt.lower())} for one in examples]
        alone = sum(found == {one.answer.lower()} for one, found in zip(examples, stated, strict=True))
        if alone >= LEAK_SHARE * len(examples):
            leaks = [one for one, found in zip(examples, stated, strict=True) if one.answer.lower() in found]
    return [
        RowFault(one.line, "answer in prompt", f"the prompt states the answer {truncate(answers[one.line], 40)!r}")
        for one in leaks
    ]


def _test_overlap_faults(examples: Sequence[Example], table: ExampleTable, file: Path) -> list[RowFault]:
    """Return a fault for each example whose prompt equals, or nearly equals, a prompt of the test file."""
    tests = table.examples
    known = {one.key: one for one in tests}
    earlier = find_near_duplicates([one.prompt for one in (*tests, *examples)]).earlier
    faults = []
    for number, one in enumerate(examples, len(tests)):
        near = earlier.get(number, number)
        if (same := known.get(one.key)) is not None:
            faults.append(RowFault(one.line, "test row", f"the same prompt as {file}:{same.line}", same.line))
        elif near < len(tests):
            line = tests[near].line
            faults.append(RowFault(one.line, "test row", f"nearly the same prompt as {file}:{line}", line))
    return faults
