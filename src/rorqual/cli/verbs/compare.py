"""The command `rorqual compare A B`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from pydantic import Field

from rorqual.cli.settings import WHERE, Settings, parse_settings, split_pairs
from rorqual.core.config import Config, Part, parse_config
from rorqual.core.errors import ConfigError


class CompareSettings(Config):
    """Settings of `rorqual compare`."""

    grain: Literal["family", "level", "all"] = Field("family", description="what a row covers")
    confidence: Part = Field(0.99, lt=1, description="confidence of the intervals")
    golden: str = Field("", description="instead of B: file of conversations that end with the answers of an old model")
    names: str = Field("", description="names of A and B, separated by commas")
    out: str = Field("", description="JSON file of all values")
    latex: str = Field("", description="LaTeX file of the tables (booktabs)")
    plot: str = Field("", description="chart as FILE.svg or FILE.pdf")
    page: str = Field("", description="HTML file")


def compare(
    before: Annotated[str, typer.Argument(metavar="A", help="Run with evaluations, or result file of a model.")],
    after: Annotated[
        str, typer.Argument(metavar="B", help="Run or result file of the model to compare with A, or golden=FILE.")
    ],
    settings: Settings = None,
) -> None:
    """Compare two or more models on the same problems or the same text.

    Shows paired differences between A and B with 99 % intervals. Runs are compared on every evaluation that all of them
    contain. `rorqual eval` writes evaluations. For several seeds, give the runs of each model separated by commas:
    A-0,A-1 B-0,B-1. The table then has a bootstrap interval over seeds and problems, Student's t interval over the seeds, and a
    verdict. Arguments after B without = are further models to compare with A.

    `rorqual compare RUN golden=FILE` compares one model (a run, a folder of rorqual teach, or a server) with kept answers of another.
    Each line of FILE is a conversation that ends with the old answer. Settings of `rorqual eval`, such as model= and max_tokens=, apply.
    After an interruption, the same command resumes.
    """
    given = [before, after, *(settings or ())]
    if any(word.startswith("golden=") for word in given):
        _hold_against_golden(given)
        return
    words = [word for word in settings or () if "=" in word or word.startswith("-")]
    arms = [before, after, *(word for word in settings or () if word not in words)]
    chosen = parse_settings(CompareSettings, words)

    from rorqual.evals.results import compare as compare_arms
    from rorqual.generate.output import check_writable_path

    files = {name: Path(file) for name in ("out", "latex", "plot", "page") if (file := getattr(chosen, name))}
    for file in files.values():
        check_writable_path(file)
    names = _parts(chosen.names) if chosen.names else ()
    results = compare_arms(
        *(_parts(arm) for arm in arms), names=names, grain=chosen.grain, confidence=chosen.confidence
    )
    print(results)
    write = {"out": results.to_json, "latex": results.to_latex, "plot": results.plot, "page": results.page}
    for name, file in files.items():
        write[name](file)
        print(f"  {file}")


def _hold_against_golden(words: list[str]) -> None:
    models = [word for word in words if "=" not in word]
    values = split_pairs([word for word in words if word not in models])
    if len(models) != 1:
        raise ConfigError(
            f"golden= takes one model, not {len(models)}", where=WHERE, remedy="Give one run, folder or address."
        )
    own = {key: values.pop(key) for key in ("golden", "confidence") if key in values}
    chosen = parse_config(CompareSettings, own, where=WHERE)

    from rorqual.cli.evaluating import compare_with_golden

    compare_with_golden(models[0], chosen.golden, chosen.confidence, values)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]
