"""Settings of `rorqual teach`."""

from __future__ import annotations

from pydantic import Field

from rorqual.core.config import Config, Count, Natural, NonNegative, Positive, Seed


class TeachConfig(Config):
    """Settings of a taught model."""

    file: str
    test: str = Field("", description="file of test examples; default: a part of FILE")
    prompt: str = Field("", description="columns of the prompt, separated by commas")
    answer: str = Field("", description="columns of the answer; several become JSON")
    reasoning: str = Field("", description="column of the worked solution")
    base: str = Field("", description="RUN, Hugging Face folder, FILE.gguf or ORG/NAME; default: SmolLM2-135M-Instruct")
    grader: str = Field(
        "", description="./mine.py:function of (prompt, gold answer, reply) that returns whether the reply is right"
    )
    rule: str = Field("", description="./mine.py:function of the prompt that returns an answer, as a baseline")
    teacher: str = Field("", description="server's address or RUN that writes reasons for the answers")
    model: str = Field("", description="for a teacher's server: name of its model")
    budget: NonNegative = Field(0.0, description="for a teacher's server: maximum money to spend")
    price_in: NonNegative = Field(0.0, description="price per million prompt tokens")
    price_out: NonNegative = Field(0.0, description="price per million reply tokens")
    minutes: Positive = Field(20.0, description="time from the start to the end of training, without the baselines")
    count: Count = Field(500, description="maximum test examples")
    seed: Seed = Field(0, description="seed of splits, training and sampling")
    threads: Natural = Field(0, description="threads; 0: all cores")
    quiet: bool = Field(False, description="print no progress")
    track: str = Field("", description="tensorboard, wandb or trackio, separated by commas")
