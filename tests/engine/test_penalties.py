"""Penalties and biases: the stated arithmetic, histories that survive moves and preemption, rows that do not touch each other."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import given
from hypothesis import settings as run_with
from hypothesis import strategies as st
from torch import Tensor

from rorqual.engine.penalties import TokenCounts
from rorqual.engine.request import SamplingParams
from rorqual.ops.sampling import SamplingSettings, needs_history

VOCAB = 40


def random_logits(rows: int, seed: int) -> Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 2


def ints(*values: int) -> npt.NDArray[np.int64]:
    return np.array(values, np.int64)


def oracle(logits: Tensor, params: SamplingParams, prompt: list[int], reply: list[int]) -> Tensor:
    """One row [vocab], token by token."""
    out, said = logits.double().tolist(), Counter(reply)
    for token in range(VOCAB):
        x = out[token]
        if token in said or token in prompt:
            x = x / params.repetition_penalty if x > 0 else x * params.repetition_penalty
        x -= params.frequency_penalty * said[token] + (params.presence_penalty if said[token] else 0)
        out[token] = x + dict(params.logit_bias).get(token, 0)
    return torch.tensor(out, dtype=torch.float64)


ids = st.lists(st.integers(0, VOCAB - 1), max_size=30)
asked = st.builds(
    SamplingParams,
    repetition_penalty=st.sampled_from([1.0, 1.2, 0.7]),
    presence_penalty=st.sampled_from([0.0, 0.5, -1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.3, -0.2]),
    logit_bias=st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100), max_size=3).map(
        lambda biases: tuple(biases.items())
    ),
)
rows = st.lists(st.tuples(asked, ids.filter(bool), ids), min_size=1, max_size=6)


def adjust(
    logits: Tensor, settings: SamplingSettings, counts: TokenCounts, rows: npt.NDArray[np.int64] | None = None
) -> Tensor:
    """Row i is row `rows[i]` of `counts`; without `rows`, row i."""
    penalties = settings.penalties
    if penalties is None:
        return logits
    asked = penalties.rows if rows is None else rows[penalties.rows]
    return penalties.apply(logits, counts.counts_of_rows(asked) if len(asked) else None)


def counts_of(batch: list[tuple[SamplingParams, list[int], list[int]]]) -> TokenCounts:
    """Each row's history, its reply drawn token by token."""
    counts = TokenCounts()
    for row, (params, prompt, _) in enumerate(batch):
        if needs_history(params):
            counts.add_sequence(row, prompt)
    for step in range(max(len(reply) for _, _, reply in batch)):
        drawing = [row for row, (_, _, reply) in enumerate(batch) if step < len(reply)]
        counts.add_tokens(ints(*drawing), ints(*(batch[row][2][step] for row in drawing)))
    return counts


@run_with(deadline=None, max_examples=80)
@given(batch=rows, seed=st.integers(0, 99))
def test_each_row_is_the_stated_arithmetic(batch: list[tuple[SamplingParams, list[int], list[int]]], seed: int) -> None:
    logits = random_logits(len(batch), seed)
    before = logits.clone()
    got = adjust(logits, SamplingSettings.of([params for params, *_ in batch], "cpu"), counts_of(batch))
    for row, (params, prompt, reply) in enumerate(batch):
        assert torch.allclose(got[row].double(), oracle(logits[row], params, prompt, reply), atol=1e-4)
    assert torch.equal(logits, before)


@run_with(deadline=None, max_examples=80)
@given(batch=rows, seed=st.integers(0, 99), data=st.data())
def test_a_row_does_not_depend_on_its_neighbours(
    batch: list[tuple[SamplingParams, list[int], list[int]]], seed: int, data: st.DataObject
) -> None:
    """Any rows, in any order, by numbers of their own: the same bits."""
    chosen = data.draw(st.lists(st.sampled_from(range(len(batch))), min_size=1, unique=True))
    logits, counts = random_logits(len(batch), seed), counts_of(batch)
    everyone = adjust(logits, SamplingSettings.of([params for params, *_ in batch], "cpu"), counts)
    some = SamplingSettings.of([batch[row][0] for row in chosen], "cpu")
    assert torch.equal(adjust(logits[chosen], some, counts, ints(*chosen)), everyone[chosen])


def test_a_history_survives_departures_and_preemption() -> None:
    """Against a history of its own for each row, over a thousand random events; rows without penalties have none."""
    rng, counts = np.random.default_rng(0), TokenCounts()
    live: dict[int, tuple[list[int], list[int]]] = {}
    for _ in range(1000):
        event, row = rng.choice(["enter", "draw", "draw", "preempt", "leave"]), int(rng.integers(5))
        if event == "enter":
            live[row] = rng.integers(0, VOCAB, rng.integers(1, 9)).tolist(), []
            counts.add_sequence(row, live[row][0])
        elif event == "draw":
            tokens = rng.integers(0, VOCAB, 5)
            counts.add_tokens(np.arange(5), tokens)
            for known, (_, reply) in live.items():
                reply.append(int(tokens[known]))
        else:
            counts.drop(row)
            if event == "leave":
                live.pop(row, None)
            elif row in live:
                counts.add_sequence(row, *live[row])
        if live:
            ids, times = counts.counts_of_rows(ints(*live))
            for place, (prompt, reply) in enumerate(live.values()):
                expected = {token: Counter(reply)[token] for token in {*prompt, *reply}}
                assert dict(zip(ids[place].tolist(), times[place].tolist())) == expected
