"""Settings of the sample factory: teacher, problems, sampling, filters, and use of a remote address."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from rorqual.core.config import MOST, Config, Count, Natural, NonNegative, Part, Positive, Seed, Share
from rorqual.core.records import Thinking
from rorqual.engine.request import SamplingParams
from rorqual.engine.seeds import Bits
from rorqual.tasks.base import Split

Keep = Literal["right", "graded", "all"]
FilterName = Literal["length", "repetition", "language", "contaminated", "duplicate"]
ADDRESS = ("http://", "https://")


class FilterConfig(Config):
    """Which filters run on a sample, and their limits.

    `shortest` and `longest` are limits in tokens; 0 means no limit, and a cut-off reply counts as too long. `repeated`
    is the largest allowed share of words inside a repeated n-gram of `ngram` words, or of repeated lines. `foreign` is
    the largest allowed share of letters outside the sample's main script. Two samples of one problem are duplicates if
    the Jaccard similarity of their `shingle`-word sequences is at least `similar`. `overlap` is the number of
    consecutive words of an evaluation item that count as contamination.
    """

    names: tuple[FilterName, ...] = ("length", "repetition", "language", "contaminated", "duplicate")
    shortest: Natural = 1
    longest: Natural = 0
    ngram: Count = 8
    repeated: Share = 0.6
    foreign: Share = 0.2
    shingle: Count = 3
    similar: Part = 0.8
    overlap: int = Field(8, ge=2, le=MOST)


class Access(Config):
    """How to use a remote address. None of these fields affect the samples, so a resumed run may change them.

    `price_in` and `price_out` are money per million tokens. `budget` is the spending limit in the same currency; 0
    means none.
    """

    concurrency: Count = 8
    timeout: Positive = 300.0
    retries: Natural = 5
    backoff: Positive = 0.5
    budget: NonNegative = 0.0
    price_in: NonNegative = 0.0
    price_out: NonNegative = 0.0

    @model_validator(mode="after")
    def _priced(self) -> Self:
        if self.budget and not (self.price_in or self.price_out):
            raise ValueError("budget needs price_in and price_out, in money per million tokens")
        return self


class FactoryConfig(Config):
    """Sample `problems` problems of `task` (with `per_family`, of each family and level), `samples` times each.

    `teacher` is a run's folder, or the address of an OpenAI-compatible server with the name of its `model`. `keep`
    selects right samples, graded samples, or all. `top_k` stores that many of the teacher's most likely tokens at each
    position. `batch` is the number of samples that a local teacher generates together and saves together.
    `decontaminate` lists evaluation sets, files or tasks, in addition to the task's own test split. `seed_bits` is the
    size of the seeds sent to an address: 64, or 31 for a server that rejects those.
    """

    teacher: str
    task: str
    model: str = ""
    data: str = ""
    options: dict[str, Any] = {}
    split: Split = "train"
    problems: Count = 100
    per_family: bool = False
    samples: Count = 1
    temperature: NonNegative = 1.0
    top_p: Part = 1.0
    max_tokens: Count = 512
    thinking: Thinking = "auto"
    seed: Seed = 0
    seed_bits: Bits = 64
    top_k: Natural = 0
    keep: Keep = "right"
    batch: Count = 256
    decontaminate: tuple[str, ...] = ()
    filters: FilterConfig = FilterConfig()
    access: Access = Access()
    device: str = "cpu"
    dtype: str = "float32"

    @model_validator(mode="after")
    def _meant(self) -> Self:
        if self.remote and not self.model:
            raise ValueError("a remote teacher needs model=NAME, because a server may have several models")
        if self.remote and self.top_k:
            raise ValueError("top_k needs a local run as teacher: a remote address does not return its top tokens")
        if not self.remote and (self.model or self.access.budget):
            raise ValueError("model= and budget= apply to a remote address only, not to a local run")
        if self.split == "test":
            raise ValueError("split=test is held out for evaluation and cannot be used for training: use train or dev")
        return self

    @property
    def remote(self) -> bool:
        """Whether the teacher is a remote address."""
        return self.teacher.startswith(ADDRESS)

    @property
    def params(self) -> SamplingParams:
        """The sampling parameters; each problem gets its own seed in addition."""
        return SamplingParams(
            max_tokens=self.max_tokens, temperature=self.temperature, top_p=self.top_p, seed=self.seed, n=self.samples
        )
