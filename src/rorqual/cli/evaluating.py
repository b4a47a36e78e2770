"""Evaluation of a model on a task, a text or golden answers, for `rorqual eval` and `rorqual compare RUN golden=FILE`.

Answers are saved as they arrive, so that an interrupted command can resume.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

import rorqual
from rorqual.cli.eval_settings import (
    REMOTE,
    EvalSettings,
    check_same_settings,
    evaluation_file,
    held_out_text,
    load_engine_or_client,
    warn_if_trained_on,
)
from rorqual.cli.machine import available_cores
from rorqual.cli.progress import progress_bar_callback
from rorqual.cli.settings import WHERE, refuse_ineffective_settings
from rorqual.core.config import parse_config
from rorqual.core.errors import CheckpointError, ConfigError, suggest_name
from rorqual.core.records import RunDir
from rorqual.data.fingerprint import fingerprint
from rorqual.engine.weight_fingerprint import ROUNDING
from rorqual.evals import evaluating as run
from rorqual.evals.answer_cache import AnswerCache
from rorqual.evals.evaluation import Evaluation
from rorqual.evals.perplexity import text_loss
from rorqual.evals.text_loss import TextLoss
from rorqual.evals.trained_verifier import check_verifier, with_verifier_scores, write_training_rows
from rorqual.generate.output import check_writable_path
from rorqual.ops.backends import backend_cache_id
from rorqual.tasks.task import Task
from rorqual.teach.answer_file import answerer_fingerprint
from rorqual.teach.answerer import load_answerer
from rorqual.teach.golden import AnswererGenerator, GoldenAnswers, agreement_table, differences_table, expected_note
from rorqual.teach.paths import has_answerer

T = TypeVar("T")
TAUGHT = ("task", "data", "options", "split", "count", "seed", "per_family", "out", "threads")
"""Settings that have an effect if the model is a folder that `rorqual teach` wrote."""
GOLDEN = (
    "out", "thinking", "max_tokens", "temperature", "seed", "system", "think_budget", "calculator", "threads", "device", "dtype",
    "backend", "model", "seed_bits", "concurrency",
)  # fmt: skip
"""The settings of `rorqual eval` that `rorqual compare RUN golden=FILE` has, too."""


def evaluate_and_save(
    model: str,
    settings: EvalSettings,
    task: Task,
    file: Path | None,
    progress: Callable[[int, int], None],
    **arguments: Any,
) -> Evaluation:
    """Evaluate `model` on `task` and save the result in `file`. `arguments` of `evaluate` replace those of the settings.

    During the evaluation, answers are saved in an answer cache next to `file`. After an interruption, the same command
    continues with the cached answers.
    """
    check_same_settings(file, settings)
    judge = load_engine_or_client(settings.verifier, settings) if settings.verifier else None
    if judge is not None:
        few = run.pick_problems(task, settings.split, min(settings.count, 8), settings.seed, per_family=False)
        check_verifier(judge, few, settings.verifier)
    with load_with_cached_answers(model, settings, file) as cache:
        task.checkpoint = str(cache.made.get("run", ""))
        evaluation = run.evaluate(
            cache, task, progress=progress, model=model, **settings.evaluate_arguments() | arguments
        ).model_copy(update=provenance(model, cache.made.get("step"), settings))
        if judge is not None:
            evaluation = with_verifier_scores(evaluation, judge, settings.verifier)
        if settings.verifier_data:
            rows = write_training_rows(evaluation, Path(settings.verifier_data))
            _say(f"{rows:,} graded samples, to train a verifier on: {settings.verifier_data}")
        if file is not None:
            evaluation.save(file)
    return evaluation


@contextmanager
def load_with_cached_answers(model: str, settings: EvalSettings, file: Path | None) -> Iterator[AnswerCache]:
    """Load `model` with an answer cache next to `file`. At the end of the `with` block, the cached answers are deleted if no
    request failed. If requests failed, the cached answers are kept, so that a repeated command retries only the failed
    requests. After an exception, the cached answers are kept, and the path of the answer cache is printed."""
    engine, identity = _load_engine(model, settings)
    with AnswerCache(engine, file, identity) as cache:
        if cache.count:
            _say(f"Reusing {cache.count:,} answers from {cache.path}. Remove this file to start over.")
        try:
            yield cache
        except BaseException:
            if file is not None and cache.count:
                _say(f"Saved {cache.count:,} answers in {cache.path}. The same command resumes from them.")
            elif file is None and cache.answered and model.startswith(REMOTE):
                _say(f"{cache.answered:,} answers are lost. Give out=FILE.json to save answers as they arrive.")
            raise
        if cache.refusals:
            retry_note = f" The same command retries them; the other answers are in {cache.path}." if cache.path else ""
            _say(
                f"{len(cache.refusals):,} requests failed and are ungraded.{retry_note} The first: {cache.refusals[0]}"
            )
        else:
            cache.drop_saved_answers()


def _say(text: str) -> None:
    print(f"\n{text}", file=sys.stderr)


def _load_engine(model: str, settings: EvalSettings) -> tuple[Any, dict[str, Any]]:
    """Return the engine, and the fields that identify the engine in the answer cache.

    An answer depends only on the request and on the engine's fields in the key of the answer cache.
    """
    if model.startswith(REMOTE):
        return load_engine_or_client(model, settings), {
            "address": model,
            "model": settings.model,
            "seed_bits": settings.seed_bits,
        }
    if has_answerer(Path(model)):
        refuse_ineffective_settings(settings, TAUGHT, model)
        answerer = load_answerer(Path(model), threads=settings.threads or available_cores())
        made = {"run": answerer_fingerprint(Path(model), answerer.config)}
        return AnswererGenerator(answerer), made | software_versions()
    engine, fingerprint_, step = load_with_fingerprint(
        RunDir(Path(model)), lambda: load_engine_or_client(model, settings)
    )
    settings_ = {"dtype": settings.dtype, "device": settings.device, "backend": backend_cache_id(settings.backend)}
    return engine, {"run": fingerprint_, "step": step, **settings_, **software_versions()}


def load_with_fingerprint(run: RunDir, load: Callable[[], T]) -> tuple[T, str, int]:
    """Return the result of `load`, and the fingerprint and the step of the checkpoint that `load` read.

    `load` reads the latest checkpoint of `run`. If training saved a newer checkpoint while `load` was running, `load` is
    called again, because training deletes the older ones.
    """
    while True:
        checkpoint = run.checkpoint()
        try:
            loaded = load(), fingerprint(run, checkpoint), int(checkpoint.name.removeprefix("step-"))
        except CheckpointError:
            if run.checkpoint() == checkpoint:
                raise
            continue
        if run.checkpoint() == checkpoint:
            return loaded
        del loaded  # free the model's memory before the next load


def provenance(model: str, step: int | None, settings: EvalSettings) -> dict[str, Any]:
    """Return the fields `step`, `training_seed` and `settings` of a result. For a server, `step` is None."""
    return {
        "step": step,
        "training_seed": None if step is None else RunDir(Path(model)).config().get("seed"),
        "settings": settings.model_dump(mode="json"),
    }


def software_versions() -> dict[str, Any]:
    """Return the software versions on which the exact answers of a local engine depend."""
    return {"rorqual": rorqual.__version__, "torch": torch.__version__, "rounding": ROUNDING}


def loss_on_text(model: str, settings: EvalSettings) -> TextLoss:
    """Return the model's loss on the held-out last tenth of a text file, and save the loss at `evaluation_file`.

    The text is split into passages of `window` tokens (default: the model's context length).
    """
    if model.startswith(REMOTE):
        raise ConfigError(
            "a server cannot compute the loss of a text", where="command line", remedy="Give a run's folder."
        )
    file = evaluation_file(model, settings)
    assert file is not None
    check_writable_path(file)
    check_same_settings(file, settings)
    text = held_out_text(settings.data)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    engine, _, step = load_with_fingerprint(RunDir(Path(model)), lambda: load_engine_or_client(model, settings))
    if settings.window > engine.max_len:
        raise ConfigError(
            f"window={settings.window} exceeds the model's context of {engine.max_len}",
            where="command line",
            remedy=f"Use window={engine.max_len} or less.",
        )
    loss = text_loss(engine.scoring_model, engine.tokenizer, text, window=settings.window or engine.max_len)
    loss = loss.model_copy(update={"model": model, "text": settings.data, **provenance(model, step, settings)})
    loss.save(file)
    return loss


def compare_with_golden(model: str, golden: str, confidence: float, values: dict[str, str]) -> None:
    """Hold a model against the golden answers of a file: print the agreement, and save every answer. `values` are settings in `GOLDEN`.

    The defaults of the run (`defaults.json`) apply, as in `rorqual generate`.
    """
    if unknown := [key for key in values if key not in GOLDEN]:
        known = (*GOLDEN, "golden", "confidence")
        raise ConfigError(f"unknown key '{unknown[0]}'", where=WHERE, remedy=suggest_name(unknown[0], known))
    defaults = RunDir(Path(model)).task_defaults()
    own = defaults.model_dump(exclude_none=True, exclude={"grammar"})
    settings = parse_config(EvalSettings, own | values | {"task": "golden", "data": golden}, where=WHERE)
    file = evaluation_file(model, settings)
    if file is not None:
        check_writable_path(file)
    task = GoldenAnswers(Path(golden))
    problems, params = task.load("test"), settings.evaluate_arguments()["params"]
    evaluation = evaluate_and_save(
        model,
        settings,
        task,
        file,
        progress_bar_callback("compare golden", "answer"),
        problems=problems,
        params=replace(params, grammar=defaults.grammar),
    )
    note = expected_note(evaluation, problems, confidence)
    print("\n".join(filter(None, [agreement_table(evaluation, confidence).text(), note])))
    if (differences := differences_table(evaluation, problems)).rows:
        print(differences.text())
    warn_if_trained_on(model, Path(golden))
    if file is not None:
        print(f"  Every answer: {file}")
