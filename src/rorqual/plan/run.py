"""The user's own run: how fast it was, and what more of it takes, with an interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

import yaml

from rorqual.core.errors import DataError
from rorqual.core.records import RunDir

WARM, FEWEST, BLOCKS = 2, 12, 20
"""Steps left out at the start (buffers, kernels), steps that a speed needs, and blocks that the rest is divided into."""


@dataclass(frozen=True)
class Speed:
    """Means of a step: `seconds`, `core_seconds` (0: not recorded), `tokens` (trained and sampled), `flops`. `blocks`: mean seconds of
    `block` steps in a row, so that what drifts or comes in bursts is in the spread. `done` of `asked` steps."""

    seconds: float
    core_seconds: float
    tokens: float
    flops: float
    blocks: tuple[float, ...]
    block: int
    done: int
    asked: int

    def interval(self, steps: float, level: float = 0.95) -> tuple[float, float]:
        """Seconds that `steps` more steps take: the mean's uncertainty and the spread of what is to come, of blocks that are taken to
        be independent. A machine that gets other work, or answers that grow longer, are not in it."""
        count = len(self.blocks)
        spread = stdev(self.blocks) * math.sqrt(1 / count + self.block / steps)
        reach = student_t(count - 1, level) * spread
        return steps * max(self.seconds - reach, 0.0), steps * (self.seconds + reach)


def speed_of(run: RunDir) -> Speed:
    """The speed that `metrics.jsonl` records; a DataError where it holds too few steps."""
    records = list(run.metrics())
    if len(records) < FEWEST:
        raise DataError(
            f"{len(records)} steps, and a speed needs {FEWEST}",
            where=str(run.metrics_file),
            remedy="Let it train for longer, or plan it as --train hardware=cpu.",
        )
    kept = records[WARM:]
    try:
        seconds = [float(record["seconds"]) for record in kept]
        tokens = [float(record["tokens"]) + float(record.get("sampled_tokens", 0)) for record in kept]
        flops = [float(record["flops"]) for record in kept]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"a record without {error}", where=str(run.metrics_file), remedy="Name a run of ours."
        ) from None
    block = max(1, len(kept) // BLOCKS)
    whole = [fmean(seconds[at : at + block]) for at in range(0, len(kept) - block + 1, block)]
    core = fmean(float(record.get("core_seconds", 0.0)) for record in kept)
    return Speed(
        fmean(seconds), core, fmean(tokens), fmean(flops), tuple(whole), block, len(records), _asked(run, len(records))
    )


def _asked(run: RunDir, done: int) -> int:
    try:
        data = yaml.safe_load(run.config_file.read_bytes())
        return int(data["steps"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return done


def read_row(run: RunDir) -> int:
    """The length of the rows that a run trains on; 4,096 where its file does not say."""
    try:
        return int(yaml.safe_load(run.config_file.read_bytes())["source"]["row"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return 4096


def student_t(freedom: int, level: float) -> float:
    """The two-sided quantile of Student's t: Hill's expansion of the normal one (Abramowitz and Stegun 26.7.5), within half a percent
    from four degrees on."""
    z = NormalDist().inv_cdf(0.5 + level / 2)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom ** (power + 1) for power, term in enumerate(terms))
