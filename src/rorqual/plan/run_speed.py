"""Read the measured speed of a run, and forecast the time of further training steps, with a confidence interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean, stdev

from rorqual.core.errors import DataError
from rorqual.core.records import RunDir
from rorqual.core.student_t import t_quantile

WARM, FEWEST, BLOCKS = 2, 12, 20
"""The speed of a run is measured without the first `WARM` steps, because buffers and kernels warm up. A run needs at least
`FEWEST` steps. The steps after the first `WARM` steps are divided into at least `BLOCKS` blocks. If the run has fewer than
`BLOCKS` steps after the first `WARM` steps, each step is a block."""


@dataclass(frozen=True)
class StepSpeed:
    """The mean time, core-seconds, tokens and FLOPs of a training step of a run.

    `tokens` counts training tokens and sampled tokens. The run's steps are divided into blocks of `block` consecutive steps,
    and `blocks` has the mean seconds per step of each block. The spread of `blocks` reflects slow drift and short bursts of
    load. The run has completed `done` of the `asked` requested steps.
    """

    seconds: float
    core_seconds: float
    tokens: float
    flops: float
    blocks: tuple[float, ...]
    block: int
    done: int
    asked: int

    def seconds_interval(self, steps: float, level: float = 0.95) -> tuple[float, float]:
        """Return the lower and upper bound of the seconds that the next `steps` steps will take.

        The bounds account for the uncertainty of the mean time per step and for the spread of future steps. The bounds assume
        that the blocks are independent. The bounds do not account for changes of the machine's load or of the answer lengths.
        """
        count = len(self.blocks)
        spread = stdev(self.blocks) * math.sqrt(1 / count + self.block / steps)
        reach = t_quantile(0.5 + level / 2, count - 1) * spread
        return steps * max(self.seconds - reach, 0.0), steps * (self.seconds + reach)


def speed_of(run: RunDir) -> StepSpeed:
    """Return the run's speed as recorded in its `metrics.jsonl`. Raises DataError if the run has too few steps."""
    records = list(run.metrics())
    if len(records) < FEWEST:
        raise DataError(
            f"the run has {len(records)} steps, but measuring a speed needs at least {FEWEST}",
            where=str(run.metrics_file),
            remedy="Train for more steps, or plan with --train hardware=cpu.",
        )
    measured_steps = records[WARM:]
    seconds = [record["seconds"] for record in measured_steps]
    block = max(1, len(measured_steps) // BLOCKS)
    block_means = [fmean(seconds[at : at + block]) for at in range(0, len(measured_steps) - block + 1, block)]
    return StepSpeed(
        seconds=fmean(seconds),
        core_seconds=fmean(record["core_seconds"] for record in measured_steps),
        tokens=fmean(record["tokens"] + record.get("sampled_tokens", 0) for record in measured_steps),
        flops=fmean(record["flops"] for record in measured_steps),
        blocks=tuple(block_means),
        block=block,
        done=len(records),
        asked=int(run.config()["steps"]),
    )


def read_row_length(run: RunDir) -> int:
    """Return the row length (in tokens) that a run trains on, or 4,096 if the run's data source has no row length."""
    return int(run.config()["source"].get("row", 4096))
