"""The experiment `answers`: how several samples, a verifier, a thinking budget, asking the model to check its reply, early stopping,
and a cascade of two models change the accuracy, and how many tokens each method costs.

Sixteen samples of each problem are drawn once per seed. Votes, the best of several samples, and early stopping reuse these samples. Every
other method is compared with the greedy answer to the same problems.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from rorqual.core.records import RunDir
from rorqual.engine.engine import Engine
from rorqual.engine.request import SamplingParams
from rorqual.evals.cascade import Cascade, calibrate, teacher_probabilities
from rorqual.evals.evaluation import Evaluation
from rorqual.evals.trained_verifier import with_verifier_scores, write_training_rows
from rorqual.evals.votes import SURE, RuleResult, refine_results, rule_results
from rorqual.lab.experiment import SHARE, ArmPair, Experiment, Quantity, Readings, scale_amount
from rorqual.lab.job import ComputeJob, EvaluationJob, ExperimentJob, TrainJob, evaluation_file, load_evaluation
from rorqual.recipes.models import Size
from rorqual.recipes.quickstart import TASK
from rorqual.recipes.sft import sft
from rorqual.tasks.task import Split
from rorqual.train.run import Run

BIG, LITTLE, SIXTEEN, SCORED = "answers-model", "answers-little", "answers-model-sixteen", "scored"
VERIFIER, VERIFIER_ROWS = "answers-verifier", "verifier.jsonl"
REFINED, GRADED = "refined", "graded"
SAMPLES, GRADED_SAMPLES = 16, 4
"""Number of samples per problem for votes, and for the verifier's training data."""
GREEDY, VOTES, STOP, BOUND = "greedy", "majority of 16", f"majority of 16, until {SURE:.0%} sure", "any right"
SHARES = (0.25, 0.5)
"""Shares of the problems that the teacher answers in the compared cascades."""
RIGHT, TOKENS = "accuracy", "tokens"
SIZES = (2, 4, 8, 16)
RULES = ("majority", "most likely", "best by verifier", "majority weighted by verifier", BOUND)
MethodResult = tuple[Sequence[float], Sequence[float]]
"""The result of one method on the problems of one seed: for each problem, the
probability that the answer is right, and the number of tokens."""


def cascade_arm_name(share: float, how: str = "to the large model") -> str:
    """Return the arm's name for a cascade whose teacher answers `share` of the problems."""
    return f"cascade, {share:.0%} {how}"


class AnswersExperiment(Experiment):
    """The experiment on the families of the quickstart. `count` is the number of problems per family and level."""

    name = "answers"
    title = "Computation at the answer"
    claim = "stopping 16 votes when sure saves at least 30 % of their tokens, and the accuracy is at most 1 point lower"
    source = "Adaptive-Consistency, 2305.11860, abstract"
    first_seed = 200
    quantities = {RIGHT: SHARE, TOKENS: Quantity("tokens")}
    note = (
        "Tokens are those of generation, per problem, of both models of a cascade. A verifier also reads each reply once, which is not counted. "
        f"'{BOUND}' needs the right answer, so it is a bound and no way to answer."
    )

    wording = {
        RIGHT: "the accuracy",
        TOKENS: "the number of tokens",
        VOTES: "with all 16 votes",
        STOP: f"when voting stops at {SURE * 100:.0f} % certainty",
    }

    task: ClassVar[str] = TASK
    options: ClassVar[Mapping[str, Any]] = {"hard": 0.5}
    count: ClassVar[int] = 25
    graded: ClassVar[int] = 100
    max_tokens: ClassVar[int] = 96
    verified: ClassVar[bool] = True
    """Whether the experiment trains and measures a verifier."""
    rounds: ClassVar[int] = 2
    budgets: ClassVar[tuple[int, ...]] = (10, 20, 30, 40)
    seconds: ClassVar[float] = 3.0
    """Estimated core-seconds in which one model answers all problems once."""

    def __init__(self) -> None:
        rules = [rule for rule in RULES if self.verified or "verifier" not in rule]
        budgets = [f"thinking budget of {budget}" for budget in self.budgets]
        refined = [f"refined {round} time{'s' if round > 1 else ''}" for round in range(1, self.rounds + 1)]
        cascades = [cascade_arm_name(share, how) for share in SHARES for how in ("to the large model", "at random")]
        sampled = [f"{rule} of {size}" for rule in rules for size in SIZES]
        stopped = [f"{VOTES}, until settled", STOP]
        names = ["one sample", *sampled, *stopped, *budgets, *refined, "small model", *cascades]
        self.arms = {name: name for name in (GREEDY, *names)}

        def pair_of_arms(quantity: str, a: str, b: str, **rule: Any) -> ArmPair:
            question = f"{quantity}: {a}, then the way in the row"
            return ArmPair(question=question, quantity=quantity, a=a, b=b, groups=("all",), of=b, **rule)

        self.pairs = (
            pair_of_arms(TOKENS, VOTES, STOP, relative=True, claimed=(STOP,), bound=-0.3, side="below"),
            pair_of_arms(RIGHT, VOTES, STOP, claimed=(STOP,), bound=-0.01),
            *(pair_of_arms(RIGHT, cascade_arm_name(share, "at random"), cascade_arm_name(share)) for share in SHARES),
            *(pair_of_arms(RIGHT, GREEDY, name) for name in names),
        )

    def training_jobs(self, seed: int, place: Path, share: float) -> list[ExperimentJob]:
        """Return two training jobs: one for the main model, and one for the small model. The small model is the student of the
        cascade."""

        def run(size: Size, steps: int) -> Run:
            options = dict(self.options)
            return sft(
                task=self.task, size=size, steps=scale_amount(steps, share), rows=8, row=512, options=options, seed=seed
            )

        return [
            TrainJob(name=BIG, estimate=150 * share, make=partial(run, "small", 400)),
            TrainJob(name=LITTLE, estimate=60 * share, make=partial(run, "student", 300)),
        ]

    def verifier_run(self, seed: int, place: Path, share: float) -> Run:
        """Return the run that trains the verifier on graded samples, starting from the main model."""
        return sft(
            data=str(place / VERIFIER_ROWS),
            start=str(place / BIG),
            steps=scale_amount(120, share),
            rows=8,
            row=512,
            lr=1e-3,
            seed=seed,
        )

    def jobs(self, seed: int, place: Path, share: float) -> list[ExperimentJob]:
        several = SamplingParams(max_tokens=self.max_tokens, temperature=0.6, n=SAMPLES, seed=seed)
        greedy = SamplingParams(max_tokens=self.max_tokens)

        def evaluation_job(
            name: str,
            model: str = BIG,
            split: Split = "test",
            params: SamplingParams = greedy,
            count: int = 0,
            **more: Any,
        ) -> EvaluationJob:
            return EvaluationJob(
                name=f"{model}-{name}",
                estimate=self.seconds * params.n**0.7 * (1 + more.get("refine", 0)) * share,
                needs=(model,),
                model=model,
                seed=seed,
                task=self.task,
                options=dict(self.options),
                count=scale_amount(count or self.count, share, 1),
                split=split,
                params=params,
                more=more,
            )

        jobs = [
            *self.training_jobs(seed, place, share),
            evaluation_job(GREEDY),
            evaluation_job("sixteen", params=several, votes=True),
            *(
                evaluation_job(f"budget-{budget}", params=replace(greedy, think_budget=budget))
                for budget in self.budgets
            ),
            evaluation_job(REFINED, refine=self.rounds),
            evaluation_job(GREEDY, LITTLE),
            evaluation_job(f"{GREEDY}-dev", LITTLE, "dev", count=2 * self.count),
        ]
        if not self.verified:
            return jobs
        return [
            *jobs,
            evaluation_job(GRADED, split="train", params=replace(several, n=GRADED_SAMPLES), count=self.graded),
            ComputeJob(name=VERIFIER_ROWS, estimate=0.1, needs=(f"{BIG}-{GRADED}",), function=write_verifier_data),
            TrainJob(name=VERIFIER, estimate=100 * share, needs=(VERIFIER_ROWS,),
                  make=partial(self.verifier_run, seed, place, share)),
            ComputeJob(name=SCORED, estimate=self.seconds * share, needs=(VERIFIER, SIXTEEN), function=score_samples),
        ]  # fmt: skip

    def runs_of(self, arm: str) -> tuple[str, ...]:
        if arm == "small model":
            return (LITTLE,)
        return (BIG, *[LITTLE] * arm.startswith("cascade"), *[VERIFIER] * ("verifier" in arm))

    def read(self, place: Path) -> Readings:
        found, families = results_by_method(place, self.budgets), _problems_by_family(place)
        return {
            quantity: {
                name: {group: {key: way[part][at] for at, key in items} for group, items in families.items()}
                for name, way in found.items()
            }
            for part, quantity in enumerate(self.quantities)
        }


def write_verifier_data(place: Path) -> int:
    """Write the verifier's training data, and return the number of rows."""
    return write_training_rows(load_evaluation(place, f"{BIG}-{GRADED}"), place / VERIFIER_ROWS)


def score_samples(place: Path) -> float:
    """Save the sixteen samples of each problem with the verifier's scores. Return the mean verifier score."""
    verifier = Engine(RunDir(place / VERIFIER).path, threads=1, record_experts=False)
    result = with_verifier_scores(load_evaluation(place, SIXTEEN), verifier, VERIFIER)
    result.save(evaluation_file(place, SCORED))
    scores = [sample.score or 0.0 for sample in result.samples]
    return sum(scores) / len(scores)


def results_by_method(place: Path, budgets: Sequence[int]) -> dict[str, MethodResult]:
    """Return the results of all methods on one seed, by the method's name. All results list the problems in the same order."""
    found = sixteen_samples(place)

    def method_result(rule: RuleResult) -> MethodResult:
        return [value or 0.0 for value in rule.values], rule.costs

    def single_sample_result(name: str) -> MethodResult:
        return method_result(rule_results(load_evaluation(place, f"{BIG}-{name}"))[0])

    return {
        GREEDY: single_sample_result(GREEDY),
        **{_method_name(rule): method_result(rule) for rule in rule_results(found)},
        **{f"thinking budget of {budget}": single_sample_result(f"budget-{budget}") for budget in budgets},
        **{rule.rule: method_result(rule) for rule in refine_results(load_evaluation(place, f"{BIG}-{REFINED}"))[1:]},
        **cascade_results(cascade_of(place), found.problem_keys),
    }


def sixteen_samples(place: Path) -> Evaluation:
    """Return the evaluation with sixteen samples per problem, with the verifier's scores if the experiment trains a
    verifier."""
    return load_evaluation(place, SCORED if evaluation_file(place, SCORED).is_file() else SIXTEEN)


def _problems_by_family(place: Path) -> dict[str, list[tuple[int, str]]]:
    """Return (index, key) of each problem in two groupings: under "all" for all problems, and by family."""
    found = sixteen_samples(place)
    family = {sample.key: sample.family for sample in found.samples}
    items = [*enumerate(found.problem_keys)]
    return {"all": items} | {
        own: [item for item in items if family[item[1]] == own] for own in dict.fromkeys(family.values())
    }


def _method_name(rule: RuleResult) -> str:
    if rule.samples == 1:
        return "one sample"
    name, comma, rest = rule.rule.removesuffix(" (bound)").partition(",")
    return f"{name} of {rule.samples}{comma}{rest}"


def cascade_of(place: Path) -> Cascade:
    """Return the cascade of the small and the large model of one seed."""
    return Cascade(
        student=load_evaluation(place, f"{LITTLE}-{GREEDY}"),
        teacher=load_evaluation(place, f"{BIG}-{GREEDY}"),
        calibration=calibrate(load_evaluation(place, f"{LITTLE}-{GREEDY}-dev")),
        sure=0.8,
    )


def cascade_results(cascade: Cascade, keys: Sequence[str]) -> dict[str, MethodResult]:
    """Return the results of the small model alone, and of two cascades for each share in `SHARES`. In one cascade, the teacher
    answers the problems on which the student's confidence is lowest. In the other cascade, the teacher answers problems chosen
    at random, and the result is the expectation over these choices."""
    ranked = cascade.problems_by_confidence()
    choices = {choice.key: choice for choice in ranked}

    def method_result(asked: Mapping[str, float]) -> MethodResult:
        pairs = [(choices[key], asked.get(key, 0.0)) for key in keys]
        return (
            [(1 - share) * c.student + share * c.teacher for c, share in pairs],
            [c.student_tokens + share * c.teacher_tokens for c, share in pairs],
        )

    found = {"small model": method_result({})}
    for share in SHARES:
        asked = round(share * len(keys))
        found[cascade_arm_name(share)] = method_result(
            dict(zip(choices, teacher_probabilities(asked, ranked), strict=True))
        )
        found[cascade_arm_name(share, "at random")] = method_result(dict.fromkeys(choices, asked / len(keys)))
    return found
