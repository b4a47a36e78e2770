"""No layer waits for its device: on `meta`, whose tensors have no values, every attempt to read one is an error."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from test_kinds import STAGES, every_stage, label, model_of

from rorqual.engine.kv_cache.paged import PagedCache, StepCache
from rorqual.model import Stage
from rorqual.ops.backends import TORCH, TORCH_INVARIANT, Backend
from rorqual.ops.backends.attention import AttentionMetadata
from rorqual.ops.moe import SKIP, Routing
from rorqual.ops.paged import BLOCK
from rorqual.train.balance import count_tokens_per_expert
from rorqual.train.gradient import compare_replayed_experts

META = torch.device("meta")
STEPS = TORCH.fit(torch.nn.Linear(1, 1), cache_shapes=[], threads=1).backend


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch knows no autocast for `meta`."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)


def what_was_read(step: Callable[[], object]) -> str:
    """What torch said where a step read a value; "" where it read none."""
    try:
        step()
    except (NotImplementedError, RuntimeError) as error:
        return str(error) or repr(error)
    return ""


@every_stage
@pytest.mark.parametrize(
    ("ops", "dtype"),
    [(STEPS, torch.bfloat16), (STEPS, torch.float16), (STEPS, torch.float32), (TORCH_INVARIANT, torch.bfloat16)],
    ids=lambda value: str(getattr(value, "name", value)),
)
@torch.no_grad()
def test_a_step_of_an_engine_reads_nothing_back(stage: Stage, ops: Backend, dtype: torch.dtype) -> None:
    model = model_of(stage, width=24).to(dtype).to(META)
    model.ops = ops
    cache = PagedCache(ops.attention, model.config, 8, META, dtype, 2 * BLOCK)
    counts, lens = np.array([1, 1, 70, 5]), np.array([70, 3, 70, 100])
    table = np.array([[1, 2], [3, 0], [4, 5], [6, 7]])
    metadata = AttentionMetadata(np.append(0, np.cumsum(counts)), lens, table, np.arange(BLOCK, BLOCK + 77))
    step = StepCache(cache, ops.attention.plan(metadata, META))
    ids = torch.zeros(1, 77, dtype=torch.long, device=META)
    assert what_was_read(lambda: model(ids, ids, cache=step)) == ""


@pytest.mark.parametrize("stage", [one for one in STAGES if not model_of(one).needs_cache], ids=label)
def test_a_step_of_training_reads_nothing_back(stage: Stage) -> None:
    """Kinds that attend by a cache are left out: they read positions once a step, to lay out blocks."""
    model = model_of(stage, width=24).to(torch.bfloat16).to(META)
    model.ops = TORCH
    ids = torch.zeros(2, 33, dtype=torch.long, device=META)
    assert what_was_read(lambda: model.logits(model(ids).hidden).sum().backward()) == ""


def test_experts_under_esft_are_computed_without_reading_a_value() -> None:
    one = torch.zeros(6, 2, dtype=torch.bfloat16, device=META)
    routing = Routing(one.long(), one.float(), torch.zeros(6, 5, device=META), one.long(), one[:, 0], skips=False)
    gate_up, down = (torch.zeros(5, *shape, dtype=torch.bfloat16, device=META) for shape in ((32, 8), (8, 16)))
    parts = [stack[e].clone().requires_grad_() for e in (1, 4) for stack in (gate_up, down)]
    x = torch.zeros(6, 8, dtype=torch.bfloat16, device=META)
    assert what_was_read(lambda: TORCH.experts_tuned(x, routing, gate_up, down, (1, 4), parts).sum().backward()) == ""


def test_load_and_replayed_choices_are_counted_without_reading_a_value() -> None:
    """Training reads the sums of all routers once per micro-batch."""
    one = torch.zeros(6, 2, device=META)
    routing = Routing(one.long(), one, torch.zeros(6, 5, device=META), one.long(), one[:, 0])
    valid = one[:, 0].bool()
    assert what_was_read(lambda: count_tokens_per_expert(routing, valid, 5)) == ""
    assert what_was_read(lambda: compare_replayed_experts([routing, routing], valid)) == ""


def test_a_value_that_is_read_is_an_error() -> None:
    with pytest.raises(NotImplementedError):
        torch.zeros(3, device=META).tolist()
    one = torch.zeros(4, 2, device=META)
    routing = Routing(one.long().fill_(SKIP), one, one, one.long(), one[:, 0], skips=True)
    with pytest.raises((NotImplementedError, RuntimeError)):
        Backend().experts(one, routing, torch.zeros(3, 4, 2, device=META), torch.zeros(3, 2, 2, device=META))
