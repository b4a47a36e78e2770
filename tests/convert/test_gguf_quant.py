"""GGUF's number formats equal those of the `gguf` package, bit for bit, whatever the bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rorqual.convert.gguf_quant import FORMATS, WRITTEN, decode, encode, read_format, written_format
from rorqual.core.errors import CheckpointError

COLUMNS = 512
QUANTISED = [name for name, format_ in FORMATS.items() if format_.dtype is None]
SEEDS = st.integers(0, 2**32 - 1)


def same_bits(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> bool:
    return np.array_equal(ours.view(np.uint32), theirs.reshape(ours.shape).view(np.uint32))


@pytest.mark.parametrize("name", QUANTISED)
@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_random_blocks_mean_what_the_gguf_package_says(name: str, seed: int) -> None:
    # Random bytes: every quant, every scale, the infinities and NaNs of half precision among them.
    raw = np.random.default_rng(seed).integers(0, 256, (24, FORMATS[name].row_bytes(COLUMNS)), dtype=np.uint8)
    with np.errstate(invalid="ignore"):
        theirs = quants.dequantize(raw, GGMLQuantizationType[name])
    assert same_bits(decode(raw, FORMATS[name]).numpy(), theirs)


@pytest.mark.parametrize("name", FORMATS)
def test_a_slice_of_rows_is_that_slice_of_the_whole(name: str) -> None:
    raw = np.random.default_rng(0).integers(0, 60, (16, FORMATS[name].row_bytes(COLUMNS)), dtype=np.uint8)
    whole = decode(raw, FORMATS[name])
    assert whole.shape == (16, COLUMNS)
    assert torch.equal(torch.cat([decode(raw[row : row + 3], FORMATS[name]) for row in range(0, 16, 3)]), whole)


@pytest.mark.parametrize("name", WRITTEN)
@given(seed=SEEDS, scale=st.sampled_from([1e-12, 1e-3, 1.0, 300.0]))
@settings(max_examples=10, deadline=None)
def test_what_is_written_has_the_bytes_of_the_gguf_package(name: str, seed: int, scale: float) -> None:
    values = np.random.default_rng(seed).standard_normal((8, COLUMNS)).astype(np.float32) * np.float32(scale)
    values[1] = 0  # a scale of zero
    values[2] = np.round(values[2] * 2) / 2  # many ties
    values[3, ::2] *= -1
    theirs = quants.quantize(values, GGMLQuantizationType[name]).view(np.uint8)
    assert np.array_equal(encode(torch.from_numpy(values), FORMATS[name]), theirs)


@pytest.mark.parametrize(("name", "steps"), [("Q8_0", 127), ("Q4_0", 8)])
def test_quantising_errs_by_no_more_than_a_step_allows(name: str, steps: int) -> None:
    values = torch.randn(64, COLUMNS, generator=torch.Generator().manual_seed(0))
    back = decode(encode(values, FORMATS[name]), FORMATS[name])
    step = values.unflatten(1, (-1, 32)).abs().amax(-1, keepdim=True) / steps
    error = (values - back).unflatten(1, (-1, 32)).abs() / step
    # Q4_0 reaches from -8 to 7: on the far side of the extreme it clips, by a whole step at most.
    assert float(error.max()) < (0.55 if name == "Q8_0" else 1.01)


def test_types_that_are_not_known_are_named() -> None:
    with pytest.raises(
        CheckpointError, match=r"(?s)'w' has type IQ2_XXS.*F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K, Q6_K"
    ):
        read_format(int(GGMLQuantizationType.IQ2_XXS), "w", "a.gguf")
    with pytest.raises(CheckpointError, match="type 999"):
        read_format(999, "w", "a.gguf")
    with pytest.raises(CheckpointError, match=r"does not support 'q4_k'"):
        written_format("q4_k")
    assert written_format("bfloat16") == written_format("BF16") == FORMATS["BF16"]
