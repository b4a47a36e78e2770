"""What `rorqual teach` chose, as a program that answers prompts: one or two rungs, a probability, and a threshold below which it abstains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rorqual.core.config import Config, Natural, Share, parse_config
from rorqual.core.errors import ConfigError
from rorqual.core.records import read_json, write_json
from rorqual.teach.paths import TeachPaths
from rorqual.teach.promise import PlattCalibration, Promise
from rorqual.teach.rungs.classifiers import NEAREST
from rorqual.teach.rungs.language_model import ALONE, TAUGHT, LanguageModel, taught_params
from rorqual.teach.rungs.rung import Predictor
from rorqual.teach.rungs.storage import load_rung

FEWEST_CHARACTERS = 20_000
"""A prompt of at most so many characters is never too long."""


class Step(Config):
    """A rung of an answerer. An answer of which the rung is less sure than `above` is left to the next step, if there is one."""

    rung: str
    calibration: PlattCalibration
    above: Share = 0.0


class AnswererConfig(Config):
    """The content of `answerer.json`: the steps in order, the promise if there is one, the accuracy that was asked for, or 0, and the form
    of a prompt. If an accuracy was asked for that cannot be promised, no answer is sure.

    If a row has several columns, their texts are joined by blank lines in the order of `columns`. The examples are conversations if there
    are no columns. `system` is the system message that all examples share, which their prompts leave out, and `has_system_turns` says
    whether prompts have other system turns. `longest` is the number of characters of the longest training prompt; a much longer prompt is
    refused (`most_characters`). `least_similar` is the smallest similarity that a held-out prompt has to its nearest training prompt, by
    the rung `NEAREST`; 0 accepts every prompt.
    """

    steps: tuple[Step, ...]
    promise: Promise | None = None
    columns: tuple[str, ...] = ()
    system: str = ""
    has_system_turns: bool = False
    asked: Share = 0.0
    longest: Natural = 0
    least_similar: Share = 0.0

    @property
    def rungs(self) -> tuple[str, ...]:
        """The names of the rungs that are needed to answer."""
        return (*(step.rung for step in self.steps), *[NEAREST] * (self.least_similar > 0))

    @property
    def may_abstain(self) -> bool:
        """Whether an accuracy was asked for, so that some answers may not be sure."""
        return bool(self.asked or self.promise)

    @property
    def most_characters(self) -> int:
        """The maximum number of characters of a prompt, so that one prompt cannot hold up all others."""
        return max(FEWEST_CHARACTERS, 20 * self.longest)


@dataclass(frozen=True)
class Answer:
    """An answer to a prompt.

    `probability` is the calibrated probability that the answer is right, `rung` the name of the rung that gave it. The probability of a
    prompt that is less similar to the examples than every held-out prompt is 0, because none was measured for such prompts. `sure` is False
    if the probability is below the threshold of the promise: the answer should not be used then.
    """

    text: str
    probability: float
    rung: str
    sure: bool
    reasoning: str = ""


class Answerer:
    """The steps that `rorqual teach` chose. `config` is the content of `answerer.json`, and `predictors` has one predictor for each name in
    `config.rungs`."""

    def __init__(self, config: AnswererConfig, predictors: Sequence[Predictor]) -> None:
        self.config, self.predictors = config, predictors

    def answer(self, prompts: Sequence[str]) -> list[Answer]:
        """Return the answer to each prompt. It does not depend on the other prompts."""
        threshold = self.config.promise.threshold if self.config.promise else math.inf if self.config.asked else 0.0
        steps, least = self.config.steps, self.config.least_similar
        nearest = self.predictors[-1].predict(prompts) if least else ()
        unlike = {place for place, guess in enumerate(nearest) if guess.probability < least}
        answers: dict[int, Answer] = {}
        left = list(range(len(prompts)))
        for step, predictor in zip(steps, self.predictors[: len(steps)], strict=True):
            last = step is steps[-1]
            guesses = predictor.predict([prompts[place] for place in left]) if left else []
            for place, guess in zip(left, guesses, strict=True):
                if last or guess.probability >= step.above:
                    probability = 0.0 if place in unlike else step.calibration.probability(guess.probability)
                    answers[place] = Answer(
                        guess.answer, probability, step.rung, probability >= threshold, guess.reasoning
                    )
            left = [place for place in left if place not in answers]
        return [answers[place] for place in range(len(prompts))]


def save_answerer(paths: TeachPaths, config: AnswererConfig) -> None:
    """Write `answerer.json`. The rungs that its steps name are in `paths.rung_file`, and the language model in `paths.model`."""
    write_json(paths.answerer, config.model_dump(mode="json"))


def load_answerer(folder: Path, *, threads: int) -> Answerer:
    """Load the answerer of a folder that `rorqual teach` wrote. `threads` is the number of worker threads.

    Raises DataError if the folder has no answerer, and ConfigError if a file of a rung cannot be used.
    """
    paths = TeachPaths(folder)
    data = read_json(paths.answerer, "the answerer of a taught task", "Give a folder that `rorqual teach` wrote.")
    config = parse_config(AnswererConfig, data, where=str(paths.answerer))
    if not config.steps:
        raise ConfigError("no steps", where=str(paths.answerer), remedy="Run `rorqual teach` again.")
    return Answerer(config, [load_predictor(paths, name, threads) for name in config.rungs])


def load_predictor(paths: TeachPaths, name: str, threads: int) -> Predictor:
    """Load a fitted rung or the taught language model by its name."""
    if name not in (TAUGHT, ALONE):
        return load_rung(paths.rung_file(name))
    params, thinking = taught_params(paths.model, calculator=name == TAUGHT)
    return LanguageModel(name, paths.model, params, thinking, threads=threads)
