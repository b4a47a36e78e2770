"""Compare distillation with RL (GRPO) and with controls on a small model.

All compared branches start from one base student and have about the same cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from rorqual.core.config import override
from rorqual.core.records import RunDir, Thinking
from rorqual.evals.evaluation import Evaluation
from rorqual.evals.passk import mean_pass_at_k
from rorqual.evals.verdict import Verdict
from rorqual.factory.config import FactoryConfig
from rorqual.lab.experiment import Experiment, amount
from rorqual.lab.finding import Chart, Contrast, Finding, Series, Table, contrast_text, contrasts, mean_by_seed, percent
from rorqual.lab.job import ExperimentJob, JobCost, SampleJob, Train, evaluation, run_cost
from rorqual.lab.student import (
    BASE,
    BASE_THINK,
    EIGHT,
    FAMILIES,
    HARD,
    RL,
    ROUNDING,
    TASK,
    TRIES,
    base_jobs,
    fresh,
    measured,
    measures,
    reinforced_job,
)
from rorqual.lab.teacher import TEACHER, teacher_jobs
from rorqual.recipes.distil import distil, on_policy
from rorqual.recipes.quickstart import FULL
from rorqual.recipes.sft import sft
from rorqual.tasks.base import Verdict as Graded
from rorqual.train.run import Run

SAMPLES, DISTIL, GOLD, MORE, ON_POLICY = "dr-samples", "dr-distil", "dr-gold", "dr-more", "dr-on-policy"
BRANCHES = {
    BASE: "base student",
    DISTIL: "distilled",
    RL: "reinforced",
    GOLD: "generator's own steps",
    MORE: "base's own data, longer",
    ON_POLICY: "distilled on-policy",
    TEACHER: "teacher",
}
BUDGETED = (RL, DISTIL, GOLD, MORE, ON_POLICY)
MODES: tuple[Thinking, ...] = ("auto", "on")
"""Thinking modes in which the teacher is evaluated. Mode "on" is included because the teacher is made to think when it
writes the student's training samples."""
WINDOW = (0.05, 0.50)
"""Required range of the base student's pass@8 in every family. GRPO needs some right answers and room to improve."""
MOST = 0.8
"""Required fraction of (family, seed) pairs whose pass@8 lies in `WINDOW`.

The mean pass@8 over seeds must lie in `WINDOW` for every family. Each pass@8 is measured on 60 problems.
"""
EQUAL = 0.15
"""Costs that differ by at most this fraction in every seed count as equal."""
RL_COST = {"tokens": 44e-6, "sampled_tokens": 28e-6}
SUPERVISED, SAMPLING, SCORED = 0.096, 19.0, 0.95
"""Core-seconds of an SFT step, of sampling the teacher, and of an on-policy distillation step, measured on seeds 1 and 11.

`RL_COST` has the core-seconds of GRPO per trained token and per sampled token, including grading. The cost of GRPO
depends on the length of the sampled answers. Every other branch of a seed takes as many steps as fit into the cost of
GRPO. The number of steps is computed from token counts and fixed costs, so it does not depend on time measured during
the run.
"""


class DistilVsRl(Experiment):
    """The experiment `distil-vs-rl`. The compared branches start from one base student and take about the same number
    of core-seconds."""

    name: ClassVar[str] = "distil-vs-rl"
    title: ClassVar[str] = "Distillation against reinforcement on a small model"
    claim: ClassVar[str] = (
        "distilling reasoning from a large model makes a small model better than reinforcement of the small model does"
    )
    source: ClassVar[str] = "DeepSeek-R1, arXiv 2501.12948, section 4.1 and table 6"

    def jobs(self, seed: int, place: Path, share: float) -> list[ExperimentJob]:
        own = fresh(seed)
        trained = [
            reinforced_job(own, place, share),
            SampleJob(name=SAMPLES, estimate=24 * share, config=_samples(place, own, share), needs=(TEACHER,)),
            Train(name=DISTIL, estimate=58 * share, make=lambda: _distilled(place, own), needs=(RL, SAMPLES)),
            Train(name=GOLD, estimate=78 * share, make=lambda: _tuned(place, own, 1.0), needs=(RL,)),
            Train(name=MORE, estimate=78 * share, make=lambda: _tuned(place, own, BASE_THINK), needs=(RL,)),
            Train(name=ON_POLICY, estimate=78 * share, make=lambda: _on_policy(place, own), needs=(RL, TEACHER)),
        ]
        measuring = [job for branch in (DISTIL, RL) for job in measures(branch, own, share)]
        measuring += [job for branch in (GOLD, MORE, ON_POLICY) for job in measures(branch, own, share, ("auto",))]
        measuring += [measured(f"{TEACHER}-three-{mode}", TEACHER, own, share, thinking=mode) for mode in MODES]
        return [*teacher_jobs(seed, place, share), *base_jobs(own, place, share), *trained, *measuring]

    def conclude(self, places: Mapping[int, Path]) -> Finding:
        where = list(places.values())
        evaluations = {branch: [evaluation(place, _measured(branch)) for place in where] for branch in BRANCHES}
        main = contrasts("own choice: reinforced against distilled", evaluations[RL], evaluations[DISTIL])
        further = [
            contrast
            for question, a, b in (
                ("own choice: base against reinforced", BASE, RL),
                ("own choice: base against distilled", BASE, DISTIL),
                ("own choice: reinforced against the base's own data, longer", RL, MORE),
                ("own choice: distilled against the generator's own steps", DISTIL, GOLD),
                ("own choice: distilled against distilled on-policy", DISTIL, ON_POLICY),
                ("own choice: reinforced against distilled on-policy", RL, ON_POLICY),
            )
            for contrast in contrasts(question, evaluations[a], evaluations[b])
        ]
        thinking = {b: [evaluation(place, f"{b}-on") for place in where] for b in (BASE, RL, DISTIL)}
        further += contrasts("made to think: reinforced against distilled", thinking[RL], thinking[DISTIL])
        further += contrasts("made to think: base against reinforced", thinking[BASE], thinking[RL])
        further += contrasts("own choice: teacher against distilled", evaluations[TEACHER], evaluations[DISTIL])
        forced_teacher = [evaluation(place, f"{TEACHER}-three-on") for place in where]
        further += contrasts("made to think: teacher against distilled", forced_teacher, thinking[DISTIL])
        costs = [_costs(place) for place in where]
        tries = [eight_tries(evaluation(place, EIGHT)) for place in where]
        verdict, words = _verdict(main[0], costs, tries)
        return self.found(
            places,
            verdict=verdict,
            words=(*words, *_controls(further)),
            contrasts=(*main, *further),
            tables=(
                _accuracies(evaluations, list(places)),
                _window(tries, list(places)),
                _cost_table(costs, list(places)),
                TRIED,
            ),
            charts=(_bars(evaluations), _reward(where)),
        )


PROBLEMS = FULL.distil_problems


def budget(place: Path) -> float:
    """Return the cost of GRPO in core-seconds. The cost is computed from the run's token counts and the costs per token
    in `RL_COST`, so other load on the machine does not change it."""
    records = list(RunDir(place / RL).metrics())
    return sum(price * record[kind] for record in records for kind, price in RL_COST.items())


def _samples(place: Path, seed: int, share: float) -> FactoryConfig:
    return FactoryConfig(teacher=str(place / TEACHER), task=TASK, options={"hard": HARD}, problems=amount(PROBLEMS, share, 24),
                         samples=1, temperature=0.6, top_p=0.95, max_tokens=80, thinking="on", seed=seed)  # fmt: skip


def _distilled(place: Path, seed: int) -> Run:
    steps = max(2, round((budget(place) - SAMPLING) / SUPERVISED))
    run = distil(
        data=str(place / SAMPLES / "data.parquet"), start=str(place / BASE), steps=steps, rows=32, row=128, seed=seed
    )
    return override(run, TUNING)


def _tuned(place: Path, seed: int, think: float) -> Run:
    steps = max(2, round(budget(place) / SUPERVISED))
    run = sft(task=TASK, start=str(place / BASE), steps=steps, rows=32, row=128, think=think, options={"hard": HARD},
              seed=seed + 50_000)  # fmt: skip
    return override(run, TUNING)


def _on_policy(place: Path, seed: int) -> Run:
    steps = max(2, round(budget(place) / SCORED))
    run = on_policy(teacher=str(place / TEACHER), task=TASK, start=str(place / BASE), steps=steps, problems=32, samples=4,
                    max_tokens=80, row=128, lr=3e-3, options={"hard": HARD}, seed=seed)  # fmt: skip
    return override(run, ROUNDING)


TUNING = [f"optim.lr={FULL.student_lr}", f"optim.adamw.lr={FULL.student_adamw_lr}"]
"""Learning rates for a model that is already trained: half the rates for a new model."""

TRIED = Table(
    title="Settings tried, on seed 1 and the dev split",
    heads=("what", "tried", "kept"),
    rows=(
        (
            "base: easy problems too (70 %), share that thinks and steps",
            "0.05, 1000; 0.1, 600; 0.2, 200, 450 and 600; 0.5, 400; 1, 400; 1, 300 and 500, then 0.04",
            "none: on seed 100, reinforcement taught the student to answer at once, which is often right on two digits",
        ),
        (
            "base: hard problems only, share that thinks and steps (seeds 1, 11, 12)",
            "0.2, 450; 0.2, 600",
            "none: on seeds 101 to 104, half of the families had pass@8 outside 5 to 50 %",
        ),
        (
            "base: often thinking first, then rarely (seeds 1, 11)",
            "1, 450 and 600, then 0.06; 0.4, 550 and 800, then 0.05 and 0.06",
            "0.4, 600, then 0.07, 60",
        ),
        ("reinforcement: rate (with easy problems)", "2e-4, 3e-4, 4e-4, 5e-4, 1e-3", "4e-4"),
        ("distillation: problems and steps", "2000, 300; 4000, 700; 6000, 760", "4000, 700"),
        (
            "on-policy: rate and batch",
            "AdamW 1e-3, 96 x 4; AdamW 3e-3, 32 x 4; Muon 0.006, 32 x 4",
            "AdamW 3e-3, 32 x 4",
        ),
    ),
    note="At 1e-3, reinforcement lost the base's skills; 2e-4 to 5e-4 gave similar results. Students of seeds 100 to 104 were inspected, so "
    "the reported students have other seeds and problems. Their teachers, used for samples only, are the same.",
)


def _measured(branch: str) -> str:
    return f"{TEACHER}-three-auto" if branch == TEACHER else f"{branch}-auto"


def eight_tries(result: Evaluation) -> dict[str, float]:
    """Return the pass@8 of each family."""
    counts: dict[str, dict[str, list[bool]]] = {}
    for sample in result.samples:
        counts.setdefault(sample.family, {}).setdefault(sample.key, []).append(sample.verdict is Graded.RIGHT)
    return {
        family: mean_pass_at_k([(len(tries), sum(tries)) for tries in problems.values()], TRIES)
        for family, problems in counts.items()
    }


def _costs(place: Path) -> dict[str, JobCost]:
    """Return the cost of each branch and of the teacher, without the cost of the base student. The cost of distillation
    includes sampling the teacher."""
    cost = {branch: run_cost(RunDir(place / branch)) for branch in BUDGETED}
    sampling = SampleJob(name=SAMPLES, estimate=0, config=_samples(place, 0, 1)).cost(place)
    teacher = run_cost(RunDir(place / TEACHER)) + run_cost(RunDir(place / "teacher-base"))
    return cost | {DISTIL: cost[DISTIL] + sampling, TEACHER: teacher}


def _verdict(
    main: Contrast, costs: Sequence[dict[str, JobCost]], tries: Sequence[dict[str, float]]
) -> tuple[Verdict, list[str]]:
    """Return the verdict and sentences that explain it. If the comparison is not valid, the verdict is open; otherwise
    the intervals decide.

    The comparison is valid if costs are equal in every seed, and if the base student can improve in every family.
    """
    ratios = _ratios(costs, DISTIL)
    fair = all(abs(ratio - 1) <= EQUAL for ratio in ratios)
    inside = [WINDOW[0] <= value <= WINDOW[1] for of_seed in tries for value in of_seed.values()]
    means = [sum(of_seed[family] for of_seed in tries) / len(tries) for family in tries[0]]
    room = all(WINDOW[0] <= mean <= WINDOW[1] for mean in means) and sum(inside) >= MOST * len(inside)
    with_teacher = [
        (of_seed[DISTIL].core_seconds + of_seed[TEACHER].core_seconds) / of_seed[RL].core_seconds for of_seed in costs
    ]
    others = [ratio for branch in (GOLD, MORE, ON_POLICY) for ratio in _ratios(costs, branch)]
    words = [
        f"Distilled against reinforced, with their own choice to think: {contrast_text(main)}. A verdict needs both intervals and five seeds.",
        f"Sampling and fine-tuning took {min(ratios):.2f} to {max(ratios):.2f} times the core-seconds of reinforcement, by seed"
        f"{'' if fair else f'; this is not equal within {EQUAL:.0%}, so there is no verdict'}. With the teacher's own training they took "
        f"{sum(with_teacher) / len(with_teacher):.1f} times as many. The controls took {min(others):.2f} to {max(others):.2f} times.",
        f"In eight tries, the base student solved {percent(min(min(t.values()) for t in tries))} to "
        f"{percent(max(max(t.values()) for t in tries))} % of a family's problems; {sum(inside)} of {len(inside)} pairs of "
        f"family and seed lie within {percent(WINDOW[0])} to {percent(WINDOW[1])} %{'' if room else '. These are too few for a verdict'}.",
    ]
    return (main.sign if fair and room else "open"), words


def _ratios(costs: Sequence[dict[str, JobCost]], branch: str) -> list[float]:
    return [of_seed[branch].core_seconds / of_seed[RL].core_seconds for of_seed in costs]


def _controls(further: Sequence[Contrast]) -> list[str]:
    return [
        f"{contrast.question.capitalize()}: {contrast_text(contrast)}." for contrast in further if contrast.of == "all"
    ]


def _accuracies(by_branch: Mapping[str, Sequence[Evaluation]], seeds: Sequence[int]) -> Table:
    rows = []
    for branch, evaluations in by_branch.items():
        for family in ("all", *FAMILIES):
            right = [
                [s.verdict is Graded.RIGHT for s in result.samples if family in ("all", s.family)]
                for result in evaluations
            ]
            shares = [sum(values) / len(values) for values in right]
            thought = [sum(s.thought for s in result.samples) / len(result.samples) for result in evaluations]
            rows.append((
                f"{BRANCHES[branch]}, {family}",
                *(percent(value) for value in shares),
                percent(sum(shares) / len(shares)),
                percent(sum(thought) / len(thought)) if family == "all" else "",
            ))  # fmt: skip
    return Table(
        title="Accuracy in percent on held-out problems, own choice to think",
        heads=("branch", *(f"seed {seed}" for seed in seeds), "mean", "thinks"),
        rows=tuple(rows),
    )


def _window(tries: Sequence[dict[str, float]], seeds: Sequence[int]) -> Table:
    rows = tuple((family, *(percent(of_seed[family]) for of_seed in tries)) for family in FAMILIES)
    return Table(
        title="The base student in eight tries, percent solved",
        heads=("family", *(f"seed {s}" for s in seeds)),
        rows=rows,
    )


def _cost_table(costs: Sequence[dict[str, JobCost]], seeds: Sequence[int]) -> Table:
    names = {**{b: BRANCHES[b] for b in BUDGETED}, TEACHER: "the teacher's training"}
    rows = tuple((label, *(f"{of_seed[b].core_seconds:.1f}" for of_seed in costs)) for b, label in names.items())
    return Table(
        title="Core-seconds of each branch after the base student",
        heads=("branch", *(f"seed {seed}" for seed in seeds)),
        rows=rows,
        note="Distilled: sampling, verifying and filtering, then fine-tuning.",
    )


def _bars(by_branch: Mapping[str, Sequence[Evaluation]]) -> Chart:
    groups = ("all", *FAMILIES)
    return Chart(
        name="accuracy",
        title="Accuracy on held-out problems, own choice to think",
        kind="bars",
        labels=groups,
        series=tuple(mean_by_seed(by_branch[branch], label, groups) for branch, label in BRANCHES.items()),
        percent=True,
        caption="Bars: means over seeds with 99 % intervals. Dots: each seed.",
    )


def _reward(places: Sequence[Path]) -> Chart:
    """Return a chart of the rollouts' reward, and of the share of rollouts that think, during GRPO."""

    def series(label: str, key: str) -> Series:
        lines = [tuple((float(r["step"]), float(r[key])) for r in RunDir(place / RL).metrics()) for place in places]
        mean = tuple((points[0][0], sum(y for _, y in points) / len(points)) for points in zip(*lines))
        return Series(label=label, points=mean, by_seed=tuple(lines))

    return Chart(
        name="reinforcement",
        title="Reinforcement of the student",
        x="step",
        y="share of samples",
        series=(series("right", "reward"), series("thinks", "think_share")),
        percent=True,
        caption="Strong lines: mean over seeds. Faint lines: each seed.",
    )
