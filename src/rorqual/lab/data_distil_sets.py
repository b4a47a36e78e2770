"""The data of `data-distil`: what a base model reads, and the training sets that its students are compared on."""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from rorqual.core.records import Message, RunDir, write_atomic
from rorqual.data.chat import chat_format
from rorqual.data.distilled import Distilled, DistilledFile, write_distilled
from rorqual.data.source.conversations import read_conversations
from rorqual.data.tokenizer import Tokenizer
from rorqual.evals.run import pick
from rorqual.model.load.run import load_run
from rorqual.ops.losses import token_logprobs
from rorqual.tasks.base import Problem, Split, Verdict
from rorqual.tasks.everyday import CHORES, Everyday
from rorqual.tasks.everyday.base import ORIGINAL

VOCABULARY = 512


def original_set(chore: str, seed: int, rows: Sequence[Distilled]) -> list[Problem]:
    """The problems that a teacher was asked, in the order of the task: the original set of a seed holds the same ones."""
    asked = {row.key for row in rows}
    found: dict[str, Problem] = {}
    for problem in Everyday([chore], "original").problems("train", seed):
        if problem.key in asked:
            found.setdefault(problem.key, problem)
        if len(found) == len(asked):
            break
    return list(found.values())


def held_out(chore: str, seed: int, count: int, split: Split) -> list[Problem]:
    """The problems that the evaluations of a seed ask, in their order."""
    return pick(Everyday([chore]), split, count, seed, True)


def write_base(folder: Path, seed: int, count: int) -> int:
    """`base.txt`, `words.jsonl` and `tokenizer.json`, learned from both and from original answers; returns its size.

    The base learns what belongs to no chore: it reads questions without answers, and sentences without questions, and learns to
    answer what single words mean. All are of the teacher's half of the problems: nothing that a student will learn from.
    """
    problems = list(islice(Everyday(pool="teacher").problems("train", seed), count))
    lines = [problem.prompt for problem in problems]
    lines += [problem.answer for problem in problems if CHORES[problem.family].form == "generation"]
    words = [known for problem in problems if (known := CHORES[problem.family].primer(problem))]
    random.Random(seed).shuffle(lines)
    write_atomic(folder / "base.txt", "\n".join(lines).encode())
    write_pairs(folder / "words.jsonl", words)
    texts = (*lines, *map("\n".join, words), *(str(problem.meta[ORIGINAL]) for problem in problems))
    tokenizer = Tokenizer.byte_level(texts, VOCABULARY)
    tokenizer.save(folder / "tokenizer.json")
    return tokenizer.vocab_size


def write_originals(folder: Path, problems: Sequence[Problem], small: int) -> None:
    """`full-original.jsonl`, `small-original.jsonl` (its first `small` rows) and `small-true.jsonl`."""
    originals = [(problem.prompt, str(problem.meta[ORIGINAL])) for problem in problems]
    truths = [(problem.prompt, problem.answer) for problem in problems[:small]]
    sets = {"full-original": originals, "small-original": originals[:small], "small-true": truths}
    for name, rows in sets.items():
        write_pairs(folder / f"{name}.jsonl", rows)


def write_pairs(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Questions and answers as JSONL, which `rorqual train sft data=FILE` reads."""
    lines = (json.dumps({"prompt": ask, "completion": answer}, ensure_ascii=False) + "\n" for ask, answer in rows)
    write_atomic(path, "".join(lines).encode())


def write_labelled(folder: Path, said: DistilledFile, few: Collection[str]) -> dict[str, float]:
    """`full-teacher.parquet`, all that a teacher said, and `small-teacher.parquet`, what it said of the keys `few`; returns the
    core-seconds that each took it.

    A set needs a row to learn from: of a teacher so poor that nothing passed, all is taken, and the table says how much is true.
    """
    sets = {"full-teacher": said.rows, "small-teacher": [row for row in said.rows if row.key in few]}
    for name, rows in sets.items():
        if all(row.dropped for row in rows):
            rows = [replace(row, dropped="") for row in rows]
        write_distilled(folder / f"{name}.parquet", rows, tokenizer=said.tokenizer, vocab=said.vocab)
    return {f"{name}-core-seconds": sum(row.core_seconds for row in rows) for name, rows in sets.items()}


def counted(path: Path, problems: Sequence[Problem], tokenizer: Tokenizer) -> dict[str, float]:
    """Of a training set: its rows, their tokens, and the share of answers that the chore's grader calls right."""
    chat, asked = chat_format(tokenizer, "deepseek"), {problem.prompt: problem for problem in problems}
    rows = read_conversations(path).conversations
    right = sum(CHORES[asked[ask.text].family].grade(asked[ask.text], said.text) is Verdict.RIGHT for ask, said in rows)
    tokens = sum(len(rendered.ids) for row in rows for rendered in chat.samples(row))
    return {"rows": len(rows), "tokens": tokens, "right": right / len(rows)}


@torch.no_grad()
def answer_losses(run: Path, problems: Sequence[Problem]) -> list[float]:
    """For each problem the model's loss on its true answer, in nats for each token that the assistant writes."""
    model = load_run(RunDir(run))
    chat = chat_format(Tokenizer.load(RunDir(run).tokenizer_file), "deepseek")
    losses = []
    for problem in problems:
        rendered = chat.render((*problem.messages, Message("assistant", problem.answer)), thinking="off")
        ids, mask = torch.tensor(rendered.ids), torch.tensor(rendered.mask[1:])
        logits = model.logits(model(ids[None, :-1]).hidden)[0]
        losses.append(-float(token_logprobs(logits.float(), ids[1:])[mask].double().mean()))
    return losses
