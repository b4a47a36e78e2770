"""Each stored finding follows from its own figures: verdict by the declared rule, means from each seed and from each problem."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from rorqual.evals.stats import difference_over_seeds
from rorqual.lab.find import EXPERIMENTS
from rorqual.lab.finding import TOO_FEW, Finding
from rorqual.lab.page import page_text

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from verdicts import counts_per_problem

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "lab"
FILES = sorted(RESULTS.glob("*.json"))
CLAIMS = {
    "distil-vs-rl": [("own choice", "student-rl", "dr-distil", "all", "above", 0.0, {"core-seconds": 0.15})],
    "zero": [
        ("right when made to think", "student-base", "student-rl", "all", "above", 0.0, {}),
        ("right when made to think", "student-random", "student-rl", "all", "above", 0.0, {}),
    ],
    "zero-long": [("right when made to think", "student-base", "zero-long-4", "all", "above", 0.0, {})],
    "balance": [
        ("largest load over mean less one", "third", "bias", "all", "below", 0.0, {}),
        ("held-out loss, nats", "none", "bias", "all", "below", 0.005, {}),
        ("held-out loss, nats", "aux", "bias", "all", "below", 0.005, {}),
    ],
    "experts": [
        ("accuracy lost", "another family's", "its own", "all", "above", 0.0, {}),
        ("accuracy lost", "random", "its own", "all", "above", 0.0, {}),
        ("accuracy lost", "equal load", "its own", "all", "above", 0.0, {"loads": 0.1}),
        *(
            (f"bits that expert and family share, {within}", "chance", "bits", layer, "above", 0.0, {})
            for within in ("over all tokens", "within one token id")
            for layer in ("layer 1", "layer 2")
        ),
    ],
    "data-distil": [(name, "full-original", "small-teacher", name, "above", -0.02, {}) for name in ("reviews", "prices, R²", "sentences")],
    "moe-vs-dense": [
        ("held-out loss", "shape-moe", "shape-dense-flops", "all", "above", 0.0, {"active FLOPs": 0.03}),
        ("held-out loss", "shape-moe", "shape-dense-clock", "all", "above", 0.0, {"core-seconds": 0.15}),
    ],
    "latent-vs-full": [
        ("held-out loss", "shape-moe", "shape-full", "all", "above", 0.0, {"parameters": 0.03}),
        ("cache bytes per token", "shape-moe", "shape-full", "all", "above", 0.0, {}),
    ],
    "mtp": [
        ("held-out loss", "shape-mtp", "shape-moe", "all", "above", 0.0, {"steps": 0.0}),
        ("held-out loss", "shape-mtp", "shape-plain-clock", "all", "above", 0.0, {"core-seconds": 0.15}),
    ],
    "sparse": [
        ("loss", "longer/4", "dsa/4", "all", "below", 0.01, {}),
        ("exact solutions", "longer/4", "dsa/4", "needle", "above", -0.02, {}),
        ("exact solutions", "window/4", "dsa/4", "needle", "above", 0.0, {}),
        ("exact solutions", "random/4", "dsa/4", "needle", "above", 0.0, {}),
        *(("exact solutions", f"dsa/{at}", f"adaptive/{at}", "needle", "above", -0.02, {}) for at in (2, 4, 8)),
    ],
    "nsa": [
        ("loss", "dense", "nsa", "all", "below", 0.01, {}),
        ("exact solutions", "dense", "nsa", "needle", "above", -0.02, {}),
    ],
    "compute": [
        ("held-out loss", "shape-zero", "shape-fixed", "all", "above", 0.0, {"experts per token": 0.03}),
        ("held-out loss", "shape-zero", "shape-fixed-clock", "all", "above", 0.0, {"core-seconds": 0.15}),
        *((part, "shuffled", "real", "all", "above", 0.0, {}) for part in ("tokens", "same token", "problems")),
    ],
    "answers": [
        ("tokens", "majority of 16", "majority of 16, until 95% sure", "majority of 16, until 95% sure", "below", -0.3, {}),
        ("accuracy", "majority of 16", "majority of 16, until 95% sure", "majority of 16, until 95% sure", "above", -0.01, {}),
    ],
    "effort": [
        ("tokens per problem", "effort-penalty-100", "effort-penalty-25", "all", "below", -0.5, {}),
        ("tokens per problem", "effort-penalty-100", "effort-penalty-50", "all", "below", 0.0, {}),
        ("tokens per problem", "effort-penalty-50", "effort-penalty-25", "all", "below", 0.0, {}),
        ("accuracy", "effort-plain-100", "effort-penalty-100", "all", "above", -0.02, {}),
    ],
}  # fmt: skip
CLAIMS["balance-worked"] = CLAIMS["balance"]
KEPT = {"compute": ("right when made to think", "-on"), "effort": ("accuracy", "")}
"""A quantity whose evaluations are stored problem by problem, and the end of their names."""
NOT_MEASURED = {
    "zero": {"right when made to think: random rewards against right ones"},
    "experts": {"accuracy lost: others of equal load gone, then its own"},
    "sparse": {
        "loss over that of dense attention, a quarter: dense, trained as long, then indexer",
        "exact solutions, a quarter: dense, trained as long, then indexer",
    },
}
"""The claimed questions of arms that were added after the stored run."""
VERDICTS = {
    "answers": "open", "answers-orders": "open", "balance": "holds", "balance-worked": "open", "compute": "open",
    "data-distil": "open", "distil-vs-rl": "open", "distil-vs-rl-first": "open", "effort": "open", "experts": "open",
    "latent-vs-full": "open", "moe-vs-dense": "does not hold", "mtp": "open", "nsa": "does not hold", "sparse": "open",
    "zero": "open", "zero-long": "open",
}  # fmt: skip


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_claim_has_its_parts_and_bounds(name: str) -> None:
    experiment = EXPERIMENTS[name]
    claims = [
        (pair.quantity, pair.a, pair.b, of, pair.side, pair.bound, dict(pair.equal))
        for pair in experiment.pairs
        for of in pair.claimed
    ]
    assert claims == CLAIMS[name]
    assert {pair.quantity for pair in experiment.pairs} <= set(experiment.quantities)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_stored_verdict_follows_from_the_stored_contrasts(file: Path) -> None:
    """The headline and its figures, too: a stored sentence that no contrast of the file gives is refused."""
    finding = Finding.load(file)
    experiment = EXPERIMENTS[finding.experiment.removesuffix("-orders")]
    judged = experiment.judgement(finding.contrasts)
    stored = json.loads(file.read_bytes())
    assert finding.verdict == stored["verdict"] == judged["verdict"] == VERDICTS[file.stem]
    assert (stored["headline"], stored["claim"]) == (judged["headline"], experiment.claim)
    reasons = [words for words in finding.words if "no verdict" in words]
    assert finding.words == (*judged["words"], *reasons, *[TOO_FEW] * (len(finding.seeds) < 5))
    assert (
        len(reasons) == (file.stem == "distil-vs-rl-first") and experiment.judge_again(finding).words == finding.words
    )
    questions = {pair.question for pair in experiment.pairs if pair.claimed}
    measured = {contrast.question for contrast in finding.contrasts}
    assert questions - measured == NOT_MEASURED.get(finding.experiment, set())
    assert stored["headline"].count("was not measured") == len(questions - measured)
    assert not any("+0.0 to +0.0" in words or "+100.0 to +100.0" in words for words in (*finding.words, *finding.notes))
    for contrast in finding.contrasts:
        a, b = np.mean(contrast.by_seed, axis=0)
        assert (contrast.a, contrast.b) == pytest.approx((a, b), abs=1e-9)
        assert (
            contrast.difference == pytest.approx(b - a, abs=1e-9)
            and contrast.low <= contrast.difference <= contrast.high
        )
    page = page_text(finding)
    assert finding.title.split(":")[0] in page and "+0.0 to +0.0" not in page


@pytest.mark.parametrize("name", KEPT)
def test_means_and_intervals_follow_from_the_verdict_of_each_problem(name: str) -> None:
    """The order of the problems differs from that of the first computation, so the bootstrap draws other problems."""
    finding = Finding.load(RESULTS / f"{name}.json")
    [kept], checked = finding.verdicts, 0
    for pair in EXPERIMENTS[name].pairs:
        for contrast in finding.contrasts:
            if (contrast.question, pair.quantity) == (pair.question, KEPT[name][0]):
                arms = [f"{arm}{KEPT[name][1]}" for arm in (pair.a, pair.b)]
                sides = [
                    [np.asarray(counts_per_problem(kept, arm, seed, contrast.of)) for seed in finding.seeds]
                    for arm in arms
                ]
                for side, values in enumerate(sides):
                    assert [seed[side] for seed in contrast.by_seed] == pytest.approx([one.mean() for one in values])
                again = difference_over_seeds(*sides, 0.99, 20_000).interval
                assert (again.low, again.high) == pytest.approx((contrast.low, contrast.high), abs=0.03)
                checked += 1
    assert checked == {"compute": 14, "effort": 1}[name]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_stored_finding_names_its_runs_and_who_shares_them(file: Path) -> None:
    """Two findings share a run if they name it for the same seed, and its training cost the same core-seconds in both."""
    finding = Finding.load(file)
    assert json.loads(file.read_bytes())["per_problem"] is None, "the runs are gone"
    experiment = EXPERIMENTS[finding.experiment.removesuffix("-orders")]
    claimed = {arm for pair in experiment.pairs for of in pair.claimed for arm in (pair.a, pair.b)}
    assert claimed - set(finding.runs) <= {"student-random", "equal load", "longer/4"}
    for arm, runs in finding.runs.items():
        assert (
            runs == tuple(f"seed-{seed}/{run}" for seed in finding.seeds for run in experiment.runs_of(arm))
            or arm == "small-soft"
        )
    for other in FILES:
        theirs = Finding.load(other)
        both = set(finding.seeds) & set(theirs.seeds)
        for name in finding.shared_runs.get(other.stem, ()):
            for seed in both:
                assert finding.costs[name][finding.seeds.index(seed)] == theirs.costs[name][theirs.seeds.index(seed)], (
                    "one run"
                )
            assert name in theirs.shared_runs[file.stem]
