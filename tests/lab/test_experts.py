"""Bits against a brute force and on made-up routers; experts that are gone serve nothing; the experiment in small."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rorqual.core.errors import ConfigError
from rorqual.core.records import RunDir, write_json
from rorqual.data.chat import chat_format
from rorqual.data.pack import TrainingSample
from rorqual.data.tokenizer import BASE_VOCAB, Tokenizer
from rorqual.engine import Engine, Request, SamplingParams
from rorqual.evals.experts import count_expert_use, expert_label_information, lift, mutual_information, without_experts
from rorqual.lab.experts import (
    ExpertsExperiment,
    ablate_experts,
    accuracy_losses,
    experts_of_equal_load,
    grade_greedy_answers,
    measure_mutual_information,
    pick_of_each_family,
    read_choices,
    removed_loads,
)
from rorqual.lab.held_out import mean_losses, solution_samples
from rorqual.lab.job import value_file
from rorqual.lab.page import page_text
from rorqual.lab.teacher import TEACHER
from rorqual.model.decoder import Decoder
from rorqual.model.init import build
from rorqual.recipes.models import v3_like
from rorqual.recipes.quickstart import TASK
from rorqual.recipes.sft import sft
from rorqual.train.loop import fit

FAMILIES, DOCUMENTS, LENGTH = 4, 80, 10


def model() -> Decoder:
    return build(v3_like("tiny", vocab_size=BASE_VOCAB, context=128), seed=0)


def brute(pairs: list[tuple[int, int]]) -> float:
    """sum p(a, b) log2 p(a, b) / (p(a) p(b)) over a list of pairs."""
    n, joint = len(pairs), Counter(pairs)
    first, second = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    return sum(c / n * math.log2(c * n / (first[a] * second[b])) for (a, b), c in joint.items())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=60))
def test_information_is_what_a_brute_force_says(pairs: list[tuple[int, int]]) -> None:
    table = np.zeros((4, 5))
    for a, b in pairs:
        table[a, b] += 1
    assert float(mutual_information(table)) == pytest.approx(brute(pairs), abs=1e-9)
    assert mutual_information(np.stack([table, table * 3]))[1] == pytest.approx(brute(pairs), abs=1e-9)


def corpus(rule: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Experts [n, 1], document [n], label [documents], token [n] of a router that goes by `rule`."""
    rng = np.random.default_rng(0)
    label = np.arange(DOCUMENTS) % FAMILIES
    document = np.repeat(np.arange(DOCUMENTS), LENGTH)
    token = rng.integers(0, 2, len(document)) + 2 * label[document] * (rule == "token")
    expert = {
        "family": label[document],
        "token": token % 4,
        "chance": rng.integers(0, 4, len(document)),
        "document": rng.integers(0, 4, DOCUMENTS)[document],  # one expert for all of a document, whatever its family
    }[rule]
    return expert[:, None], document, label, token


def bits(rule: str, within: str = "any") -> tuple[float, float]:
    """Bits, and mean bits of shuffled labels."""
    expert, document, label, token = corpus(rule)
    held = token if within == "token" else np.zeros_like(token)
    return expert_label_information(expert, document, label, held, n_experts=4, shuffles=199, seed=1)


def test_an_expert_for_each_family_says_all_and_a_random_one_nothing() -> None:
    said, chance = bits("family")
    assert said == pytest.approx(math.log2(FAMILIES)) and chance < 0.1
    said, chance = bits("chance")
    assert said == pytest.approx(chance, abs=0.01)


def test_shuffling_problems_and_not_tokens_keeps_what_hangs_together() -> None:
    """A document whose tokens all meet one expert looks like bits: many tokens, few independent choices."""
    said, chance = bits("document")
    assert said > 0.03 and chance > 0.03 and said < 2 * chance


def test_within_one_token_a_router_by_token_says_nothing() -> None:
    free, chance = bits("token")
    assert free > chance + 0.5
    assert bits("token", within="token") == pytest.approx((0, 0), abs=1e-12)
    held, chance = bits("family", within="token")
    assert held > chance + 1


def test_within_is_the_weighted_sum_of_brute_forces() -> None:
    rng = np.random.default_rng(2)
    label, document = rng.integers(0, 3, 12), rng.integers(0, 12, 300)
    experts, token = rng.integers(0, 5, (300, 2)), rng.integers(0, 4, 300)
    slow = 0.0
    for one in range(4):
        here = [i for i in range(300) if token[i] == one]
        pairs = [(int(label[document[i]]), int(e)) for i in here for e in experts[i]]
        slow += len(here) / 300 * brute(pairs)
    assert expert_label_information(experts, document, label, token, n_experts=5, shuffles=3, seed=0)[
        0
    ] == pytest.approx(slow)


def test_choices_are_those_of_each_document_alone() -> None:
    net = model()
    generator = torch.Generator().manual_seed(4)
    ids = [torch.randint(BASE_VOCAB, (n,), generator=generator).tolist() for n in (7, 20, 3, 31, 12)]
    read = read_choices(net, [TrainingSample(x, [True] * len(x)) for x in ids])
    assert len(read.token) == sum(map(len, ids))
    for number, alone in enumerate(ids):
        here = read.document == number
        assert read.token[here].tolist() == alone
        expected = net(torch.tensor([alone])).routing[0].indices.sort(-1).values
        assert np.sort(read.experts[here][:, 0], -1).tolist() == expected.tolist()


def test_counts_and_lift() -> None:
    experts, group = np.array([[0, 1], [0, 2], [3, 1]]), np.array([0, 0, 1])
    table = count_expert_use(experts, group, 4, 2)
    assert table.tolist() == [[2, 1, 1, 0], [0, 1, 0, 1]]
    assert lift(table)[1].tolist() == pytest.approx([0, 0.5 / 0.375, 0, 2])


def test_experts_that_are_gone_serve_nothing() -> None:
    net = model()
    tokens = torch.randint(BASE_VOCAB, (3, 40), generator=torch.Generator().manual_seed(5))
    whole = net(tokens).routing[0]
    gone = whole.indices.flatten().bincount(minlength=16).topk(3).indices.tolist()
    without = without_experts(net, [gone])
    routing = without(tokens).routing[0]
    assert not np.isin(routing.indices.numpy(), gone).any() and bool(routing.weights.isfinite().all())
    assert torch.allclose(routing.weights.sum(-1), torch.ones(120))
    expected = whole.scores.clone()
    expected[:, gone] = -1.0
    assert torch.equal(routing.indices.sort(-1).values, expected.topk(2).indices.sort(-1).values), "the next best serve"
    assert torch.equal(net(tokens).routing[0].indices, whole.indices), "the model itself is as it was"
    engine = Engine.of(without, Tokenizer.byte_level(), chat_format(Tokenizer.byte_level()))
    [[said]] = engine.generate([Request(prompt_ids=(5, 6, 7), params=SamplingParams(max_tokens=9, ignore_eos=True))])
    assert not np.isin(np.asarray(said.experts), gone).any(), "nor in the engine"
    with pytest.raises(ConfigError, match="only 1 experts would remain"):
        without_experts(net, [list(range(15))])
    without_experts(net, [list(range(14))])


def test_the_whole_of_it_in_small(tmp_path: Path) -> None:
    places = {seed: tmp_path / f"seed-{seed}" for seed in (1, 2)}
    for seed, place in places.items():
        fit(sft(task=TASK, size="tiny", steps=2, rows=4, row=128, seed=seed), RunDir(place / TEACHER), quiet=True)
        write_json(
            value_file(place, "experts-information"), measure_mutual_information(place, seed=seed, count=2, shuffles=19)
        )
    taken = ablate_experts(places[1], seed=1, count=1)  # a minute of replies, and no other for another seed
    for place in places.values():
        write_json(value_file(place, "experts-ablation"), taken)
    experiment = ExpertsExperiment()
    finding = experiment.conclude(places)
    assert finding == experiment.conclude(places)
    assert "bits" in page_text(finding) and len(finding.tables) == 4 and finding.verdict == "open"
    names = [job.name for job in experiment.jobs(100, places[1], 1.0)]
    assert names == ["teacher-base", "teacher", "experts-information", "experts-ablation"]


def test_without_ablation_nothing_is_lost() -> None:
    net, chat = model(), chat_format(Tokenizer.byte_level())
    problems = pick_of_each_family("dev", 0, 1)
    samples = solution_samples(problems, chat)
    none = without_experts(net, [[]])
    assert mean_losses(none, samples) == mean_losses(net, samples)
    assert grade_greedy_answers(none, chat, problems[:4], 0, 1) == grade_greedy_answers(net, chat, problems[:4], 0, 1)


def test_damage_is_what_a_problem_loses_without_a_set_of_experts() -> None:
    ablation = {
        "families": ["x", "y"],
        "family": ["x", "y", "x"],
        "gone": {"x": [], "y": [], "equal load to x": [], "equal load to y": [], "random 1": [], "random 2": []},
        "load": {"x": [0.5, 0.4], "y": [0.3, 0.3]},
        "right": {
            "none": [1, 1, 1], "x": [0, 1, 0], "y": [1, 0, 0], "random 1": [0, 0, 1], "random 2": [1, 0, 1],
            "equal load to x": [0, 0, 1], "equal load to y": [0, 1, 1],
        },
    }  # fmt: skip
    found = accuracy_losses(ablation)
    assert found["its own"] == {"all": {0: 1, 2: 1, 1: 1}, "x": {0: 1, 2: 1}, "y": {1: 1}}
    assert found["another family's"] == {"all": {0: 0, 2: 1, 1: 0}, "x": {0: 0, 2: 1}, "y": {1: 0}}
    assert found["random"]["all"] == {0: 0.5, 2: 0, 1: 1}
    assert found["equal load"] == {"all": {0: 1, 2: 0, 1: 0}, "x": {0: 1, 2: 0}, "y": {1: 0}}
    assert removed_loads(ablation) == {
        "its own": {"all": {"x": 0.5, "y": 0.3}},
        "equal load": {"all": {"x": 0.4, "y": 0.3}},
    }


def test_the_control_of_equal_load_processes_as_many_tokens_of_the_family() -> None:
    shares = np.array([0.3, 0.25, 0.2, 0.1, 0.08, 0.04, 0.02, 0.01])
    assert sum(shares[experts_of_equal_load(shares, [0, 4])]) == pytest.approx(0.38)
    chosen = experts_of_equal_load(shares, [0, 1])
    assert not {0, 1} & set(chosen) and len(chosen) in (2, 3, 4)
    assert sum(shares[chosen]) == pytest.approx(0.42), "the most that four others process"
    assert experts_of_equal_load(np.full(8, 0.125), [3, 5]) == [0, 1]


def test_own_experts_of_another_load_give_no_verdict(tmp_path: Path) -> None:
    """A family whose own experts process more of its tokens than any others would lose more for that reason alone."""
    names = ("x", "y", "random 1", "equal load to x", "equal load to y")
    for load in (0.47, 0.38):
        places = {seed: tmp_path / f"{load}-{seed}" for seed in range(5)}
        for seed, place in places.items():
            bits = [{"bits": 0.5 + seed / 100, "chance": 0.01}] * 2
            write_json(value_file(place, "experts-information"), {"any": bits, "token": bits})
            kept = dict.fromkeys(names, 16) | {"x": 1 + seed % 2}
            ablation = {
                "families": ["x", "y"], "family": ["x"] * 20 + ["y"] * 20, "load": {"x": [0.5, load], "y": [0.5, load]},
                "gone": dict.fromkeys(names), "right": {name: ([1] * k + [0] * (20 - k)) * 2 for name, k in kept.items()},
            }  # fmt: skip
            ablation["right"]["none"] = [1] * 40
            write_json(value_file(place, "experts-ablation"), ablation)
        finding = ExpertsExperiment().conclude(places)
        assert ("at equal loads is higher without a family's own experts than without others." in finding.headline) == (
            load == 0.47
        )
        assert any("the loads are 1.32 to 1.32" in words for words in finding.words) == (load == 0.38)
