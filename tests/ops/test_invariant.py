"""Each row rounded in one way: alone, among any number of others, at any place; and equal to the reference within rounding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rorqual.ops import moe, norm
from rorqual.ops.invariant import LANES, experts, rms_norm, sigmoid, silu
from rorqual.ops.losses import token_logprobs
from rorqual.ops.moe import Routing
from rorqual.ops.prepacked import prepack

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
types = pytest.mark.parametrize("dtype", TYPES)
SUBSETS = (1, 2, 3, 5, 17, 40)


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@types
@pytest.mark.parametrize("width", [8, 24, 48, 64, 100, 1536])
@pytest.mark.parametrize(("function", "theirs"), [(silu, F.silu), (sigmoid, torch.sigmoid)])
def test_a_rows_bits_do_not_depend_on_its_place(
    function: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], width: int, dtype: str
) -> None:
    x = (3 * some(64, width)).to(TYPES[dtype])
    whole = function(x)
    torch.testing.assert_close(whole, theirs(x))
    for count in SUBSETS:
        rows = torch.randperm(64, generator=torch.Generator().manual_seed(count))[:count]
        assert torch.equal(function(x[rows]), whole[rows])


@pytest.mark.parametrize("threads", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("function", [silu, sigmoid])
def test_however_many_threads_share_it(function: Callable[[Tensor], Tensor], threads: int) -> None:
    """More than two cut a large tensor where its elements would be a rest. Also halves of a joined product, which do not lie in one piece."""
    for width, counts in (
        (256, (4, 128, 132, 260, 268, 400)),
        (1536, (20, 24, 44, 88, 92)),
        (100, (328, 656, 700)),
        (40_000, (4, 8)),
    ):
        x = 3 * some(max(counts), 2 * width)
        for part in (x[:, :width], x[:, :width].contiguous()):
            torch.set_num_threads(1)
            whole = torch.cat([function(row) for row in part.split(4)])
            torch.set_num_threads(threads)
            for count in counts:
                assert torch.equal(function(part[:count]), whole[:count]), (width, count)


@types
@pytest.mark.parametrize("width", [24, 96, 100, 1536])
def test_a_norm_of_a_row_is_its_own(width: int, dtype: str) -> None:
    x, weight = some(4, 16, width).to(TYPES[dtype]), (1 + 0.1 * some(width, seed=1)).to(TYPES[dtype])
    whole = rms_norm(x, weight, 1e-6)
    torch.testing.assert_close(whole, norm.rms_norm(x, weight, 1e-6))
    flat = x.flatten(0, 1)
    for count in SUBSETS:
        rows = torch.randperm(64, generator=torch.Generator().manual_seed(count))[:count]
        assert torch.equal(rms_norm(flat[rows], weight, 1e-6), whole.flatten(0, 1)[rows])


def routing_of(tokens: int, n: int, k: int) -> Routing:
    scores = some(tokens, n, seed=2).sigmoid()
    weights, indices = scores.topk(k, dim=-1)
    return Routing(indices, weights / weights.sum(-1, keepdim=True), scores, indices, torch.zeros(tokens))


def part(routing: Routing, rows: Tensor) -> Routing:
    return Routing(**{name: value[rows] for name, value in vars(routing).items() if name != "skips"})


@types
@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize(("d", "i"), [(96, 48), (64, 20), (256, 256)])
@pytest.mark.parametrize("packed", [False, True], ids=["stacked", "packed"])
def test_a_tokens_experts_are_its_own(packed: bool, d: int, i: int, k: int, dtype: str) -> None:
    """In any company, which decides how many rows each expert has; also beside itself alone. With gradients and without."""
    n, kind = 8, TYPES[dtype]
    x, gate_up, down = some(64, d).to(kind), some(n, 2 * i, d, seed=3).to(kind), some(n, d, i, seed=4).to(kind)
    gate_up, down = gate_up / d**0.5, down / i**0.5
    routing = routing_of(64, n, k)
    with torch.no_grad():
        whole = experts(x, routing, gate_up, down)
        reference = moe.experts(x.float(), routing, gate_up.float(), down.float())
        if packed:
            stacked = whole
            gate_up, down = ([prepack(matrix) for matrix in stack] for stack in (gate_up, down))
            whole = experts(x, routing, gate_up, down)
            assert dtype == "fp32" or torch.equal(whole, stacked), (
                "docs/explanation/engine.md says that in bf16 packing changes no bit"
            )
        torch.testing.assert_close(whole.float(), reference, rtol=0, atol=1e-5 if dtype == "fp32" else 6e-2)
        for count in SUBSETS:
            rows = torch.randperm(64, generator=torch.Generator().manual_seed(count))[:count]
            assert torch.equal(experts(x[rows], part(routing, rows), gate_up, down), whole[rows])
        for token in range(64):
            rows = torch.tensor([token] * (4 + token % 4))
            assert torch.equal(experts(x[rows], part(routing, rows), gate_up, down), whole[rows])
    if not packed:
        assert torch.equal(experts(x.requires_grad_(), routing, gate_up, down), whole)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("vocab", [16, 17, 31, 33, 264, 1000, 50_021])
def test_a_softmax_is_the_same_however_many_tokens_cannot_be_drawn(vocab: int, threads: int) -> None:
    """What lets a trainer go without the columns that the sampler fills up with."""
    torch.set_num_threads(threads)
    logits = 3 * some(40, vocab)
    filled = F.pad(logits, (0, -vocab % LANES), value=-torch.inf)
    assert torch.equal(filled.log_softmax(-1)[:, :vocab], logits.log_softmax(-1))
    targets = torch.arange(40) % vocab
    for count in (1, 3, 7):
        assert torch.equal(token_logprobs(logits[:count], targets[:count]), token_logprobs(logits, targets)[:count])
