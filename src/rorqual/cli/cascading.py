"""`rorqual eval cascade=STUDENT,TEACHER`: evaluate the student and the teacher on the same problems, and calibrate the
student's confidence."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

from rorqual.cli.eval_settings import REMOTE, EvalSettings
from rorqual.cli.evaluating import load_with_cached_answers
from rorqual.core.errors import ConfigError
from rorqual.core.records import RunDir
from rorqual.data.fingerprint import fingerprint
from rorqual.evals.cascade import FEWEST, Cascade, calibrate
from rorqual.evals.evaluating import evaluate, pick_problems
from rorqual.evals.evaluation import Evaluation
from rorqual.model.account import account
from rorqual.model.cost import linear_cost
from rorqual.model.load.run_directory import read_model_config
from rorqual.tasks.task import Task

DEFAULT_SURE = 0.8
OTHER_WAYS = ("best_of", "verifier", "verifier_data", "refine")
"""Settings of `rorqual eval` that change how an answer is computed, and that a cascade does not support."""


def measure_cascade(
    models: tuple[str, str], settings: EvalSettings, task: Task, file: Path | None, progress: Callable[[int, int], None]
) -> Cascade:
    """Evaluate a cascade of (student, teacher), and save the result in `file`. Until the result is saved, answers are cached
    next to `file`, so an interrupted command resumes when it is repeated.

    The student answers `settings.count` problems of the dev split for the calibration, and then the problems of
    `settings.split`. The teacher answers only the problems of `settings.split`. If the student votes over several
    samples, the teacher generates one greedy sample per problem.
    """
    _check_models(models, settings)
    # Raise an error for an empty dev split before the first answer is generated.
    pick_problems(task, "dev", settings.count, settings.seed, settings.per_family)
    student, teacher = models
    asked = settings.evaluate_arguments()
    once = replace(asked["params"], n=1, temperature=0.0) if settings.votes else asked["params"]
    prints = [
        fingerprint(RunDir(Path(one)), RunDir(Path(one)).checkpoint()) if is_run_folder(one) else "" for one in models
    ]
    with ExitStack() as caches:
        little = caches.enter_context(load_with_cached_answers(student, settings, file))
        equal = (
            is_run_folder(student) and prints[0] == prints[1]
        )  # two caches of the same model would use the same file
        large = little if equal else caches.enter_context(load_with_cached_answers(teacher, settings, file))
        dev = evaluate(little, task, progress=progress, model=student, **asked | {"split": "dev", "measured": {}})
        first = evaluate(little, task, progress=progress, model=student, **asked)
        once_each = asked | {"votes": False, "params": once, "measured": first.baselines}  # the problems are the same
        answers = first, evaluate(large, task, progress=progress, model=teacher, **once_each)
        known = all(map(is_run_folder, models))
        result = Cascade(
            calibration=calibrate(dev),
            student=answers[0],
            teacher=answers[1],
            sure=DEFAULT_SURE if settings.sure is None else settings.sure,
            flops=(problem_flops(student, answers[0]), problem_flops(teacher, answers[1])) if known else None,
            fingerprints=(prints[0], prints[1]),
        )
        if file is not None:
            result.save(file)
    return result


def is_run_folder(model: str) -> bool:
    """Return whether `model` is the folder of a run rather than the address of a server."""
    return not model.startswith(REMOTE)


def _check_models(models: tuple[str, str], settings: EvalSettings) -> None:
    """Raise ConfigError if a cascade does not support the settings or the pair of models, or if a run has no checkpoint."""
    if settings.split == "dev":
        raise ConfigError(
            "the student's confidence is calibrated on the dev split", where="split=dev", remedy="Give split=test."
        )
    given = [name for name in OTHER_WAYS if getattr(settings, name)] + ["stop_when"] * (settings.stop_when != "never")
    if given:
        raise ConfigError(
            f"a cascade does not use the key '{given[0]}'",
            where="command line",
            remedy="Leave it out. votes=N gives the student's confidence by votes.",
        )
    if not any(map(is_run_folder, models)):
        raise ConfigError(
            "only one of the two models may be a server, because model= and the API key are for one server",
            where=models[1],
            remedy="Give a run's folder for the other.",
        )
    if not is_run_folder(models[0]) and not settings.votes:
        raise ConfigError(
            "a server returns no log-probabilities, so there is no confidence",
            where=models[0],
            remedy="Give votes=N and temperature=1, or a run as the student.",
        )
    if settings.count < FEWEST:
        raise ConfigError(
            f"count={settings.count} is too few for a calibration",
            where="key 'count'",
            remedy=f"Give count={FEWEST} or more.",
        )
    for model in filter(is_run_folder, models):
        RunDir(Path(model)).checkpoint()


def problem_flops(run: str, evaluation: Evaluation) -> dict[str, float]:
    """Return the FLOPs of the run's model on each problem, by the problem's key: one prefill of the prompt, and each sample's
    tokens, with attention to all earlier tokens. The output head is counted for sampled tokens only."""
    config = read_model_config(RunDir(Path(run)))
    head = linear_cost(config.hidden_size, config.vocab_size).flops
    longest = max(sample.prompt_tokens + sample.tokens for sample in evaluation.samples)
    costs = (account(config, context=context).flops - head for context in range(1, longest + 1))
    until = [0, *accumulate(costs)]  # the cost of the first n tokens of a sequence, without the head
    found = {}
    for key, samples in evaluation.samples_by_problem.items():
        prompt = samples[0].prompt_tokens
        # The last token of a sample is not read again.
        replies = (until[max(prompt, prompt + sample.tokens - 1)] - until[prompt] for sample in samples)
        found[key] = float(until[prompt] + sum(replies) + head * sum(sample.tokens for sample in samples))
    return found
