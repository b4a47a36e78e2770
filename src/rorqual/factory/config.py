"""Settings of the sample factory: teacher, problems, sampling, filters, and access to a remote server."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from rorqual.core.config import Config, Count, Natural, NonNegative, Part, Positive, Seed
from rorqual.core.records import Thinking
from rorqual.engine.request import SamplingParams
from rorqual.engine.seeds import Bits
from rorqual.tasks.task import Split

KeptSamples = Literal["right", "graded", "all"]
FilterName = Literal["length", "repetition", "language", "contaminated", "duplicate"]
ADDRESS = ("http://", "https://")


class FilterConfig(Config):
    """The filters that run on samples. The limits of the filters are constants of `rorqual.factory.filters`."""

    names: tuple[FilterName, ...] = Field(
        ("length", "repetition", "language", "contaminated", "duplicate"), description="filters to run"
    )
    overlap: int = Field(8, ge=2, le=64, description="consecutive words of an evaluation item that contaminate a text")


def check_prices(config: Config) -> None:
    """Raise ValueError if `config` sets `budget` without both `price_in` and `price_out`. One of the prices may be 0."""
    given = config.model_dump(include={"budget", "price_in", "price_out"}, exclude_unset=True)
    if given.get("budget") and not (len(given) == 3 and given["price_in"] + given["price_out"]):
        raise ValueError(
            "budget needs price_in and price_out, in currency units per million tokens; one of them may be 0"
        )


class RemoteAccess(Config):
    """Settings for access to a remote server."""

    concurrency: Count = Field(8, description="maximum requests at a time")
    timeout: Positive = Field(300.0, description="seconds until a request fails")
    retries: Natural = Field(5, description="further tries of a failed request")
    backoff: Positive = Field(0.5, description="seconds before the first further try")
    budget: NonNegative = Field(0.0, description="maximum money to spend; 0: no limit")
    price_in: NonNegative = Field(0.0, description="price per million prompt tokens")
    price_out: NonNegative = Field(0.0, description="price per million reply tokens")

    @model_validator(mode="after")
    def _check_price(self) -> Self:
        check_prices(self)
        return self


class FactoryConfig(Config):
    """Settings of a run that samples a teacher on a task."""

    teacher: str
    task: str = Field(description="task of the problems")
    model: str = Field("", description="for a server: name of its model")
    data: str = Field("", description="file of the task's problems")
    options: dict[str, Any] = Field({}, description="arguments of the task")
    split: Split = Field("train", description="split of the problems")
    problems: Count = Field(100, description="number of problems")
    samples: Count = Field(1, description="samples per problem")
    temperature: NonNegative = Field(1.0, description="0 is greedy decoding")
    top_p: Part = Field(1.0, description="share of probability to sample from")
    max_tokens: Count = Field(512, description="maximum tokens of a reply")
    thinking: Thinking = Field("auto", description="whether the teacher thinks")
    seed: Seed = Field(0, description="seed of problems and samples")
    seed_bits: Bits = Field(64, description="for a server: size of its seeds")
    top_k: Natural = Field(0, description="most likely tokens to store at each position, to distil logits; 0: none")
    keep: KeptSamples = Field("right", description="samples to keep")
    batch: Count = Field(256, description="samples of a local teacher that are generated and saved together")
    decontaminate: tuple[str, ...] = Field(
        (), description="evaluation files or tasks, beside the task's own test split"
    )
    filters: FilterConfig = FilterConfig()
    access: RemoteAccess = RemoteAccess()
    device: str = Field("cpu", description="device of the tensors")
    dtype: str = Field("float32", description="type of the tensors")

    @model_validator(mode="after")
    def _check_teacher_settings(self) -> Self:
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
