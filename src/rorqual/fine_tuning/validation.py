"""Metrics of a job's model on the rows of its validation file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import fmean

import torch

from rorqual.core.errors import DataError
from rorqual.core.records import RunDir
from rorqual.data.chat import ChatFormat, load_chat
from rorqual.data.stream import ConversationStream
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.engine import Engine
from rorqual.engine.request import SamplingParams
from rorqual.evals.evaluating import evaluate
from rorqual.evals.evaluation import GradedSample
from rorqual.fine_tuning.examples import GRADER, example_lengths
from rorqual.fine_tuning.store import Job, JobFolder
from rorqual.model.decoder import Decoder
from rorqual.model.load.run_directory import load_run, read_model_config
from rorqual.ops.losses import token_logprobs
from rorqual.tasks.openai_graders import openai_task
from rorqual.tasks.task import Problem, Task, Verdict
from rorqual.teach.golden import GoldenAnswers
from rorqual.train.batch import TrainBatch
from rorqual.train.objectives import Objective
from rorqual.train.run import Run
from rorqual.train.sources import ConversationsConfig, PreferencesConfig, RolloutConfig, SourceInputs
from rorqual.train.sources.preferences import Preferences
from rorqual.train.sources.source import StreamSource

Metrics = dict[str, float]
MOST_PROMPTS, LONGEST_ANSWER = 64, 64
"""The first `MOST_PROMPTS` rows of the file are answered after each epoch, in supervised jobs if no reply of the file has more than
`LONGEST_ANSWER` tokens."""


def validation_metrics(job: Job, folder: JobFolder, run: Run, threads: int) -> Callable[[RunDir], Metrics]:
    """Return a function that measures the newest model of a run on the job's validation file. Without a file, it measures nothing.

    - supervised: the loss in nats and the share of right next tokens, by OpenAI's names. If all replies are short, also the share of
      replies at temperature 0 that equal the file's (`GoldenAnswers`).
    - dpo: the loss, and the share of pairs whose preferred reply gets the higher reward.
    - reinforcement: the mean score of replies at temperature 0.

    Raises DataError, which names file and line, if the file is invalid.
    """
    if job.validation_file is None:
        return lambda trained: {}
    base, data = folder.start(job), folder.validation_data.absolute()
    chat = load_chat(base, Tokenizer.load(base.tokenizer_file))
    context = read_model_config(base).max_position_embeddings
    lengths = [*example_lengths(job.method, data, chat, context)]
    if isinstance(source := run.source, RolloutConfig):
        task = openai_task(data, source.options["grader"], where=GRADER)
        params = SamplingParams(max_tokens=min(source.max_tokens, context - max(lengths)))
        return partial(_mean_score, task, [*islice(task.problems("test", 0), MOST_PROMPTS)], params, threads)
    if isinstance(source, PreferencesConfig):
        inputs = SourceInputs(load_run(base), chat.tokenizer, chat, job.seed, threads)
        held_out = Preferences(source.model_copy(update={"data": str(data), "pairs": 1}), inputs)
        batches = [held_out.step(step).batches[0] for step in range(len(held_out.pairs))]
        return partial(_preferences, run.objectives[0], batches)
    measures = [partial(_loss_and_accuracy, _conversations(data, chat, max(8, *lengths)))]
    golden, problems = GoldenAnswers(data), list[Problem]()
    with suppress(DataError):  # a conversation that ends with calls of tools has no text to compare
        problems = [*golden.problems("test", 0)]
    longest = max((len(chat.tokenizer.encode(one.answer)) for one in problems), default=0)
    asked = [one for one in problems[:MOST_PROMPTS] if len(chat.prompt(one.messages)) + longest < context]
    if asked and longest <= LONGEST_ANSWER:
        params = SamplingParams(max_tokens=longest + 1)
        measures.append(partial(_share_of_same, golden, asked, params, threads))
    return lambda trained: {name: value for measure in measures for name, value in measure(trained).items()}


def _conversations(data: Path, chat: ChatFormat, row: int) -> list[TrainBatch]:
    """Return the samples of a file of conversations in rows of `row` tokens."""
    source = ConversationsConfig(data=str(data), rows=1, row=row)
    built = source.build(SourceInputs(None, chat.tokenizer, chat, 0, 1))  # type: ignore[arg-type]
    assert isinstance(built, StreamSource) and isinstance(built.stream, ConversationStream)
    return [batch for step in range(built.stream.steps_for_epochs(1)) for batch in built.step(step).batches]


@torch.no_grad()
def _loss_and_accuracy(batches: Sequence[TrainBatch], trained: RunDir) -> Metrics:
    model = load_run(trained)
    sums = torch.stack([_token_sums(model, batch) for batch in batches]).sum(0)
    loss, accuracy = (sums[:2] / sums[2]).tolist()
    return {"full_valid_loss": loss, "full_valid_mean_token_accuracy": accuracy}


def _token_sums(model: Decoder, batch: TrainBatch) -> torch.Tensor:
    """Return the sum of losses, the number of right next tokens, and the number of tokens in the loss."""
    output = model(batch.tokens, batch.positions, segments=batch.segments)
    at = batch.loss_mask.nonzero(as_tuple=True)
    logits, targets = model.logits(output.hidden[at]), batch.targets[at]
    right = (logits.argmax(-1) == targets).double()
    return torch.stack([-token_logprobs(logits, targets).double().sum(), right.sum(), torch.ones_like(right).sum()])


@torch.no_grad()
def _preferences(objective: Objective, batches: Sequence[TrainBatch], trained: RunDir) -> Metrics:
    model = load_run(trained)
    terms = [
        objective.term(model, batch, model(batch.tokens, batch.positions, segments=batch.segments)) for batch in batches
    ]
    right = fmean(term.means["rewards/accuracies"][0] for term in terms)
    return {"full_valid_loss": fmean(float(term.sum) for term in terms), "full_valid_rewards/accuracies": right}


def _mean_score(
    task: Task, problems: Sequence[Problem], params: SamplingParams, threads: int, trained: RunDir
) -> Metrics:
    answered = zip(problems, _answers(task, problems, params, threads, trained), strict=True)
    return {"full_valid_mean_reward": fmean(task.reward(one, sample.reply, sample.verdict) for one, sample in answered)}


def _share_of_same(
    task: Task, problems: Sequence[Problem], params: SamplingParams, threads: int, trained: RunDir
) -> Metrics:
    answered = _answers(task, problems, params, threads, trained)
    return {"full_valid_same_replies": fmean(sample.verdict is Verdict.RIGHT for sample in answered)}


def _answers(
    task: Task, problems: Sequence[Problem], params: SamplingParams, threads: int, trained: RunDir
) -> Sequence[GradedSample]:
    with closing(Engine(trained.path, threads=threads, backend="torch")) as engine:
        return evaluate(engine, task, problems=problems, params=params, measured={}).samples
