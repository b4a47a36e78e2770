"""Safetensors by slices: what the library writes is read, what is written the library reads, and damaged files are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from rorqual.convert.safetensors_slices import TYPES, Bytes, StoredTensor, TensorSpec, read_header, write_tensors
from rorqual.core.errors import CheckpointError


def tensor(dtype: str, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(TYPES[dtype])


def slices(stored: StoredTensor, size: int) -> list[Bytes]:
    return [stored.rows(*rows).flatten().view(torch.uint8).numpy() for rows in stored.slices(size)]


def raw(value: torch.Tensor) -> bytes:
    return bytes(value.contiguous().flatten().view(torch.uint8).numpy())


SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(TYPES)), SHAPES), max_size=6), st.integers(1, 64))
def test_equal_to_the_safetensors_library_both_ways(tmp_path_factory: Any, kinds: Any, size: int) -> None:
    folder = tmp_path_factory.mktemp("both")
    state = {f"weight {n} é": tensor(dtype, shape, n) for n, (dtype, shape) in enumerate(kinds)}
    save_file(state, folder / "theirs.safetensors")
    found = read_header(folder / "theirs.safetensors")
    assert {name: (stored.shape, b"".join(slices(stored, size))) for name, stored in found.items()} == {
        name: (tuple(value.shape), raw(value)) for name, value in state.items()
    }
    specs = [TensorSpec(stored.name, stored.dtype, stored.shape) for stored in found.values()]
    total = write_tensors(folder / "ours.safetensors", specs, lambda spec: slices(found[spec.name], size))
    assert (folder / "ours.safetensors").stat().st_size == total
    again = load_file(folder / "ours.safetensors")
    assert {name: raw(value) for name, value in again.items()} == {name: raw(value) for name, value in state.items()}


def test_each_tensor_is_aligned_to_its_type(tmp_path: Path) -> None:
    state = {"a": tensor("F8_E4M3", (3,)), "b": tensor("BF16", (5,)), "c": tensor("F32", (7,))}
    specs = [TensorSpec("a", "F8_E4M3", (3,)), TensorSpec("b", "BF16", (5,)), TensorSpec("c", "F32", (7,))]
    write_tensors(tmp_path / "x", specs, lambda spec: [state[spec.name].view(torch.uint8).numpy()])
    assert all(stored.begin % width == 0 for stored, width in zip(read_header(tmp_path / "x").values(), (4, 2, 1)))


def test_parts_are_the_rows_and_slices_cover_them(tmp_path: Path) -> None:
    value = tensor("BF16", (3, 4, 5))
    save_file({"w": value}, tmp_path / "x")
    whole = read_header(tmp_path / "x")["w"]
    for index, part in enumerate(value.reshape(6, 2, 5)):
        assert b"".join(slices(whole.equal_part(index, 6, (2, 5)), 10)) == raw(part)
    assert [*whole.slices(80)] == [(0, 2), (2, 3)] and [*whole.slices(1)] == [(0, 1), (1, 2), (2, 3)]
    assert [*whole.slices(1, multiple=2)] == [(0, 2), (2, 3)]


@pytest.mark.parametrize("size", [3, 5])
def test_a_tensor_of_another_size_is_not_written(tmp_path: Path, size: int) -> None:
    with pytest.raises(ValueError, match=f"{size} bytes written, 4 expected"):
        write_tensors(tmp_path / "x", [TensorSpec("w", "F32", (1,))], lambda spec: [torch.zeros(size).byte().numpy()])


GOOD = {
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [8, 16]},
}


def written(path: Path, header: Any, data: bytes = bytes(16), *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def changed(name: str, **keys: Any) -> dict[str, Any]:
    return GOOD | {name: GOOD[name] | keys}


DAMAGED: dict[str, Callable[[Path], object]] = {
    "missing": lambda p: p,
    "a folder": lambda p: p.mkdir(),
    "empty": lambda p: p.write_bytes(b""),
    "header of a gigabyte": lambda p: written(p, GOOD, length=1 << 30),
    "not JSON": lambda p: written(p, b"\x80\x02pickle"),
    "truncated": lambda p: written(p, GOOD, bytes(15)),
    "a byte too many": lambda p: written(p, GOOD, bytes(17)),
    "overlap": lambda p: written(p, changed("b", data_offsets=[4, 12])),
    "hole": lambda p: written(p, changed("b", data_offsets=[12, 20]), bytes(20)),
    "shape of another size": lambda p: written(p, changed("a", shape=[3])),
    "unknown type": lambda p: written(p, changed("a", dtype="F31")),
    "a name twice": lambda p: written(p, json.dumps(GOOD).replace('"b"', '"a"').encode()),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_refused_by_name(case: str, tmp_path: Path) -> None:
    DAMAGED[case](tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError, match=r"bad\.safetensors: cannot read") as caught:
        read_header(tmp_path / "bad.safetensors")
    assert "download it again" in caught.value.remedy


def test_the_nearest_valid_file_is_read(tmp_path: Path) -> None:
    found = read_header(written(tmp_path / "x", {"__metadata__": {"format": "pt"}} | dict(reversed(GOOD.items()))))
    assert {name: (t.dtype, t.shape) for name, t in found.items()} == {"a": ("F32", (2,)), "b": ("BF16", (2, 2))}
    assert read_header(written(tmp_path / "empty", {}, b"")) == {}
