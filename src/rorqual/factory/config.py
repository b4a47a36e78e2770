"""Settings of the sample factory: teacher, problems, sampling, filters, and access to a remote server."""

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
    """The filters that run on samples, and their limits.

    - `names`: the filters to run.
    - `shortest`, `longest`: limits on the length in tokens; 0 means no limit. A truncated reply counts as too long.
    - `ngram`, `repeated`: `repeated` is a limit on two shares: the share of repeated lines, and the share of words in
      repeated n-grams. An n-gram has `ngram` words.
    - `foreign`: maximum share of letters outside the sample's most frequent script.
    - `shingle`, `similar`: two samples of a problem are duplicates if the Jaccard similarity of their sequences of
      `shingle` words is at least `similar`.
    - `overlap`: a text is contaminated if it has this many consecutive words in common with an evaluation item.
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
    """Settings for access to a remote server. These settings do not affect samples, so they may change when a run
    resumes.

    `price_in`, `price_out`: price per million prompt tokens, and price per million reply tokens. `budget`: spending
    limit in the currency of the prices; 0 means no limit.
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
            raise ValueError("budget needs price_in and price_out, in currency units per million tokens")
        return self


class FactoryConfig(Config):
    """Settings of a run that samples a teacher on a task.

    - `teacher`: a run's folder, or the address of an OpenAI-compatible server. With a server, `model` is required.
    - `problems`: number of problems, or with `per_family` the number per family and level.
    - `samples`: number of samples per problem.
    - `keep`: whether to keep only correct samples, only graded samples, or all samples.
    - `top_k`: number of the teacher's most likely tokens to store at each position; 0 stores none.
    - `batch`: number of samples that a local teacher generates and saves together.
    - `decontaminate`: evaluation sets (files or tasks) to check against, in addition to the task's own test split.
    - `seed_bits`: size of the seeds that are sent to a server: 64, or 31 for servers that reject larger seeds.
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
            raise ValueError(
                "top_k needs a local run as teacher, because a server does not return the ids of its top tokens"
            )
        if not self.remote and (self.model or self.access.budget):
            raise ValueError("model= and budget= need a remote server as teacher, not a local run")
        if self.split == "test":
            raise ValueError("split=test is held out for evaluation and cannot be used for training: use train or dev")
        return self

    @property
    def remote(self) -> bool:
        """Whether the teacher is a remote server instead of a local run."""
        return self.teacher.startswith(ADDRESS)

    @property
    def params(self) -> SamplingParams:
        """The sampling parameters of all problems. `request_of` replaces the seed with one seed per problem."""
        return SamplingParams(
            max_tokens=self.max_tokens, temperature=self.temperature, top_p=self.top_p, seed=self.seed, n=self.samples
        )
