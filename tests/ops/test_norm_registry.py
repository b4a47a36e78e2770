"""Root-mean-square norm by its formula, and backends by name."""

from __future__ import annotations

import math

import pytest
import torch

from rorqual.core.errors import ConfigError
from rorqual.ops.backends import REFERENCE, TORCH, backend


@pytest.mark.parametrize("name", ["reference", "torch", "torch-invariant"])
def test_rms_norm_by_hand(name: str) -> None:
    out = backend(name).rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]), 0.5)
    root = math.sqrt((9 + 16) / 2 + 0.5)
    torch.testing.assert_close(out, torch.tensor([[3 / root, 8 / root]]))


def test_a_backend_by_name() -> None:
    assert type(backend("reference")) is type(REFERENCE) and type(backend("torch")) is type(TORCH)
    with pytest.raises(ConfigError, match="Did you mean 'torch'"):
        backend("troch")
