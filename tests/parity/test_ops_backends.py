"""The fast operations equal the reference: values and gradients, in fp32 and in bf16."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rorqual.ops import grouped
from rorqual.ops.backends import REFERENCE, TORCH
from rorqual.ops.moe import Routing, route

# Relative to each tensor's largest value; bf16 has 8 bits of mantissa and the two sum in another order.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.5e-2}
TYPES = [torch.float32, torch.bfloat16]


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max().clamp_min(1e-12))


def compare(fast: list[Tensor], slow: list[Tensor], dtype: torch.dtype) -> None:
    for one, other in zip(fast, slow, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert relative(one, other) < TOLERANCE[dtype]


def leaf(*shape: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("tokens", [1, 7, 64, 150])
@pytest.mark.parametrize("banned", [0, 3])
def test_experts(dtype: torch.dtype, tokens: int, banned: int) -> None:
    """`banned` experts are never chosen; row counts on both sides of the multiple of 64 that bf16 pads to."""
    n, d, width, k = 6, 24, 16, 2
    results = []
    for experts in (TORCH.experts, grouped.experts, REFERENCE.experts):
        generator = torch.Generator().manual_seed(tokens)
        x = leaf(tokens, d, dtype=dtype, generator=generator)
        router = leaf(n, d, dtype=torch.float32, generator=generator)
        gate_up = leaf(n, 2 * width, d, dtype=dtype, generator=generator)
        down = leaf(n, d, width, dtype=dtype, generator=generator)
        bias = torch.tensor([-10.0] * banned + [0.0] * (n - banned))
        routing = route(x.detach().float() @ router.t(), bias, k=k, scale=2.5)
        out = experts(x, routing, gate_up, down)
        out.backward(torch.randn(out.shape, generator=generator).to(dtype))
        grads = [t.grad for t in (x, router, gate_up, down)]
        results.append([out.detach(), *(g for g in grads if g is not None)])
        assert len(results[-1]) == 5
        used = torch.zeros(n, dtype=torch.bool)
        used[routing.indices.unique()] = True
        assert not used[:banned].any()
        assert torch.equal(results[-1][3].float().abs().amax((1, 2)) > 0, used)
    for found in results[:-1]:
        compare(found, results[-1], dtype)


@pytest.mark.parametrize("frozen", [0, 1])
def test_experts_that_are_frozen_in_part(frozen: int) -> None:
    """One stack of matrices has no gradient, and the other has its own."""
    generator = torch.Generator().manual_seed(1)
    x, weights = torch.randn(9, 6, generator=generator), [torch.randn(4, 10, 6), torch.randn(4, 6, 5)]
    routing = route(torch.randn(9, 4, generator=generator), None, k=2)
    weights[1 - frozen].requires_grad_()
    found, expected = (
        torch.autograd.grad(ops.experts(x, routing, *weights).square().sum(), weights[1 - frozen])[0]
        for ops in (TORCH, REFERENCE)
    )
    assert relative(found, expected) < 1e-5


def test_tuned_experts_have_the_gradient_and_their_stack_has_none() -> None:
    generator = torch.Generator().manual_seed(2)
    x, stacks = torch.randn(9, 6, generator=generator), (torch.randn(4, 10, 6), torch.randn(4, 6, 5))
    routing = route(torch.randn(9, 4, generator=generator), None, k=2)
    found = []
    for ops in (TORCH, REFERENCE):
        gate_up, down = (stack.clone().requires_grad_() for stack in stacks)
        parts = [stack[1].clone().requires_grad_() for stack in stacks]
        ops.experts_tuned(x, routing, gate_up, down, (1,), parts).square().sum().backward()
        found.append([part.grad for part in parts])
        assert all(stack.grad is None or not stack.grad.any() for stack in (gate_up, down))
    assert all(relative(ours, theirs) < 1e-5 and theirs.any() for ours, theirs in zip(*found, strict=True))


def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    x, weight = torch.randn(3, 8, requires_grad=True), torch.ones(8, requires_grad=True)
    routing = route(torch.randn(3, 4), None, k=2)
    stacks = torch.randn(4, 10, 8), torch.randn(4, 8, 5)
    for output in (TORCH.rms_norm(x, weight, 1e-6), TORCH.experts(x, routing, *stacks)):
        for loss in (output.square().sum(), output.sum()):  # the gradient of the output: of the input, or constant
            with pytest.raises(RuntimeError, match="no second derivative: compute it with backend=reference"):
                torch.autograd.grad(loss, x, create_graph=True)


@pytest.mark.parametrize("seed", range(40))
def test_experts_in_blocks_for_any_routing(seed: int) -> None:
    """Even, skewed, and all tokens at one expert; one expert of one, and all experts for each token. On the CPU, an index out of
    range is an error."""
    rng = random.Random(seed)
    n, tokens = rng.randint(1, 9), rng.randint(1, 40)
    k = rng.choice([1, n, rng.randint(1, n)])
    generator = torch.Generator().manual_seed(seed)
    skew = rng.choice([0.0, 3.0, 100.0])
    favour = torch.linspace(skew, 0, n).roll(rng.randrange(n))
    logits = torch.randn(tokens, n, generator=generator) + favour
    routing = route(logits, None, k=k)
    x = torch.randn(tokens, 6, generator=generator)
    weights = torch.randn(n, 10, 6, generator=generator), torch.randn(n, 6, 5, generator=generator)
    found = grouped.experts(x, routing, *weights)
    assert relative(found, REFERENCE.experts(x, routing, *weights)) < 1e-5


def test_experts_of_no_token_at_all() -> None:
    empty = Routing(*(torch.empty(0, 2) for _ in range(5)))
    empty = replace(empty, indices=torch.empty(0, 2, dtype=torch.long))
    weights = torch.randn(4, 6, 8), torch.randn(4, 8, 3)
    for experts in (TORCH.experts, grouped.experts, REFERENCE.experts):
        assert experts(torch.empty(0, 8), empty, *weights).shape == (0, 8)
