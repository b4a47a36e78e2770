"""The verdicts that are kept with a result are every problem's, in a stated order, and give its intervals again."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from rorqual.engine.request import SamplingParams
from rorqual.evals.compact_verdicts import CompactVerdicts
from rorqual.evals.compare import did_think
from rorqual.evals.evaluation import Evaluation, GradedSample
from rorqual.tasks.task import Verdict

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from verdicts import compact_verdicts, counts_per_problem

SEEDS = (3, 8)
FAMILIES = (("sub", "10"), ("sub", "9"), ("add", "1"))


def evaluation(seed: int, rate: float, *, tries: int = 1, ungraded: int = 0) -> Evaluation:
    """Twelve problems of each family and level, mixed as a task draws them."""
    rng = random.Random(f"{seed} {rate}")
    drawn = [(f"{family}{level}:{i}", family, level) for i in range(12) for family, level in FAMILIES]
    random.Random(seed).shuffle(drawn)
    samples = [
        GradedSample(
            key=key, family=family, level=level, prompt=key, answer="", reply="", reasoning=None, tokens=1, thinking_tokens=0,
            verdict=Verdict.UNGRADED if place < ungraded else Verdict.RIGHT if rng.random() < rate else Verdict.WRONG,
            thought=rng.random() < rate, truncated=False,
        )
        for place, (key, family, level) in enumerate(drawn)
        for _ in range(tries)
    ]  # fmt: skip
    return Evaluation(task="t", split="test", seed=seed, count=12, per_family=True, thinking="auto",
                      params=SamplingParams(n=tries), samples=tuple(samples))  # fmt: skip


BEFORE, AFTER = ([evaluation(seed, rate, ungraded=u) for seed in SEEDS] for rate, u in ((0.3, 2), (0.8, 1)))


def kept() -> CompactVerdicts:
    [found] = compact_verdicts({"before": BEFORE, "after": AFTER}, SEEDS)
    return CompactVerdicts.model_validate(found.model_dump(mode="json"))


def test_each_place_is_the_problem_that_the_order_says() -> None:
    found = kept()
    assert found.groups == ("add/1: 12 | sub/9: 12 | sub/10: 12",) * 2
    for place, (seed, one) in enumerate(zip(SEEDS, AFTER, strict=True)):
        by_order = [s for f, level in sorted(FAMILIES, key=lambda x: (x[0], int(x[1]))) for s in one.samples
                    if (s.family, s.level) == (f, level)]  # fmt: skip
        marks = {Verdict.RIGHT: "1", Verdict.WRONG: "0", Verdict.UNGRADED: "-"}
        assert found.right["after"][place] == "".join(marks[s.verdict] for s in by_order)
        assert found.thought["after"][place] == "".join(str(int(s.thought)) for s in by_order)
        assert counts_per_problem(found, "after", seed, thought=True) == [did_think(s) for s in by_order]


def test_several_samples_are_counted() -> None:
    [found] = compact_verdicts({"tries": [evaluation(seed, 0.5, tries=8) for seed in SEEDS]}, SEEDS)
    total = sum(sum(v or 0 for v in counts_per_problem(found, "tries", seed)) for seed in SEEDS)
    assert total == sum(s.verdict is Verdict.RIGHT for seed in SEEDS for s in evaluation(seed, 0.5, tries=8).samples)
    assert max(map(int, "".join(found.right["tries"]))) > 1
