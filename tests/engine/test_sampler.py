"""Drawing: random numbers that depend on the sample alone, frequencies that are the stated distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as run_with
from hypothesis import strategies as st
from torch import Tensor

from rorqual.engine.sampler import Settings, distribution, draw, sample_key, truncate, uniform


def settings(n: int, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0) -> Settings:
    return Settings.of(
        np.full(n, temperature, np.float32), np.full(n, top_p, np.float32), np.full(n, top_k, np.int64), "cpu"
    )


def reference(logits: Tensor, temperature: float, top_p: float, top_k: int) -> Tensor:
    """The distribution of one row [vocab], in plain Python."""
    p = [float(x) for x in (logits.double() / temperature).softmax(-1)]
    order = sorted(range(len(p)), key=lambda i: (-p[i], i))
    if top_k:
        order = order[:top_k]
    mass = sum(p[i] for i in order)
    kept, reached = [], 0.0
    for i in order:
        kept.append(i)
        reached += p[i] / mass
        if reached >= top_p:
            break
    total = sum(p[i] for i in kept)
    return torch.tensor([p[i] / total if i in kept else 0.0 for i in range(len(p))], dtype=torch.float64)


@run_with(deadline=None)
@given(
    seed=st.integers(0, 2**32),
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.8]),
    top_p=st.sampled_from([1.0, 0.95, 0.6, 0.1]),
    top_k=st.sampled_from([0, 1, 3, 10, 500]),
)
def test_the_distribution_is_the_stated_one(seed: int, temperature: float, top_p: float, top_k: int) -> None:
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(seed)) * 2
    got = distribution(logits, settings(1, temperature, top_p, top_k)).exp()[0].double()
    assert torch.allclose(got, reference(logits[0], temperature, top_p, top_k), atol=1e-6)


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


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    logits = torch.randn(6, 30, generator=torch.Generator().manual_seed(0))
    mixed = Settings.of(
        np.array([0, 1, 0.5, 1, 0, 2], np.float32),
        np.array([1, 1, 0.5, 1, 0.1, 1], np.float32),
        np.array([0, 0, 0, 3, 2, 0], np.int64),
        "cpu",
    )
    u = np.linspace(0.05, 0.95, 6)
    tokens, logprobs = draw(logits, mixed, u)
    for row in range(6):
        alone = Settings.of(*(c[row : row + 1] for c in ROWS), "cpu")
        token, logprob = draw(logits[row : row + 1], alone, u[row : row + 1])
        assert token.item() == tokens[row].item()
        assert logprob.item() == pytest.approx(logprobs[row].item(), abs=1e-6)


ROWS = (
    np.array([0, 1, 0.5, 1, 0, 2], np.float32),
    np.array([1, 1, 0.5, 1, 0.1, 1], np.float32),
    np.array([0, 0, 0, 3, 2, 0], np.int64),
)


def test_greedy_takes_the_likeliest_and_reports_the_plain_softmax() -> None:
    logits = torch.randn(5, 30)
    tokens, logprobs = draw(logits, settings(5, 0.0, 0.3, 2), np.full(5, 0.99))
    assert torch.equal(tokens, logits.argmax(-1))
    assert torch.allclose(logprobs, logits.log_softmax(-1).amax(-1))


@pytest.mark.parametrize("u", [0.0, 1 - 2.0**-53])
def test_the_ends_of_the_interval_never_draw_a_token_cut_off(u: float) -> None:
    logits = torch.tensor([[-1e9, 0.0, 1.0, 0.5, -1e9], [3.0, -1e9, -1e9, -1e9, -1e9]])
    tokens, logprobs = draw(logits, settings(2, 1.0, 0.9, 2), np.full(2, u))
    assert torch.isfinite(logprobs).all()
    assert tokens[0].item() in (2, 3)
    assert tokens[1].item() == 0


def test_truncation_keeps_the_likeliest_of_equals() -> None:
    kept = truncate(torch.zeros(1, 8).log_softmax(-1), torch.tensor([[0.2]]), torch.tensor([[0]]))
    assert torch.isfinite(kept).sum() == 2  # 1/8 is less than 0.2, 2/8 reaches it
