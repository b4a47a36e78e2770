"""What is asked of whom, and what is kept of it."""

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
    """Which filters look at a sample, and their limits.

    `shortest`, `longest`: tokens of a sample (0: no limit); a reply that was cut off counts as too long. `repeated`: the largest share of
    its words that stand in a repeat of `ngram` words, or of its lines that were there before. `foreign`: the largest share of its
    letters outside the script that most are in. `similar`: from this Jaccard similarity of `shingle`-word sequences on, two
    samples of one problem are duplicates. `overlap`: words of an evaluation item that, in a row, give it away.
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
    """How an address is used; none of it changes what is asked, so that all of it may change when the work goes on.

    `price_in` and `price_out` are money per million tokens, `budget` the most that may be spent (0: no limit), in the same currency.
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
            raise ValueError("a budget needs price_in and price_out, money per million tokens")
        return self


class FactoryConfig(Config):
    """`samples` of each of `problems` problems of `task` (with `per_family`, of each family and level), from `teacher`: a run's
    folder or the address of an OpenAI-compatible server, then with the `model` to ask for.

    `keep`: the right ones, what could be graded, or all. `top_k`: store that many of the teacher's likeliest tokens at each place.
    `batch`: samples of a local teacher that are drawn side by side, and kept together. `decontaminate`: evaluation sets, files or
    tasks, besides the task's own test split. `seed_bits`: of the seeds that an address gets, 64 or, where it refuses those, 31.
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
            raise ValueError("a server may hold several models: name one with model=NAME")
        if self.remote and self.top_k:
            raise ValueError("top_k needs a run of ours as teacher: an address does not say its likeliest tokens")
        if not self.remote and (self.model or self.access.budget):
            raise ValueError("model= and budget= belong to an address; a run of ours has neither")
        if self.split == "test":
            raise ValueError("split=test is held out to measure on, and never to learn from: use train or dev")
        return self

    @property
    def remote(self) -> bool:
        """Whether the teacher is an address."""
        return self.teacher.startswith(ADDRESS)

    @property
    def params(self) -> SamplingParams:
        """How each problem is sampled, but for the seed of its own that it gets."""
        return SamplingParams(
            max_tokens=self.max_tokens, temperature=self.temperature, top_p=self.top_p, seed=self.seed, n=self.samples
        )
