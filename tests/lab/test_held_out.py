"""Losses and exactness of held-out samples against a slow recomputation, token by token."""

from __future__ import annotations

import pytest
import torch

from rorqual.data.chat import chat_format
from rorqual.data.pack import TrainingSample
from rorqual.data.tokenizer import Tokenizer
from rorqual.lab.held_out import first_problems, mean_losses, run_on_sample_blocks, solution_samples
from rorqual.lab.long_scores import score_solutions
from rorqual.lab.shapes import ARMS, MOE, MTP, OPTIONS, TASK
from rorqual.model.decoder import Decoder
from rorqual.model.init import build
from rorqual.tasks.task import split_of

CHAT = chat_format(Tokenizer.byte_level())


@torch.no_grad()
def slow(model: Decoder, sample: TrainingSample) -> tuple[float, bool]:
    """The mean loss of a sample, and whether each token in its mask is the most likely one."""
    losses, right = [], True
    for at in [at for at in range(1, len(sample)) if sample.mask[at]]:
        logits = model.logits(model(torch.tensor([list(sample.ids[:at])])).hidden[0, -1]).double()
        losses.append(float(torch.logsumexp(logits, 0) - logits[sample.ids[at]]))
        right &= int(logits.argmax()) == sample.ids[at]
    return sum(losses) / len(losses), right


def test_losses_and_exactness_are_a_slow_recomputation() -> None:
    model = build(ARMS[MOE].model(), seed=1)
    problems = first_problems(TASK, OPTIONS, "test", 5, 12)
    assert problems == first_problems(TASK, OPTIONS, "test", 5, 12) != first_problems(TASK, OPTIONS, "test", 6, 12)
    assert all(split_of(problem.key) == "test" for problem in problems)
    samples = sorted(solution_samples(problems, CHAT), key=len)[:4]
    expected = [slow(model, sample)[0] for sample in samples]
    assert mean_losses(model, samples) == pytest.approx(expected, abs=1e-5)
    assert [
        x for block in run_on_sample_blocks(model, samples[::-1], rows=3) for x in block.mean_losses()
    ] == pytest.approx(expected[::-1], abs=1e-5)
    ids = list(samples[0].ids[:8])
    for _ in range(3):  # a solution of the model's own most likely tokens is exact
        ids.append(int(model.logits(model(torch.tensor([ids])).hidden)[0, -1].argmax()))
    own = TrainingSample(ids, [False] * 8 + [True] * 3)
    for wrong in (8, 9, 10):
        other = TrainingSample([*ids[:wrong], (ids[wrong] + 1) % 263, *ids[wrong + 1 :]], own.mask)
        found = score_solutions(model, [own, other, samples[0]], record=())
        assert found["right"] == [True, False, slow(model, samples[0])[1]] and found["picked"] == 0
        assert found["loss"] == pytest.approx([slow(model, one)[0] for one in (own, other, samples[0])], abs=1e-5)


def test_mtp_is_dropped_for_the_loss() -> None:
    samples = solution_samples(first_problems(TASK, OPTIONS, "dev", 5, 4), CHAT)
    model = build(ARMS[MTP].model(), seed=1)
    before = mean_losses(model, samples)
    with torch.no_grad():
        for parameter in model.mtp.parameters():
            parameter.mul_(3)
    assert mean_losses(model, samples) == before
