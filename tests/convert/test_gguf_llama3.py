"""Llama 3.1's rotary scaling out and in again: whatever its numbers, the model that comes back computes the same."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_models import configs, filled, silent, write_run

from rorqual.convert.gguf import export_gguf, import_gguf
from rorqual.convert.gguf_keys import architecture_keys
from rorqual.convert.gguf_rope import frequency_divisors, scaling_from_keys
from rorqual.core.errors import CheckpointError
from rorqual.core.records import RunDir
from rorqual.model import ModelConfig
from rorqual.model.load.run_directory import read_model_config
from rorqual.ops.rope import Llama3Scaling, Rope

REPORTED = Llama3Scaling(factor=4.0, low_freq_factor=1.0, high_freq_factor=3.0, original_max_position_embeddings=32)
"""Issue 14."""


def model(scaling: Llama3Scaling, theta: float = 5e5) -> ModelConfig:
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
def test_a_run_comes_back_with_its_very_numbers(tmp_path: Path, scaling: Llama3Scaling) -> None:
    config = model(scaling)
    assert there_and_back(tmp_path, config) == config


def test_the_tensor_counts_and_not_the_keys(tmp_path: Path) -> None:
    """A file whose keys say another scaling than its tensor is what llama.cpp computes: the tensor's."""
    there_and_back(tmp_path, model(REPORTED, theta=5e8))
    other = Llama3Scaling(factor=8.0, original_max_position_embeddings=8192)
    changed(tmp_path / "model.gguf", frequency_divisors(Rope(theta=5e8, llama3=other), 16).tolist())
    import_gguf(tmp_path / "model.gguf", tmp_path / "new", progress=silent)
    assert read_model_config(RunDir(tmp_path / "new")) == model(other, theta=5e8)
    changed(tmp_path / "model.gguf", [1.0] * 8)
    import_gguf(tmp_path / "model.gguf", tmp_path / "none", progress=silent)
    assert read_model_config(RunDir(tmp_path / "none")).stages[0].attention.rope == Rope(theta=5e8)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("factor", "dim", "theta"), [(8.0, 128, 5e5), (32.0, 64, 5e5), (32.0, 128, 5e5)])
@pytest.mark.parametrize("told", [True, False])
def test_the_published_scalings_are_read_from_the_tensor_alone(
    factor: float, dim: int, theta: float, told: bool
) -> None:
    scaling = Llama3Scaling(factor=factor, original_max_position_embeddings=8192)
    factors = frequency_divisors(Rope(theta=theta, llama3=scaling), dim).tolist()
    keys = architecture_keys({"llama.rope.scaling.original_context_length": 8192} if told else {}, "llama", "there")
    found = scaling_from_keys(keys, theta, factors, latent=False)
    assert found == {"rope_type": "llama3", **scaling.model_dump()}


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
    right = frequency_divisors(attention.rope, attention.head_dim).tolist()  # type: ignore[attr-defined]
    wrong = {
        "backwards": right[::-1],
        "one off": [*right[:2], right[2] * 1.001, *right[3:]],
        "both sides": [0.5, *right[1:]],
        "zero": [0.0, *right[1:]],
    }
    changed(tmp_path / "model.gguf", wrong[how])
    with pytest.raises(
        CheckpointError, match=r"'rope_freqs.weight' does not hold .* published Llama 3.1 scaling(?s:.)*Hugging Face"
    ):
        import_gguf(tmp_path / "model.gguf", tmp_path / "new", progress=silent)
    assert not (tmp_path / "new").exists()
