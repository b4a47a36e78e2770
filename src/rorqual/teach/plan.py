"""Compute the number of training steps that fit into `minutes`, from a measured time per step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from rorqual.core.config import Config, Count, Natural, NonNegative, Positive
from rorqual.core.errors import DataError
from rorqual.core.records import Message, RunDir
from rorqual.data.chat import ChatFormat
from rorqual.model.adapter import LoRA
from rorqual.model.load.run_directory import read_model_config
from rorqual.recipes.sft import sft
from rorqual.teach.examples import Example
from rorqual.train.loop import fit
from rorqual.train.run import Dtype, Run

DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")
"""The number types in which matrix products are timed."""
WARM, MEASURED = 1, 3
"""Number of untimed and number of timed training steps of a speed measurement. The untimed training steps come first."""
STEP_TOKENS = 768
"""Number of tokens per training step, padding included."""
LONGEST_ROW = 1024
"""Maximum length of a training row, in tokens. Examples that are longer than this length or than the base model's context are left out."""
FEWEST_STEPS, MOST_EPOCHS = 8, 12
DEV_SHARES = (0.4, 0.6, 0.8, 1.0)
"""The model is measured on the dev split when these shares of the training steps are done."""
MEASURE = 0.12
"""Share of the training time that evaluations on the dev and test splits take."""
RESERVE = 15.0
"""Seconds that are reserved for loading the base model, merging the adapter and writing the results."""
OVERTIME, SLACK = 1.3, 60.0
"""Training ends early if it takes more than `OVERTIME` times the planned time and more than `SLACK` seconds over the planned time."""
R, ALPHA, LR = 16, 32.0, 2e-3
"""Rank, scale and learning rate of LoRA. They were chosen on the dev splits of three data sets (docs/LOG.md)."""
PLAIN = "chatml-plain"
WITH_SYSTEM = frozenset({"smollm2", "chatml", "qwen2"})
"""Chat formats that add a default system turn. A taught model needs no default system turn, and
shorter rows train faster."""


class TeachPlan(Config):
    """The numbers that follow from `minutes` and the measured speed.

    `dtype` is the number type of the matrix products: bfloat16 if training steps are faster in bfloat16 on this machine.
    `step_seconds` is the measured time of a training step, and `dev_steps` are the steps after which the model is measured on
    the dev split. `max_tokens` is the largest number of tokens of a reply.
    """

    steps: Count
    dev_steps: tuple[Count, ...]
    rows: Count
    row: Count
    max_tokens: Count
    epochs: Positive
    step_seconds: Positive
    train_seconds: NonNegative
    grpo_seconds: NonNegative = 0.0
    skipped: Natural = 0
    dtype: Dtype = "float32"


@dataclass(frozen=True)
class ExampleLengths:
    """The numbers of tokens of the prompt and of the reply of an example."""

    prompt: int
    reply: int

    @property
    def total_tokens(self) -> int:
        return self.prompt + self.reply


def lengths_of(examples: Sequence[Example], chat: ChatFormat) -> list[ExampleLengths]:
    """Return the numbers of tokens of the prompt and of the reply of each example in the chat format."""
    result = []
    for one in examples:
        reply = Message("assistant", one.answer, one.reasoning or None)
        mask = chat.render((*one.turns, reply), train_from=len(one.turns)).mask
        result.append(ExampleLengths(len(mask) - sum(mask), sum(mask)))
    return result


def taught_chat_format(name: str) -> str:
    """Return the name of the taught model's chat format. `name` is the chat format of the base model."""
    return PLAIN if name in WITH_SYSTEM else name


def sft_run(base: RunDir, data: Path, plan: TeachPlan, *, seed: int) -> Run:
    """Return the run that fine-tunes `base` with LoRA on the rows of the file `data`."""
    run = sft(
        data=str(data),
        start=str(base.path),
        steps=plan.steps,
        rows=plan.rows,
        row=plan.row,
        lr=LR,
        seed=seed,
    )
    return run.model_copy(
        update={
            "dtype": plan.dtype,
            "tune": LoRA(r=R, alpha=ALPHA),
            "chat": taught_chat_format(run.chat),
            "source": run.source.model_copy(update={"longer": "skip"}),
            "micro_batches": min(2, plan.rows),
            "save_seconds": 30.0,
        }
    )


def make_plan(
    base: RunDir,
    data: Path,
    lengths: Sequence[ExampleLengths],
    *,
    seconds: float,
    reinforce: float,
    seed: int,
    threads: int,
) -> TeachPlan:
    """Measure the time of a training step, and return the plan for the remaining `seconds`.

    `reinforce` is the share of `seconds` for reinforcement learning. Raises DataError if no example fits into a row.
    """
    context = read_model_config(base).max_position_embeddings
    most = min(LONGEST_ROW, context)
    fit_lengths = [one for one in lengths if one.total_tokens <= most]
    if not fit_lengths:
        raise DataError(
            f"all examples are longer than {most} tokens",
            where=str(data),
            remedy="Shorten the prompts: a small model on a laptop cannot train on so long texts.",
        )
    totals = [one.total_tokens for one in fit_lengths]
    row = min(8 * math.ceil(max(*totals, min(STEP_TOKENS // 4, sum(totals))) / 8), most)
    rows = max(2, STEP_TOKENS // row)
    replies = max(one.reply for one in fit_lengths)
    draft = TeachPlan(
        steps=WARM + MEASURED,
        dev_steps=(1,),
        rows=rows,
        row=row,
        max_tokens=min(replies + max(16, replies // 2), context - max(one.prompt for one in fit_lengths)),
        epochs=1,
        step_seconds=1,
        train_seconds=0,
        skipped=len(lengths) - len(fit_lengths),
    )
    run = sft_run(base, data, draft, seed=seed)
    speeds = {dtype: measure_step(run.model_copy(update={"dtype": dtype}), threads) for dtype in DTYPES}
    dtype, step_seconds = min(speeds.items(), key=lambda one: one[1])
    seconds -= (WARM + MEASURED) * sum(speeds.values())
    free = max(0.0, seconds - RESERVE)
    train_seconds = free * (1 - MEASURE) * (1 - reinforce)
    per_epoch = sum(totals) / (rows * row)
    steps = max(FEWEST_STEPS, min(int(train_seconds / step_seconds), math.ceil(MOST_EPOCHS * per_epoch)))
    return draft.model_copy(
        update={
            "dtype": dtype,
            "steps": steps,
            "dev_steps": tuple(sorted({max(1, round(share * steps)) for share in DEV_SHARES})),
            "epochs": steps / per_epoch,
            "step_seconds": step_seconds,
            "train_seconds": steps * step_seconds,
            "grpo_seconds": free * (1 - MEASURE) * reinforce,
        }
    )


def measure_step(run: Run, threads: int) -> float:
    """Return the median seconds of a training step, from a few steps in a temporary folder."""
    records: list[dict[str, float]] = []
    with TemporaryDirectory() as folder:
        fit(run, RunDir(Path(folder) / "probe"), threads=threads, quiet=True, observe=records.append)
    return median(record["seconds"] for record in records[WARM:])
