"""A language model as a rung: what it is asked, and with which parameters."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rorqual.core.records import Message, RunDir, TaskDefaults, write_json
from rorqual.core.sampling import Grammar
from rorqual.engine.engine import Engine
from rorqual.engine.request import Request, SamplingParams
from rorqual.teach.answerer import load_predictor
from rorqual.teach.paths import TeachPaths
from rorqual.teach.rungs.language_model import ALONE, TAUGHT, LanguageModel, taught_params
from rorqual.teach.rungs.rung import Guess

PARAMS = SamplingParams(temperature=0.0, max_tokens=4)


def test_a_prompt_that_is_too_long_has_no_answer_and_the_others_keep_theirs(tiny: Path) -> None:
    model = LanguageModel(TAUGHT, RunDir(tiny), PARAMS, "off", threads=1)
    one, long, other = model.predict(["3 + 4?", "word " * 300, "and you?"])
    assert long == Guess("", 0.0) and [one] == model.predict(["3 + 4?"]) and [other] == model.predict(["and you?"])
    assert one.probability != other.probability > 0


def test_an_opening_comes_before_each_prompt(tiny: Path) -> None:
    opening = [Message("system", "Add."), Message("user", "1 + 1?"), Message("assistant", "2")]
    model = LanguageModel("base model", RunDir(tiny), PARAMS, "off", threads=1, opening=opening)
    prompt = "user: hello\n\nassistant: hi\n\nuser: 3 + 4?"
    [guess] = model.predict([prompt])
    [[reply]] = Engine(tiny, threads=1, backend="torch-invariant").generate(
        [Request((*opening, Message("user", prompt)), PARAMS, thinking="off")]
    )
    assert (
        guess.answer == reply.text
        and guess != LanguageModel("", RunDir(tiny), PARAMS, "off", threads=1).predict([prompt])[0]
    )


@pytest.mark.parametrize("name", [TAUGHT, ALONE])
def test_a_taught_model_is_asked_with_its_defaults_and_alone_without_the_calculator(
    tiny: Path, tmp_path: Path, name: str
) -> None:
    paths = TeachPaths(tmp_path)
    shutil.copytree(tiny, paths.model.path)
    assert taught_params(paths.model, calculator=True) == (SamplingParams(temperature=0.0), "auto")
    grammar = Grammar(kind="choice", source='["a", "b"]')
    defaults = TaskDefaults(thinking="on", max_tokens=7, temperature=0.5, grammar=grammar, calculator=True)
    write_json(paths.model.task_defaults_file, defaults.model_dump(mode="json", exclude_none=True))
    model = load_predictor(paths, name, 1)
    assert isinstance(model, LanguageModel) and model.name == name and model.thinking == "on"
    assert model.params == SamplingParams(temperature=0.5, max_tokens=7, grammar=grammar, calculator=name == TAUGHT)
