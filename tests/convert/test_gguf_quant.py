"""GGUF's number formats, slice by slice. The `gguf` package computes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quant_shape_to_byte_shape

from rorqual.convert.gguf_quant import PLAIN, READ, WRITTEN, decode, encode, written_type
from rorqual.core.errors import CheckpointError

COLUMNS = 512


@pytest.mark.parametrize("name", READ)
def test_a_slice_of_rows_is_that_slice_of_the_whole(name: str) -> None:
    kind = GGMLQuantizationType[name]
    width = quant_shape_to_byte_shape((16, COLUMNS), kind)[1]
    raw = np.random.default_rng(0).integers(0, 60, (16, width), dtype=np.uint8)
    whole = decode(raw, kind)
    assert whole.shape == (16, COLUMNS) and whole.dtype == PLAIN.get(name, torch.float32)
    assert np.array_equal(whole.float().numpy(), dequantize(raw, kind))
    assert torch.equal(torch.cat([decode(raw[row : row + 3], kind) for row in range(0, 16, 3)]), whole)


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_encoded_errs_by_no_more_than_a_step_allows(name: str) -> None:
    values = torch.randn(64, COLUMNS, generator=torch.Generator().manual_seed(0))
    kind = GGMLQuantizationType[name]
    back = decode(encode(values, kind), kind).float()
    if name in PLAIN:
        assert torch.equal(back, values.to(PLAIN[name]).float())
        return
    step = values.unflatten(1, (-1, 32)).abs().amax(-1, keepdim=True) / (127 if name == "Q8_0" else 8)
    error = (values - back).unflatten(1, (-1, 32)).abs() / step
    # Q4_0 reaches from -8 to 7: on the far side of the extreme it clips, by a whole step at most.
    assert float(error.max()) < (0.55 if name == "Q8_0" else 1.01)


def test_types_are_named_as_in_gguf_or_as_in_torch() -> None:
    assert written_type("bfloat16") == written_type("BF16") == GGMLQuantizationType.BF16
    with pytest.raises(CheckpointError, match=r"does not support 'q4_k'"):
        written_type("q4_k")
