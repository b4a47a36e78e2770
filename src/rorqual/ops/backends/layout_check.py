"""Check that all methods of a user's `PagedAttention` subclass use the same block layout.

Methods with different layouts would give wrong attention outputs without an error.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rorqual.ops.backends.attention import PAD, AttentionMetadata, PagedAttention
from rorqual.ops.paged import BLOCK

BLOCKS, HEADS, WIDTH, EVERY = 12, 2, 16, 4
NEAR = 1e-3


def find_layout_error(attention: PagedAttention) -> str | None:
    """Compare `attention` with `PagedAttention` on a small fp32 cache. Return a description of the first difference between
    their results, or None if the results are equal."""
    try:
        with torch.inference_mode(False), torch.no_grad():
            actual, expected = _method_results(attention), _method_results(PagedAttention(attention.rows))
        for name, tensor in expected.items():
            if actual[name].shape != tensor.shape or not torch.allclose(
                actual[name].float(), tensor.float(), atol=NEAR
            ):
                return f"the result of {name} differs from PagedAttention's"
        blocks = _random(1, BLOCKS, HEADS, BLOCK, WIDTH)
        if (
            attention.prepack_blocks(blocks.requires_grad_()).grad_fn is None
            and attention.prepack_blocks(blocks) is not blocks
        ):
            return "`prepack_blocks` passes no gradient"
    except (RuntimeError, ValueError, IndexError, TypeError, ArithmeticError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _method_results(attention: PagedAttention) -> dict[str, Tensor]:
    """Run all methods of `attention` on a small batch. Return the result of each tested method, by method name."""
    pool, entries = (torch.zeros(attention.shape(BLOCKS, HEADS, BLOCK // n, WIDTH)) for n in (1, EVERY))
    blocks = torch.arange(1, BLOCKS)
    attention.fill(pool, blocks, _random(2, BLOCKS - 1, HEADS, BLOCK, WIDTH))
    filled = attention.read(pool, blocks)
    attention.fill(pool, torch.tensor([4, 6]), attention.read(pool, torch.tensor([6, 3])))
    copied = attention.read(pool, blocks)
    lens, counts = np.array([150, 70, 70, 5]), np.array([1, 1, 40, 5])
    table = np.array([[3, 7, 11], [9, 1, 0], [8, 10, 0], [2, 0, 0]])
    at = [(row, p) for row, (n, new) in enumerate(zip(lens, counts)) for p in range(n - new, n)]
    slots = np.array([*(table[row, p // BLOCK] * BLOCK + p % BLOCK for row, p in at), *[PAD] * 5])
    metadata = AttentionMetadata(np.append(0, np.cumsum(counts)), lens, table, slots)
    plan, real = attention.plan(metadata, torch.device("cpu")), len(at)
    attention.write(pool, _random(3, len(slots), HEADS, WIDTH), plan)
    written = attention.read(pool, blocks)
    groups, last = attention.groups(pool, plan, EVERY)
    complete = int((lens // EVERY - (lens - counts) // EVERY).sum())
    attention.write(entries, groups.mean(1), plan)
    q = _random(4, len(slots), HEADS, 3, WIDTH)
    chosen = attention.select(q, q[..., 0], entries, plan, 5).rows
    out, lse = attention.attend_with_lse(q, entries, entries, plan, 0.3, 8, selected=chosen, window=90)
    laid = attention.prepack_blocks(_random(5, BLOCKS, HEADS, BLOCK, WIDTH))
    return {
        "fill or read": filled,
        "copy of blocks (fill or read)": copied,
        "write or plan": written,
        "groups": groups[:complete],
        "last tokens of groups": last[:complete],
        "attend": attention.attend(q, pool, pool, plan, 0.3, 8)[:real],
        "select": chosen[:real],
        "attend_with_lse": out[:real],
        "log-sum-exp": lse[:real],
        "gather": attention.gather(entries, plan, chosen)[:real],
        "prepack_blocks": attention.read(laid, torch.arange(BLOCKS)),
    }
