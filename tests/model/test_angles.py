"""Angles that the layers of one forward share: one table for each rope, width and layout."""

from __future__ import annotations

import torch

from rorqual.model.attention.attention import AttentionContext
from rorqual.ops.backends import TORCH
from rorqual.ops.rope import Rope, expand_cos_sin, rope_table


def test_layouts_of_one_rope_do_not_share_their_angles() -> None:
    """A model may rotate interleaved in one stage and half-split in the next, or with another theta or width."""
    positions = torch.arange(5).unsqueeze(0)
    context, rope = AttentionContext(positions, None, TORCH), Rope(theta=100.0)
    cos, sin = rope_table(rope, 8, positions)
    for interleaved in (True, False, True):
        found = context.rope(rope, 8, interleaved=interleaved)
        expected = expand_cos_sin(cos.unsqueeze(2), sin.unsqueeze(2), interleaved=interleaved)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), interleaved
    assert not torch.equal(context.rope(rope, 8, interleaved=True)[0], context.rope(rope, 8, interleaved=False)[0])
    for other, width in ((Rope(theta=50.0), 8), (rope, 12)):
        expected = expand_cos_sin(*(t.unsqueeze(2) for t in rope_table(other, width, positions)), interleaved=True)
        assert torch.equal(context.rope(other, width, interleaved=True)[0], expected[0]), (other, width)
