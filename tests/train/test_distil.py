"""The objective of distillation against its definitions, written slowly a second time, in double precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from little import documents, loud, packed, padded, relative, same_gradient, tiny, update_of
from torch import Tensor

from rorqual.core.errors import ConfigError, NumericsError
from rorqual.data.pack import TrainingSample
from rorqual.engine.score import next_logprobs
from rorqual.model import Decoder
from rorqual.recipes.models import student_like
from rorqual.train.batch import TrainBatch
from rorqual.train.objectives import Distil
from rorqual.train.objectives.distil import Divergence

DIVERGENCES: tuple[Divergence, ...] = ("forward", "reverse", "skewed", "skewed_reverse")


def student() -> Decoder:
    return loud(student_like(tiny()), seed=3)


def teacher() -> Decoder:
    return loud(tiny(), seed=4)


def beside(batch: TrainBatch, of: Decoder, k: int = 0) -> TrainBatch:
    """The batch with a model's distribution: of the whole vocabulary (k = 0), or of its k likeliest tokens."""
    at, shape = batch.loss_mask.nonzero(as_tuple=True), batch.tokens.shape
    logprobs = next_logprobs(of, batch.tokens, batch.positions, batch.segments, batch.loss_mask)
    if not k:
        return replace(batch, teacher_logprobs=torch.zeros(*shape, logprobs.shape[1]).index_put(at, logprobs))
    top = logprobs.topk(k)
    ids = torch.zeros(*shape, k, dtype=torch.long).index_put(at, top.indices)
    return replace(batch, teacher_logprobs=torch.zeros(*shape, k).index_put(at, top.values), teacher_ids=ids)


def softmax(logits: Tensor, temperature: float) -> Tensor:
    e = torch.exp((logits - logits.max().detach()) / temperature)
    return e / e.sum()


def events(p: Tensor, q: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The probabilities that are compared: all, or those of the teacher's k likeliest and of the rest."""
    if not k or k == len(p):
        return p, q
    named = sorted(range(len(p)), key=lambda i: -float(p[i]))[:k]
    rest = [i for i in range(len(p)) if i not in set(named)]
    return torch.cat([p[named], p[rest].sum()[None]]), torch.cat([q[named], q[rest].sum()[None]])


def slow_divergence(kind: str, p: Tensor, q: Tensor, alpha: float) -> Tensor:
    a, b = (p, q) if kind in ("forward", "skewed") else (q, p)
    if kind.startswith("skewed"):
        b = alpha * a + (1 - alpha) * b
    return (a * torch.log(a / b)).sum()


def slow_loss(student: Decoder, teacher: Decoder, samples: Sequence[TrainingSample], o: Distil, k: int) -> Tensor:
    """A document at a time, a position at a time; of the stored distributions at temperature 1 alone."""
    found = []
    for sample in samples:
        ids = torch.tensor([list(sample.ids)])
        ours = student.logits(student(ids).hidden)[0].double()
        with torch.no_grad():
            theirs = teacher.logits(teacher(ids).hidden)[0].double()
        for place in range(1, len(sample)):
            if not sample.mask[place]:
                continue
            p, q = softmax(theirs[place - 1], o.temperature), softmax(ours[place - 1], o.temperature)
            found.append(slow_divergence(o.divergence, *events(p, q, k), o.alpha) * o.temperature**2)
    return sum(found[1:], found[0]) / len(found)


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize(("k", "temperature"), [(0, 1.0), (0, 2.0), (5, 1.0)])
def test_against_a_slow_reference(kind: Divergence, k: int, temperature: float) -> None:
    ours, theirs, samples = student(), teacher(), documents(5, count=3, longest=9)
    objective = Distil(divergence=kind, temperature=temperature, alpha=0.3)
    update = update_of(ours, (objective,), beside(packed(samples), theirs, k), parts=2)
    slow = slow_loss(ours, theirs, samples, objective, k)
    assert float(slow.detach()) > 0.01
    assert update.loss == pytest.approx(float(slow.detach()), rel=1e-5)
    for layout, parts in ((padded, 1), (padded, 4), (packed, 1)):  # however it is laid out
        same_gradient(ours, update, update_of(ours, (objective,), beside(layout(samples), theirs, k), parts=parts))
    expected = torch.autograd.grad(slow, list(ours.parameters()))
    for grad, wanted in zip(update.grads, expected, strict=True):
        assert float(wanted.abs().max()) > 0 and relative(wanted, grad) <= 1e-4


def test_a_tail_that_fp32_cannot_tell_from_nothing_is_finite() -> None:
    ours, batch = student(), beside(packed(documents(10)), teacher(), 3)
    assert batch.teacher_logprobs is not None
    sure = batch.teacher_logprobs.log_softmax(-1)  # three tokens that have all of the mass, by rounding more
    for kind in DIVERGENCES:
        update = update_of(ours, (Distil(divergence=kind),), replace(batch, teacher_logprobs=sure))
        assert all(bool(grad.isfinite().all()) for grad in update.grads)


def test_what_it_cannot_do_is_refused() -> None:
    ours, batch = student(), packed(documents(11))
    alone = beside(batch, teacher())
    assert alone.teacher_logprobs is not None
    with pytest.raises(NumericsError, match="add up to 263 at a trained position"):  # beside a prompt there is none
        late = alone.teacher_logprobs.roll(1, dims=1)
        update_of(ours, (Distil(),), replace(alone, teacher_logprobs=late))
    with pytest.raises(ConfigError, match=r"temperature=2\.0 needs the teacher's whole distribution"):
        update_of(ours, (Distil(temperature=2.0),), beside(batch, teacher(), 5))
