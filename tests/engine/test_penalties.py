"""Penalties and biases: the stated arithmetic, histories that survive moves and preemption, rows that do not touch each other."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import settings as run_with
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from rorqual.engine.penalties import Counts
from rorqual.engine.request import SamplingParams
from rorqual.ops.sampling import SamplingMetadata, Settings, distribution, needs_history, sample

VOCAB = 40
PENALTY = SamplingParams(repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.25)


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


def adjust(logits: Tensor, settings: Settings, counts: Counts, rows: npt.NDArray[np.int64] | None = None) -> Tensor:
    """Row i is row `rows[i]` of `counts`; without `rows`, row i."""
    penalties = settings.penalties
    if penalties is None:
        return logits
    asked = penalties.rows if rows is None else rows[penalties.rows]
    return penalties.apply(logits, counts.of(asked) if len(asked) else None)


def counts_of(batch: list[tuple[SamplingParams, list[int], list[int]]]) -> Counts:
    """Each row's history, its reply drawn token by token."""
    counts = Counts(len(batch), VOCAB)
    for row, (params, prompt, _) in enumerate(batch):
        if needs_history(params):
            counts.add(row, prompt)
    for step in range(max(len(reply) for _, _, reply in batch)):
        drawing = [row for row, (_, _, reply) in enumerate(batch) if step < len(reply)]
        counts.tally(ints(*drawing), ints(*(batch[row][2][step] for row in drawing)))
    return counts


@run_with(deadline=None, max_examples=80)
@given(batch=rows, seed=st.integers(0, 99))
def test_each_row_is_the_stated_arithmetic(batch: list[tuple[SamplingParams, list[int], list[int]]], seed: int) -> None:
    logits = random_logits(len(batch), seed)
    before = logits.clone()
    got = adjust(logits, Settings.of([params for params, *_ in batch], "cpu"), counts_of(batch))
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
    everyone = adjust(logits, Settings.of([params for params, *_ in batch], "cpu"), counts)
    some = Settings.of([batch[row][0] for row in chosen], "cpu")
    assert torch.equal(adjust(logits[chosen], some, counts, ints(*chosen)), everyone[chosen])


def test_what_is_said_again_counts_again_and_the_prompt_does_not() -> None:
    params = SamplingParams(presence_penalty=0.5, frequency_penalty=0.25)
    logits = torch.zeros(1, VOCAB)
    got = adjust(logits, Settings.of([params], "cpu"), counts_of([(params, [7, 8], [8, 9, 9, 9])]))[0]
    assert got[[6, 7, 8, 9]].tolist() == [0, 0, -0.75, -1.25]


@pytest.mark.parametrize("penalty", [0.6, 1.0, 1.7])
def test_repetition_is_that_of_transformers(penalty: float) -> None:
    logits, prompt, reply = random_logits(1, 3), [1, 2, 2, 9], [5, 1, 30]
    params = SamplingParams(repetition_penalty=penalty)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([prompt + reply]), logits)
    got = adjust(logits, Settings.of([params], "cpu"), counts_of([(params, prompt, reply)]))
    assert torch.equal(got, expected)


def test_a_history_survives_moves_departures_and_preemption() -> None:
    """Against a history of its own for each sequence, over a thousand random events."""
    rng, limit = np.random.default_rng(0), 5
    counts = Counts(limit, VOCAB)
    batch: list[tuple[bool, list[int], list[int]]] = []
    seen = Counter[str]()
    for _ in range(1000):
        event = rng.choice(["enter", "draw", "draw", "draw", "leave", "preempt"])
        seen[event] += 1
        if event == "enter" and len(batch) < limit:
            one = (bool(rng.random() < 0.7), rng.integers(0, VOCAB, rng.integers(1, 9)).tolist(), [])
            if one[0]:
                counts.add(len(batch), one[1])
            batch.append(one)
        elif event == "draw" and batch:
            tokens = rng.integers(0, VOCAB, len(batch))
            counts.tally(np.arange(len(batch)), tokens)
            for (_, _, reply), token in zip(batch, tokens.tolist()):
                reply.append(token)
        elif event in ("leave", "preempt") and batch:
            row, last = int(rng.integers(len(batch))), len(batch) - 1
            gone = batch[row]
            if row == last:
                counts.drop(row)
            else:
                counts.move(row, last)
                batch[row] = batch[last]
            batch.pop()
            if event == "preempt":
                if gone[0]:
                    counts.add(len(batch), gone[1], gone[2])
                batch.append(gone)
        known = [row for row, (penalised, *_) in enumerate(batch) if penalised]
        if known:
            ids, times = counts.of(ints(*known))
            for place, row in enumerate(known):
                _, prompt, reply = batch[row]
                expected = {token: Counter(reply)[token] for token in {*prompt, *reply}}
                assert dict(zip(ids[place].tolist(), times[place].tolist())) == expected
    assert min(seen.values()) > 100


def test_a_row_that_was_not_added_is_an_error_of_the_caller() -> None:
    with pytest.raises(KeyError, match=r"rows \[1\] have no history"):
        adjust(random_logits(2, 0), Settings.of([SamplingParams(), PENALTY], "cpu"), Counts(2, VOCAB))


def test_at_temperature_0_the_adjusted_logits_decide_and_their_softmax_is_recorded() -> None:
    logits = random_logits(1, 6)
    best = int(logits.argmax())
    params = replace(PENALTY, frequency_penalty=90.0, top_p=0.1)
    counts = counts_of([(params, [0], [best])])
    settings = Settings.of([params], "cpu")
    adjusted = adjust(logits, settings, counts)
    drawn = sample(logits, SamplingMetadata(settings, np.zeros(1), counts.of(ints(0))))
    token, logprob = drawn.ids, drawn.logprobs
    assert token.item() == adjusted.argmax().item() != best
    assert torch.equal(distribution(adjusted, settings), adjusted.log_softmax(-1))
    assert logprob.item() == adjusted.log_softmax(-1).amax().item()


def test_biases_alone_need_no_history() -> None:
    params = SamplingParams(logit_bias=((3, 100.0), (5, -100.0)))
    settings = Settings.of([SamplingParams(), params], "cpu")
    assert not needs_history(params)
    assert settings.penalties is not None
    logits = random_logits(2, 1)
    got = adjust(logits, settings, Counts(0, VOCAB))
    assert torch.equal(got[0], logits[0])
    assert int(got[1].argmax()) == 3
    assert int(got[1].argmin()) == 5
    assert torch.equal(got[1, 6:], logits[1, 6:])
