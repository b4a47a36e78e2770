"""Safetensors by slices: what the library writes is read, what is written the library reads, and no header is trusted."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from rorqual.convert.stream import Spec, Stored, header_bytes, read_header, write_tensors
from rorqual.core.errors import CheckpointError

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F8_E4M3": torch.float8_e4m3fn}


def tensor(dtype: str, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DTYPES[dtype])


def data(stored: Stored, **how: int) -> bytes:
    return b"".join(stored.chunks(**how))


def raw(value: torch.Tensor) -> bytes:
    return bytes(value.contiguous().flatten().view(torch.uint8).numpy())


SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(DTYPES)), SHAPES), max_size=6), st.integers(1, 64))
def test_equal_to_the_safetensors_library_both_ways(tmp_path_factory: Any, kinds: Any, size: int) -> None:
    folder = tmp_path_factory.mktemp("both")
    state = {f"weight {n} é": tensor(dtype, shape, n) for n, (dtype, shape) in enumerate(kinds)}
    save_file(state, folder / "theirs.safetensors")
    found = read_header(folder / "theirs.safetensors")
    assert {name: (stored.shape, data(stored, size=size)) for name, stored in found.items()} == {
        name: (tuple(value.shape), raw(value)) for name, value in state.items()
    }
    specs = [Spec(stored.name, stored.dtype, stored.shape) for stored in found.values()]
    total = write_tensors(folder / "ours.safetensors", specs, lambda spec: found[spec.name].chunks(size=size))
    assert (folder / "ours.safetensors").stat().st_size == total
    again = load_file(folder / "ours.safetensors")
    assert {name: raw(value) for name, value in again.items()} == {name: raw(value) for name, value in state.items()}


def test_each_tensor_is_aligned_to_its_type(tmp_path: Path) -> None:
    state = {"a": tensor("F8_E4M3", (3,)), "b": tensor("BF16", (5,)), "c": tensor("F32", (7,))}
    write_tensors(
        tmp_path / "x", [Spec("a", "F8_E4M3", (3,)), Spec("b", "BF16", (5,)), Spec("c", "F32", (7,))],
        lambda spec: [raw(state[spec.name])],
    )  # fmt: skip
    assert all(stored.begin % width == 0 for stored, width in zip(read_header(tmp_path / "x").values(), (4, 2, 1)))


def test_parts_are_the_rows(tmp_path: Path) -> None:
    value = tensor("BF16", (3, 4, 5))
    save_file({"w": value}, tmp_path / "x")
    whole = read_header(tmp_path / "x")["w"]
    assert [data(whole.part(n, 6, (2, 5)), multiple=10, size=10) for n in range(6)] == [
        raw(part) for part in value.reshape(6, 2, 5)
    ]
    with pytest.raises(ValueError, match="7 parts"):
        whole.part(0, 7, (2, 5))


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 bytes written, 4 expected"):
        write_tensors(tmp_path / "x", [Spec("w", "F32", (1,))], lambda spec: [b"abc"])
    with pytest.raises(ValueError, match="same name"):
        write_tensors(tmp_path / "x", [Spec("w", "F32", (1,))] * 2, lambda spec: [b"abcd"])
    with pytest.raises(KeyboardInterrupt):
        write_tensors(tmp_path / "x", [Spec("w", "F32", (1,))], _interrupted)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_with_the_file(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            write_tensors(tmp_path / "x", [Spec("w", "F32", (1000,))], lambda spec: [bytes(4000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(tmp_path / "x")
    assert not list(tmp_path.iterdir())


def _interrupted(spec: Spec) -> list[bytes]:
    raise KeyboardInterrupt


GOOD: dict[str, Any] = {
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [8, 16]},
}


def written(path: Path, header: Any, body: bytes = bytes(16), *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + body)
    return path


def changed(name: str, **fields: Any) -> dict[str, Any]:
    return GOOD | {name: GOOD[name] | fields}


def enlarged(path: Path) -> Path:
    """The same file with a hole of two gigabytes behind it, which takes no space."""
    with open(path, "r+b") as file:
        file.truncate(2 << 30)
    return path


POISONS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "header of a gigabyte": (lambda p: written(p, GOOD, length=1 << 30), r"claims 1,073,741,824 bytes"),
    "header of a gigabyte in a file that is larger": (
        lambda p: enlarged(written(p, GOOD, length=1 << 30)),
        "and the limit is 100,000,000",
    ),
    "header longer than the file": (lambda p: written(p, GOOD, length=400), "claims 400 bytes"),
    "seven bytes": (lambda p: (p.write_bytes(bytes(7)) and p) or p, "the file has 7"),
    "truncated": (lambda p: written(p, GOOD, bytes(15)), "truncated"),
    "a byte too many": (lambda p: written(p, GOOD, bytes(17)), "bytes after the last tensor"),
    "overlap": (lambda p: written(p, changed("b", data_offsets=[4, 12])), "b overlaps"),
    "hole": (lambda p: written(p, changed("b", data_offsets=[12, 20]), bytes(20)), "leaves 4 bytes unused"),
    "before the data": (lambda p: written(p, changed("a", data_offsets=[-4, 4])), "non-negative integers"),
    "offsets the wrong way": (lambda p: written(p, changed("a", data_offsets=[8, 0])), "data_offsets span -8"),
    "shape of another size": (lambda p: written(p, changed("a", shape=[3])), "12 bytes, but data_offsets span 8"),
    "shape that overflows": (lambda p: written(p, changed("a", shape=[1 << 62, 1 << 62])), "data_offsets span 8"),
    "shape of truths": (lambda p: written(p, changed("a", shape=[True, 2])), "non-negative integers"),
    "negative shape": (lambda p: written(p, changed("a", shape=[-1, -2])), "non-negative integers"),
    "unknown type": (lambda p: written(p, changed("a", dtype="F31")), "type 'F31' is not one of"),
    "type that is a list": (lambda p: written(p, changed("a", dtype=[])), "is not one of"),
    "a further key": (lambda p: written(p, changed("a", code="x")), "exactly the keys dtype, shape and data_offsets"),
    "a name twice": (
        lambda p: written(p, json.dumps(GOOD).replace('"b"', '"a"').encode()),
        "'a' occurs twice",
    ),
    "not JSON": (lambda p: written(p, b"\x80\x02pickle"), "invalid JSON"),
    "a list": (lambda p: written(p, []), "not an object"),
    "a depth without end": (lambda p: written(p, b'{"a":' * 100_000), "invalid JSON"),
    "a folder": (lambda p: p.mkdir() or p, "cannot read|not a regular"),
    "missing": (lambda p: p, "No such file"),
}


@pytest.mark.parametrize("poison", POISONS)
def test_a_header_is_not_trusted(poison: str, tmp_path: Path) -> None:
    make, says = POISONS[poison]
    with pytest.raises(CheckpointError, match=says) as caught:
        read_header(make(tmp_path / "bad.safetensors"))
    assert "bad.safetensors" in str(caught.value)


def test_the_nearest_valid_header_is_read(tmp_path: Path) -> None:
    found = read_header(written(tmp_path / "x", {"__metadata__": {"format": "pt"}} | dict(reversed(GOOD.items()))))
    assert {name: (t.dtype, t.shape) for name, t in found.items()} == {"a": ("F32", (2,)), "b": ("BF16", (2, 2))}
    assert read_header(written(tmp_path / "empty", {}, b"")) == {}
    assert len(header_bytes(list(found.values()))) % 8 == 0
