"""Llama 3.1's rotary scaling out and in again: whatever its numbers, the model that comes back computes the same."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf_models import configs, filled, silent, write_run
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rorqual.convert.gguf import export_gguf, import_gguf
from rorqual.convert.gguf_llama3 import divisors, find_llama3
from rorqual.core.errors import CheckpointError
from rorqual.core.records import RunDir
from rorqual.model import ModelConfig
from rorqual.model.load.run import read_model_config
from rorqual.ops.rope import Llama3, Rope

REPORTED = Llama3(factor=4.0, low_freq_factor=1.0, high_freq_factor=3.0, original_max_position_embeddings=32)
"""Issue 14."""


def model(scaling: Llama3, theta: float = 5e5) -> ModelConfig:
    config = configs()["llama-3.1"]
    (stage,) = config.stages
    attention = stage.attention.model_copy(update={"rope": Rope(theta=theta, llama3=scaling)})
    return config.model_copy(update={"stages": (stage.model_copy(update={"attention": attention}),)})


def there_and_back(folder: Path, config: ModelConfig) -> ModelConfig:
    export_gguf(write_run(folder / "run", filled(config)), folder / "model.gguf", dtype="f32", progress=silent)
    import_gguf(folder / "model.gguf", folder / "back", progress=silent)
    return read_model_config(RunDir(folder / "back"))


@pytest.mark.parametrize(
    "scaling",
    [
        REPORTED,
        REPORTED.model_copy(update={"original_max_position_embeddings": 10**9}),  # it changes no frequency
        REPORTED.model_copy(update={"low_freq_factor": 2.0, "high_freq_factor": 6.0}),
        REPORTED.model_copy(update={"factor": 3.3, "high_freq_factor": 2.5, "original_max_position_embeddings": 40}),
    ],
)
def test_a_run_comes_back_with_its_very_numbers(tmp_path: Path, scaling: Llama3) -> None:
    config = model(scaling)
    assert there_and_back(tmp_path, config) == config


def test_llama_cpps_converter_writes_the_tensor_alone_and_the_tensor_counts(tmp_path: Path) -> None:
    """A file whose keys say another scaling than its tensor is what llama.cpp computes: the tensor's."""
    there_and_back(tmp_path, model(REPORTED, theta=100.0))
    other = REPORTED.model_copy(update={"factor": 8.0, "high_freq_factor": 3.5})
    changed(tmp_path / "model.gguf", divisors(Rope(theta=100.0, llama3=other), 16).tolist())
    import_gguf(tmp_path / "model.gguf", tmp_path / "new", progress=silent)
    assert read_model_config(RunDir(tmp_path / "new")) == model(other, theta=100.0)
    changed(tmp_path / "model.gguf", [1.0] * 8)
    import_gguf(tmp_path / "model.gguf", tmp_path / "none", progress=silent)
    found = read_model_config(RunDir(tmp_path / "none")).stages[0].attention
    assert found.rope == Rope(theta=100.0)  # type: ignore[attr-defined]


numbers = st.integers(1, 40).map(lambda n: n / 4) | st.floats(0.02, 12.0)


@settings(deadline=None, max_examples=150)
@example(4.0, 1.0, 2.0, 32, 4, 5e5)
@example(8.0, 1.0, 3.0, 8192, 128, 5e5)
@example(32.0, 1.0, 0.001, 8192, 64, 1e6)  # no wave between the bounds
@example(0.5, 1.0, 3.0, 8192, 128, 5e5)
@example(32.0, 4.3359375, 2.0, 32768, 96, 1429569.0)  # 4.36 - 4.34 in fp32, in a divisor of 22.8
@example(28.866879312334333, 3.7707819034946506, 1.0, 138160, 64, 5e5)  # a narrower band agrees within its own rounding
@example(32.0, 8.75, 1.75, 112321, 128, 5e5)
@example(0.05, 5.315583605539458, 2.0029748019887648, 144640, 96, 1e4)
@example(16.0, 0.02, 12.0, 8, 8, 100.0)  # every wave between the bounds
@given(
    st.sampled_from([1.5, 2.0, 4.0, 8.0, 32.0]) | st.floats(1.01, 64.0), numbers, st.floats(0.001, 20.0) | numbers,
    st.integers(3, 17).map(lambda n: 1 << n) | st.integers(8, 200_000), st.sampled_from([2, 4, 8, 32, 64, 96, 128, 256]),
    st.sampled_from([100.0, 1e4, 5e5, 1e6]) | st.floats(2.0, 1e7),
)  # fmt: skip
def test_any_scaling_is_found_again(
    factor: float, low: float, width: float, original: int, dim: int, theta: float
) -> None:
    """With the context told, as in our files, and without, as in others': the same divisors, to rounding."""
    scaling = Llama3(
        factor=factor, low_freq_factor=low, high_freq_factor=low + width, original_max_position_embeddings=original
    )
    wanted = divisors(Rope(theta=theta, llama3=scaling), dim)
    if torch.allclose(wanted, torch.ones(()), rtol=1e-6, atol=0):
        return
    for told in (original, 0):
        found = find_llama3(theta, wanted.tolist(), told)
        assert found is not None and (not told or found.original_max_position_embeddings == told)
        again = divisors(Rope(theta=theta, llama3=found), dim)
        assert torch.allclose(1 / again, 1 / wanted, rtol=3e-6, atol=2e-7 * (low + width) / width)


@pytest.mark.parametrize("original", [0, 8192])
def test_published_numbers_are_found_as_they_are(original: int) -> None:
    for factor, dim in ((8.0, 128), (32.0, 64)):
        scaling = Llama3(factor=factor, original_max_position_embeddings=8192)
        assert find_llama3(5e5, divisors(Rope(theta=5e5, llama3=scaling), dim).tolist(), original) == scaling


def changed(file: Path, factors: list[float]) -> None:
    reader = gguf.GGUFReader(file, "r+")
    tensor = next(t for t in reader.tensors if t.name == "rope_freqs.weight")
    assert len(tensor.data) == len(factors)
    tensor.data[:] = np.array(factors, np.float32)
    tensor.data.flush()


@pytest.mark.parametrize("how", ["backwards", "one off", "both sides", "zero"])
def test_divisors_of_another_kind_are_refused_by_name(tmp_path: Path, how: str) -> None:
    config = model(REPORTED)
    there_and_back(tmp_path, config)
    attention = config.stages[0].attention
    right = divisors(attention.rope, attention.head_dim).tolist()  # type: ignore[attr-defined]
    wrong = {
        "backwards": right[::-1],
        "one off": [*right[:2], right[2] * 1.001, *right[3:]],
        "both sides": [0.5, *right[1:]],
        "zero": [0.0, *right[1:]],
    }
    changed(tmp_path / "model.gguf", wrong[how])
    with pytest.raises(
        CheckpointError, match=r"'rope_freqs.weight' does not hold .* Llama 3.1 scaling(?s:.)*Hugging Face"
    ):
        import_gguf(tmp_path / "model.gguf", tmp_path / "new", progress=silent)
    assert not (tmp_path / "new").exists()
