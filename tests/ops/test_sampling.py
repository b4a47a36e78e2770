"""Drawing: random numbers that depend on the sample alone, frequencies that are the stated distribution."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import settings as run_with
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessor,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from rorqual.engine.request import SamplingParams
from rorqual.engine.seeds import sample_key, uniform
from rorqual.ops.sampling import SamplingMetadata, SamplingSettings, distribution, sample, top_k_logprobs


def settings(
    n: int, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0, min_p_first: bool = False
) -> SamplingSettings:
    params = SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, min_p_first=min_p_first)
    return SamplingSettings.of([params] * n, "cpu")


def draw(logits: Tensor, settings: SamplingSettings, u: npt.NDArray[np.float64]) -> tuple[Tensor, Tensor]:
    drawn = sample(logits.clone(), SamplingMetadata(settings, u))
    assert torch.equal(drawn.distribution, distribution(logits, settings))
    return drawn.ids, drawn.logprobs


def random_logits(rows: int, vocab: int, seed: int, spread: float = 2.0) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * spread


def reference(
    logits: Tensor, temperature: float, top_p: float, top_k: int, min_p: float = 0.0, min_p_first: bool = False
) -> Tensor:
    """The distribution of one row [vocab], in plain Python."""
    p = [float(x) for x in (logits.double() / temperature).softmax(-1)]
    order = sorted(range(len(p)), key=lambda i: (-p[i], i))
    if min_p_first:
        order = [i for i in order if p[i] >= min_p * p[order[0]]]
    if top_k:
        order = order[:top_k]
    mass = sum(p[i] for i in order)
    kept, reached = [], 0.0
    for i in order:
        kept.append(i)
        reached += p[i] / mass
        if reached >= top_p:
            break
    kept = [i for i in kept if p[i] >= min_p * p[kept[0]]]
    total = sum(p[i] for i in kept)
    return torch.tensor([p[i] / total if i in kept else 0.0 for i in range(len(p))], dtype=torch.float64)


@pytest.mark.parametrize("spread", [0.02, 2.0])  # a cut beyond the candidates, and among them
@pytest.mark.parametrize(
    ("top_p", "top_k", "min_p"),
    [
        (0.9, 0, 0.0), (1.0, 700, 0.0), (0.5, 40, 0.0), (0.8, 1000, 0.0), (1.0, 0, 0.2), (0.9, 3000, 0.99), (0.7, 0, 0.05),
        (0.05, 0, 0.02),
    ],
)  # fmt: skip
@pytest.mark.parametrize("first", [False, True])
def test_a_cut_of_a_large_vocabulary_is_the_stated_one(
    spread: float, top_p: float, top_k: int, min_p: float, first: bool
) -> None:
    logits = random_logits(2, 2048, 1, spread)
    got = distribution(logits, settings(2, 1.0, top_p, top_k, min_p, first)).exp().double()
    for row in range(2):
        expected = reference(logits[row], 1.0, top_p, top_k, min_p, first)
        assert torch.equal(got[row] > 0, expected > 0)
        assert torch.allclose(got[row], expected, atol=1e-6)


@pytest.mark.parametrize(("top_p", "top_k"), [(0.3011, 0), (1.0, 37), (0.8013, 500), (0.7013, 600)])
def test_of_equally_likely_tokens_the_lowest_ids_stay(top_p: float, top_k: int) -> None:
    logits = torch.randint(0, 3, (3, 2000), generator=torch.Generator().manual_seed(4)).float()
    got = distribution(logits, settings(3, 1.0, top_p, top_k)).exp().double()
    for row in range(3):
        assert torch.equal(got[row] > 0, reference(logits[row], 1.0, top_p, top_k) > 0)


@run_with(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    temperature=st.sampled_from([0.5, 1.0, 1.7]),
    top_k=st.sampled_from([0, 2, 30]),
    top_p=st.sampled_from([1.0, 0.9, 0.4]),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
    first=st.booleans(),
)
def test_cuts_are_those_of_transformers(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float, first: bool
) -> None:
    """In its order, and with `min_p_first` in vLLM's: temperature, min-p, top-k, top-p (vllm/v1/sample/sampler.py)."""
    logits = random_logits(3, 120, seed)
    likely: list[LogitsProcessor] = [MinPLogitsWarper(min_p)] if min_p else []
    chain: list[LogitsProcessor] = [TemperatureLogitsWarper(temperature), *(likely if first else ())]
    chain += [TopKLogitsWarper(top_k)] if top_k else []
    chain += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    chain += [] if first else likely
    expected = logits
    for step in chain:
        expected = step(torch.zeros(3, 1, dtype=torch.long), expected)
    got = distribution(logits, settings(3, temperature, top_p, top_k, min_p, first))
    assert torch.allclose(got.exp(), expected.softmax(-1), atol=1e-6)


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"), [(1.0, 1.0, 0), (0.6, 1.0, 0), (1.0, 0.8, 0), (1.3, 0.9, 6)]
)
def test_frequencies_are_the_distribution(temperature: float, top_p: float, top_k: int) -> None:
    n = 40_000
    logits = torch.randn(1, 24, generator=torch.Generator().manual_seed(3)) * 1.5
    keys = np.array([sample_key(11, sample) for sample in range(n)], np.uint64)
    tokens, _ = draw(logits.expand(n, -1), settings(n, temperature, top_p, top_k), uniform(keys, np.full(n, 17)))
    expected = reference(logits[0], temperature, top_p, top_k).numpy() * n
    seen = np.bincount(tokens.numpy(), minlength=24)
    assert (seen[expected == 0] == 0).all()
    some = expected > 5
    chi2 = float(((seen[some] - expected[some]) ** 2 / expected[some]).sum())
    freedom = int(some.sum()) - 1
    assert chi2 < freedom + 5 * np.sqrt(2 * freedom)


def test_random_numbers_are_uniform_and_independent() -> None:
    samples, positions = 300, 300
    keys = np.array([sample_key(5, s) for s in range(samples)], np.uint64)
    u = np.stack([uniform(keys, np.full(samples, p)) for p in range(positions)])  # [position, sample]
    assert u.min() >= 0
    assert u.max() < 1
    counts = np.histogram(u, bins=50, range=(0, 1))[0]
    expected = u.size / 50
    assert ((counts - expected) ** 2 / expected).sum() < 49 + 5 * np.sqrt(2 * 49)
    centred = (u - 0.5) * np.sqrt(12)
    bound = 5 / np.sqrt(u.size)
    assert abs((centred[1:] * centred[:-1]).mean()) < bound  # next position
    assert abs((centred[:, 1:] * centred[:, :-1]).mean()) < bound  # next sample
    other = np.stack(
        [
            uniform(np.array([sample_key(6, s) for s in range(samples)], np.uint64), np.full(samples, p))
            for p in range(positions)
        ]
    )
    assert abs((centred * (other - 0.5) * np.sqrt(12)).mean()) < bound  # next seed


def test_keys_do_not_collide() -> None:
    assert len({sample_key(seed, sample) for seed in range(200) for sample in range(200)}) == 40_000
    assert sample_key(-1, 0) != sample_key(1, 0)


MIXED = [
    SamplingParams(temperature=0.0, top_p=0.1, top_k=2, min_p=0.5),
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.5, top_p=0.5),
    SamplingParams(temperature=1.0, top_k=3),
    SamplingParams(temperature=2.0),
    SamplingParams(temperature=0.9, min_p=0.1),
    SamplingParams(temperature=1.3, top_p=0.97, top_k=200, min_p=0.01),
]


@run_with(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.sampled_from(range(len(MIXED))), min_size=1, unique=True),
    vocab=st.sampled_from([24, 263, 2049]),
    seed=st.integers(0, 9),
)
def test_a_row_does_not_depend_on_its_neighbours(rows: list[int], vocab: int, seed: int) -> None:
    """Any rows, in any order: the same bits as among all."""
    logits, u = random_logits(len(MIXED), vocab, seed), np.random.default_rng(seed).random(len(MIXED))
    everyone = SamplingSettings.of(MIXED, "cpu")
    tokens, logprobs = draw(logits, everyone, u)
    some = SamplingSettings.of([MIXED[row] for row in rows], "cpu")
    assert torch.equal(distribution(logits[rows], some), distribution(logits, everyone)[rows])
    token, logprob = draw(logits[rows], some, u[rows])
    assert torch.equal(token, tokens[rows])
    assert torch.equal(logprob, logprobs[rows])


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-7, 1e30, 1e300])
def test_no_temperature_leaves_a_number_that_is_none(temperature: float) -> None:
    logits = random_logits(2, 50, 8)
    tokens, logprobs = draw(logits, settings(2, temperature, 0.9), np.full(2, 0.5))
    assert torch.isfinite(logprobs).all()
    if temperature < 1:
        assert torch.equal(tokens, logits.argmax(-1))
    else:
        assert torch.allclose(distribution(logits, settings(2, temperature)).exp(), torch.tensor(1 / 50))


def test_tokens_that_a_grammar_forbids_are_never_drawn() -> None:
    logits = torch.full((2, 1500), float("-inf"))
    logits[:, [3, 700, 1499]] = torch.tensor([0.0, 1.0, 0.5])
    for cut in ({"top_k": 50}, {"top_p": 0.99}, {"min_p": 0.01}, {}):
        every = distribution(logits, settings(2, **cut))  # type: ignore[arg-type]
        assert every.isfinite().nonzero()[:, 1].tolist() == [3, 700, 1499] * 2


@run_with(deadline=None, max_examples=80)
@given(
    values=st.lists(st.sampled_from([0.0, -1.0, -2.5, float("-inf")]), min_size=1, max_size=40),
    k=st.integers(1, 40),
)
def test_the_likeliest_come_in_order_and_the_lowest_id_first_among_equals(values: list[float], k: int) -> None:
    k = min(k, len(values))
    ids, logprobs = top_k_logprobs(torch.tensor([values, values[::-1]]), k)
    for row, given_values in enumerate((values, values[::-1])):
        expected = sorted(range(len(values)), key=lambda i: (-given_values[i], i))[:k]
        assert ids[row].tolist() == expected
        assert logprobs[row].tolist() == [given_values[i] for i in expected]


@pytest.mark.parametrize("u", [0.0, 1 - 2.0**-53])
def test_the_ends_of_the_interval_never_draw_a_token_cut_off(u: float) -> None:
    logits = torch.tensor([[-1e9, 0.0, 1.0, 0.5, -1e9], [3.0, -1e9, -1e9, -1e9, -1e9]])
    tokens, logprobs = draw(logits, settings(2, 1.0, 0.9, 2), np.full(2, u))
    assert torch.isfinite(logprobs).all()
    assert tokens[0].item() in (2, 3)
    assert tokens[1].item() == 0


def test_a_row_that_may_not_draw_everything_draws_of_what_it_may() -> None:
    """Logits are wider than the vocabulary; of what may be drawn the shares stay, and other rows do not change."""
    logits, settings_ = random_logits(3, 20, 0), settings(3)
    expected = distribution(logits, settings_)
    allowed = np.zeros((1, 16), np.bool_)
    allowed[0, [2, 9, 15]] = True
    masked = logits[1].clone()
    masked[[i for i in range(16) if i not in (2, 9, 15)]] = -torch.inf
    found = sample(logits, SamplingMetadata(settings_, np.full(3, 0.5), allowed=(np.array([1]), allowed)))
    assert torch.equal(found.distribution[[0, 2]], expected[[0, 2]])
    assert torch.equal(found.distribution[1], masked.log_softmax(-1))
    assert torch.equal(found.logprobs, found.distribution.gather(1, found.ids.unsqueeze(1)).squeeze(1))
