"""The data of `data-distil`: the base model's texts, and the training sets of the compared students."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from rorqual.core.journal import json_line
from rorqual.core.records import Message, write_atomic
from rorqual.data.distilled import DistilledFile, TeacherSample, write_distilled
from rorqual.data.pack import TrainingSample
from rorqual.data.tokenizer import Tokenizer
from rorqual.evals.evaluating import pick_problems
from rorqual.lab.held_out import load_trained, mean_losses
from rorqual.tasks.everyday import EVERYDAY_TASKS, EverydayMixture
from rorqual.tasks.everyday.everyday_task import ORIGINAL
from rorqual.tasks.task import Problem, Split

VOCABULARY = 512


def original_set(task: str, seed: int, rows: Sequence[TeacherSample]) -> list[Problem]:
    """Return the problems that the teacher answered, in task order. The returned problems form the original set of the seed."""
    keys = {row.key for row in rows}
    problems: dict[str, Problem] = {}
    for problem in EverydayMixture([task], "original").problems("train", seed):
        if problem.key in keys:
            problems.setdefault(problem.key, problem)
        if len(problems) == len(keys):
            break
    return list(problems.values())


def held_out_problems(task: str, seed: int, count: int, split: Split) -> list[Problem]:
    """Return the held-out problems on which the models of a seed are evaluated, in order."""
    return pick_problems(EverydayMixture([task]), split, count, seed, True)


def write_base_training_data(folder: Path, seed: int, count: int) -> int:
    """Write `base.txt`, `words.jsonl`, and a `tokenizer.json` trained on both files and on the noisy original answers.

    The base student does not learn any of the tasks. A line of `base.txt` is a question without its answer or a sentence
    without its question, and `words.jsonl` teaches the meaning of single words. All texts come from the teacher's half of the
    problems, so no student trains on these problems. Return the vocabulary size of the tokenizer.
    """
    problems = list(islice(EverydayMixture(pool="teacher").problems("train", seed), count))
    lines = [problem.prompt for problem in problems]
    lines += [problem.answer for problem in problems if EVERYDAY_TASKS[problem.family].form == "generation"]
    words = [primer for problem in problems if (primer := EVERYDAY_TASKS[problem.family].vocabulary_question(problem))]
    random.Random(seed).shuffle(lines)
    write_atomic(folder / "base.txt", "\n".join(lines).encode())
    write_pairs(folder / "words.jsonl", words)
    texts = (*lines, *map("\n".join, words), *(str(problem.meta[ORIGINAL]) for problem in problems))
    tokenizer = Tokenizer.byte_level(texts, VOCABULARY)
    tokenizer.save(folder / "tokenizer.json")
    return tokenizer.vocab_size


def write_original_sets(folder: Path, problems: Sequence[Problem], small: int) -> None:
    """Write `full-original.jsonl`, `small-original.jsonl` (the first `small` rows) and `small-true.jsonl` (true answers)."""
    originals = [(problem.prompt, str(problem.meta[ORIGINAL])) for problem in problems]
    truths = [(problem.prompt, problem.answer) for problem in problems[:small]]
    sets = {"full-original": originals, "small-original": originals[:small], "small-true": truths}
    for name, rows in sets.items():
        write_pairs(folder / f"{name}.jsonl", rows)


def write_pairs(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Write questions and answers as JSONL, in the format of `rorqual train sft data=FILE`."""
    write_atomic(path, (json_line({"prompt": ask, "completion": answer}) for ask, answer in rows))


def write_teacher_sets(folder: Path, labelled: DistilledFile, few: Collection[str]) -> None:
    """Write all samples of the teacher to `full-teacher.parquet`, and the samples with keys in `few` to
    `small-teacher.parquet`.

    If the filters dropped every sample of a training set, all samples of the set are written, because a training set needs at
    least one row.
    """
    sets = {"full-teacher": labelled.rows, "small-teacher": [row for row in labelled.rows if row.key in few]}
    for name, rows in sets.items():
        if all(row.dropped for row in rows):
            rows = [replace(row, dropped="") for row in rows]
        write_distilled(folder / f"{name}.parquet", rows, tokenizer=labelled.tokenizer, vocab=labelled.vocab)


def answer_losses(run: Path, problems: Sequence[Problem]) -> list[float]:
    """Return the model's loss on the true answer to each problem, in nats per token of the assistant's turn."""
    model, chat = load_trained(run)
    rendered = [
        chat.render((*problem.messages, Message("assistant", problem.answer)), thinking="off") for problem in problems
    ]
    return mean_losses(model, [TrainingSample(one.ids, one.mask) for one in rendered])
