"""A headline words contrasts that were tested, and what it says of each is true of the contrast's intervals."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest

from rorqual.evals.verdict import combine_verdicts, wider_interval
from rorqual.lab.experiment import ArmPair, Experiment
from rorqual.lab.find import EXPERIMENTS
from rorqual.lab.finding import Contrast

ROOT = Path(__file__).parents[2]
SENTENCE = re.compile(
    r" ?(?P<whether>Whether )?(?P<measure>\S.+?) is (?:(?P<limit>at least|at most|more than|not at least) (?P<bound>[\d.]+)"
    r"(?: (?:%|\w+))? )?(?P<way>higher|lower) (?P<b>.+?) than (?P<a>.+?)(?P<end> is open| was not measured)?\."
)
EQUALITY = re.compile(
    r"\b(as (well|good|accurate|often) as|(do|does|did) not differ|no difference|at the same accuracy|no better than)\b",
    re.I,
)
PAGES = (
    "explanation/claims.md",
    "how-to/compute.md",
    "how-to/effort.md",
    "how-to/experiments.md",
    "tour/distillation.md",
    "tour/mtp.md",
)


def parts(experiment: Experiment) -> list[tuple[ArmPair, str]]:
    return [(pair, of) for pair in experiment.pairs for of in pair.claimed]


def contrast(experiment: Experiment, pair: ArmPair, of: str, state: str) -> Contrast | None:
    """A contrast of five seeds that lies beyond the bound, before it, or on both sides, or None for one that was never measured."""
    if state == "missing":
        return None
    beyond = {"holds": 0.5, "fails": -0.5, "open": 0.0}[state] * (1 if pair.side == "above" else -1)
    differences = [pair.bound + beyond + step for step in (-0.1, -0.05, 0.0, 0.05, 0.1)]
    middle = pair.bound + beyond
    return Contrast(
        question=pair.question, of=of, a=1.0, b=1 + middle, difference=middle, low=middle - 0.05, high=middle + 0.05,
        by_seed=tuple((1.0, 1 + difference) for difference in differences), unit=experiment.quantities[pair.quantity].unit,
    )  # fmt: skip


def true_of(sentence: re.Match[str], difference: float) -> bool:
    """Whether the statement, read as a reader does, is true of a difference `b - a`."""
    sign = 1 if sentence["way"] == "higher" else -1
    amount = sign * difference
    bound = float(sentence["bound"] or 0) * (1 if sentence["bound"] is None or "R²" in sentence["measure"] else 0.01)
    return {"at most": amount < bound, "not at least": amount < bound}.get(sentence["limit"], amount > bound)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_headline_says_of_each_contrast_what_its_intervals_say(name: str) -> None:
    """Over all combinations of the contrasts' verdicts. A contrast that was never computed is said to be not measured."""
    experiment = EXPERIMENTS[name]
    claimed, states = parts(experiment), ("holds", "fails", "open")
    missing = [
        ["missing" if place == gone else "holds" for place in range(len(claimed))] for gone in range(len(claimed))
    ]
    made = [{state: contrast(experiment, *part, state) for state in (*states, "missing")} for part in claimed]
    for combination in (*product(states, repeat=len(claimed)), *missing):
        chosen = [one[state] for one, state in zip(made, combination, strict=True)]
        judged = experiment.judgement([one for one in chosen if one is not None])
        sentences = [*SENTENCE.finditer(judged["headline"])]
        assert "".join(one.group() for one in sentences) == judged["headline"] and len(sentences) == len(claimed)
        assert not EQUALITY.search(judged["headline"])
        verdicts = []
        for (pair, of), found, sentence in zip(claimed, chosen, sentences, strict=True):
            words = experiment.wording
            assert sentence["measure"].lower().startswith(words[pair.quantity].lower())
            assert (sentence["a"], sentence["b"]) == (words[pair.a], words[pair.b])
            assert of in ("all", pair.of) or words[of] in sentence["measure"]
            assert all(f"at equal {quantity}" in sentence["measure"] for quantity in pair.equal)
            if found is None:
                assert sentence["whether"] and sentence["end"] == " was not measured"
                verdicts.append("open")
                continue
            both = wider_interval(found.bootstrap, found.differences)
            truths = {true_of(sentence, end) for end in (both.low, both.high)}
            if sentence["whether"]:
                assert truths == {True, False} and sentence["end"] == " is open", (
                    "open: the interval contains the bound"
                )
                verdicts.append("open")
            else:
                assert truths == {True} and sentence["end"] is None
                verdicts.append("holds" if (both.low > pair.bound) == (pair.side == "above") else "does not hold")
        assert judged["verdict"] == combine_verdicts(verdicts)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_arm_of_a_claim_has_words_of_its_own(name: str) -> None:
    experiment = EXPERIMENTS[name]
    named = {arm for pair, _ in parts(experiment) for arm in (pair.a, pair.b)}
    assert len({experiment.wording[arm] for arm in named}) == len(named)
    assert "" not in experiment.wording.values()


def test_a_claim_that_was_made_equal_but_is_not_is_open() -> None:
    experiment = EXPERIMENTS["moe-vs-dense"]
    found = [one for pair, of in parts(experiment) if (one := contrast(experiment, pair, of, "holds"))]
    assert experiment.judgement(found)["verdict"] == "holds"
    void = experiment.judgement(found, {found[0].question: "the steps are unequal"})
    assert (
        void["verdict"] == "open"
        and void["headline"].count("is open") == 1
        and void["words"][-1] == "the steps are unequal"
    )


@pytest.mark.parametrize("page", PAGES)
def test_no_page_says_that_two_arms_are_equal(page: str) -> None:
    """No experiment tests equality, so a page may say that a difference is open, or how large it is at most."""
    text = re.sub(r"\s+", " ", (ROOT / "docs" / page).read_text(encoding="utf-8"))
    assert [found.group() for found in EQUALITY.finditer(text)] == []
