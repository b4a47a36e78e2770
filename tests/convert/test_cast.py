"""Values converted slice by slice: what torch gives for the whole tensor, wherever a slice ends."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_folders import deepseek, from_fp8, in_fp8, published, write_folder
from safetensors.torch import save_file

from rorqual.convert.cast import TensorPiece
from rorqual.convert.hf import export_hf, import_hf
from rorqual.convert.safetensors_slices import CHUNK, Bytes, StoredTensor, read_header
from rorqual.core.errors import NumericsError
from rorqual.core.records import RunDir

NAME = "w_proj.weight"
TALL = (CHUNK // 256 + 300, 140)
"""More rows than one slice holds, in FP8 too; neither side a multiple of 128."""


@pytest.fixture(scope="module")
def plain() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(TALL, generator=generator) * torch.rand(TALL[0], 1, generator=generator)


def stored(folder: Path, **tensors: torch.Tensor) -> dict[str, StoredTensor]:
    save_file({name.replace("_weight", ".weight"): tensor for name, tensor in tensors.items()}, folder / "x")
    return read_header(folder / "x")


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def joined(chunks: Iterator[Bytes]) -> tuple[int, bytes]:
    parts = [bytes(chunk) for chunk in chunks]
    return len(parts), b"".join(parts)


@pytest.mark.parametrize(("dtype", "kind"), [("BF16", torch.bfloat16), ("F16", torch.float16), ("F32", torch.float32)])
def test_across_slices_a_conversion_is_torchs(
    dtype: str, kind: torch.dtype, plain: torch.Tensor, tmp_path: Path
) -> None:
    slices, data = joined(TensorPiece(stored(tmp_path, **{NAME: plain})[NAME]).chunks(dtype))
    assert slices > 1
    assert data == raw(plain.to(kind))


def test_across_slices_each_block_has_its_own_scale(plain: torch.Tensor, tmp_path: Path) -> None:
    fp8 = in_fp8({NAME: plain})
    found = stored(tmp_path, **fp8)
    scale = found[f"{NAME}_scale_inv"]
    assert scale.shape == (math.ceil(TALL[0] / 128), 2)
    slices, data = joined(TensorPiece(found[NAME], scale).chunks("F32"))
    assert slices > 1
    assert data == raw(from_fp8(fp8)[NAME])
    source = stored(tmp_path, **{NAME: plain})[NAME]
    assert joined(TensorPiece(source, want="scales").chunks("F32"))[1] == raw(fp8[f"{NAME}_scale_inv"])
    assert joined(TensorPiece(source).chunks("F8_E4M3"))[1] == raw(fp8[NAME])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_one_value_that_is_not_finite_is_found_and_the_largest_that_is_passes(
    kind: torch.dtype, value: float, tmp_path: Path
) -> None:
    tensor = torch.full((7, 3), torch.finfo(kind).max, dtype=kind)
    tensor[0, 0], tensor[1, 1], tensor[2, 2] = torch.finfo(kind).min, torch.finfo(kind).smallest_normal, -0.0
    source = stored(tmp_path, w=tensor)["w"]
    assert joined(TensorPiece(source).chunks(source.dtype))[1] == raw(tensor)
    tensor[6, 2] = value
    source = stored(tmp_path, w=tensor)["w"]
    with pytest.raises(NumericsError, match="w holds NaN or infinity"):
        joined(TensorPiece(source).chunks(source.dtype))


def test_every_fp8_value_passes_but_the_two_nans(tmp_path: Path) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    values = codes.view(torch.float8_e4m3fn)
    for code, value in zip(codes, values.float()):
        source = stored(tmp_path, w=codes[int(code) : int(code) + 1].view(torch.float8_e4m3fn))["w"]
        if bool(value.isfinite()):
            assert joined(TensorPiece(source).chunks("F8_E4M3"))[1] == bytes([int(code)])
        else:
            with pytest.raises(NumericsError):
                joined(TensorPiece(source).chunks("F8_E4M3"))
    assert int(values.float().isnan().sum()) == 2


def anonymous() -> int:
    """RssAnon of this process, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").split("\n")
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 700 MB in three shards; the experts of a layer are 130 MB."""
    config = deepseek()
    router = config.stages[1].ffn.router.model_copy(update={"n_routed_experts": 512})  # type: ignore[attr-defined]
    wide = config.stages[1].ffn.model_copy(update={"router": router, "moe_intermediate_size": 480})  # type: ignore[union-attr]
    stages = (config.stages[0], config.stages[1].model_copy(update={"ffn": wide}))
    config = config.model_copy(update={"stages": stages})
    folder = write_folder(tmp_path_factory.mktemp("large") / "hub", config, published(config), shards=3)
    assert sum(file.stat().st_size for file in folder.glob("*.safetensors")) > 700e6
    return folder


def test_memory_is_that_of_slices_not_of_the_model(large: Path, tmp_path: Path) -> None:
    """Of an import that keeps the type, and of an export that changes it."""
    before, peak = anonymous(), [0]

    def progress(done: int, total: int, name: str) -> None:
        peak[0] = max(peak[0], anonymous())

    import_hf(large, tmp_path / "run", dtype="keep", progress=progress)
    export_hf(RunDir(tmp_path / "run"), tmp_path / "out", dtype="bfloat16", progress=progress)
    assert peak[0] - before < 12 * CHUNK
