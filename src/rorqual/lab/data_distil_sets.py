"""The data of `data-distil`: the base model's texts, and the training sets that the students are compared on."""

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
    """Return the problems that the teacher answered, in the order of the task: they form the seed's original set."""
    asked = {row.key for row in rows}
    found: dict[str, Problem] = {}
    for problem in Everyday([chore], "original").problems("train", seed):
        if problem.key in asked:
            found.setdefault(problem.key, problem)
        if len(found) == len(asked):
            break
    return list(found.values())


def held_out(chore: str, seed: int, count: int, split: Split) -> list[Problem]:
    """Return the problems of a seed's evaluations, in order."""
    return pick(Everyday([chore]), split, count, seed, True)


def write_base(folder: Path, seed: int, count: int) -> int:
    """Write `base.txt`, `words.jsonl` and a `tokenizer.json` trained on both and on original answers; return its vocabulary size.

    The base learns nothing of a chore. It reads questions without answers and sentences without questions, and learns
    the meaning of single words. All texts are from the teacher's half of the problems, so no student trains on them.
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
    """Write `full-original.jsonl`, `small-original.jsonl` (its first `small` rows) and `small-true.jsonl`."""
    originals = [(problem.prompt, str(problem.meta[ORIGINAL])) for problem in problems]
    truths = [(problem.prompt, problem.answer) for problem in problems[:small]]
    sets = {"full-original": originals, "small-original": originals[:small], "small-true": truths}
    for name, rows in sets.items():
        write_pairs(folder / f"{name}.jsonl", rows)


def write_pairs(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Write questions and answers as JSONL, in the form of `rorqual train sft data=FILE`."""
    lines = (json.dumps({"prompt": ask, "completion": answer}, ensure_ascii=False) + "\n" for ask, answer in rows)
    write_atomic(path, "".join(lines).encode())


def write_labelled(folder: Path, said: DistilledFile, few: Collection[str]) -> dict[str, float]:
    """Write `full-teacher.parquet`, all of the teacher's samples, and `small-teacher.parquet`, those whose keys are in `few`.

    Return the core-seconds of both. A set needs at least one row. So if the filters dropped every sample, all are
    used; the table shows how many are true.
    """
    sets = {"full-teacher": said.rows, "small-teacher": [row for row in said.rows if row.key in few]}
    for name, rows in sets.items():
        if all(row.dropped for row in rows):
            rows = [replace(row, dropped="") for row in rows]
        write_distilled(folder / f"{name}.parquet", rows, tokenizer=said.tokenizer, vocab=said.vocab)
    return {f"{name}-core-seconds": sum(row.core_seconds for row in rows) for name, rows in sets.items()}


def counted(path: Path, problems: Sequence[Problem], tokenizer: Tokenizer) -> dict[str, float]:
    """Return a training set's rows and tokens, and the share of its answers that the chore's grader calls right."""
    chat, asked = chat_format(tokenizer, "deepseek"), {problem.prompt: problem for problem in problems}
    rows = read_conversations(path).conversations
    right = sum(CHORES[asked[ask.text].family].grade(asked[ask.text], said.text) is Verdict.RIGHT for ask, said in rows)
    tokens = sum(len(rendered.ids) for row in rows for rendered in chat.samples(row))
    return {"rows": len(rows), "tokens": tokens, "right": right / len(rows)}


@torch.no_grad()
def answer_losses(run: Path, problems: Sequence[Problem]) -> list[float]:
    """Return the model's loss on each problem's true answer, in nats per token that the assistant writes."""
    model = load_run(RunDir(run))
    chat = chat_format(Tokenizer.load(RunDir(run).tokenizer_file), "deepseek")
    losses = []
    for problem in problems:
        rendered = chat.render((*problem.messages, Message("assistant", problem.answer)), thinking="off")
        ids, mask = torch.tensor(rendered.ids), torch.tensor(rendered.mask[1:])
        logits = model.logits(model(ids[None, :-1]).hidden)[0]
        losses.append(-float(token_logprobs(logits.float(), ids[1:])[mask].double().mean()))
    return losses
