"""A GGUF file that is damaged, cut off or of another kind is refused by what its header shows, before a tensor is read."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf_models import configs, filled, silent, write_run

from rorqual.convert.gguf import export_gguf, import_gguf
from rorqual.convert.gguf_write import write_gguf
from rorqual.core.errors import RorqualError
from rorqual.core.records import RunDir

Change = Callable[[bytearray], bytes]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    run = write_run(folder / "run", filled(configs()["qwen3"]))
    export_gguf(run, folder / "good.gguf", dtype="f32", progress=silent)
    return folder / "good.gguf"


def at(data: bytearray, text: bytes) -> int:
    """Where what comes after `text` begins."""
    return data.index(text) + len(text)


def put(data: bytearray, place: int, value: bytes) -> bytes:
    data[place : place + len(value)] = value
    return bytes(data)


def _number(place: int, value: int) -> Change:
    return lambda data: put(data, place, struct.pack("<Q", value))


def _info(name: bytes, field: int, code: str, value: int) -> Change:
    """Change a tensor's header: field 0 is its count of dimensions, 4 its first, 20 its type, 24 its offset (matrices)."""
    return lambda data: put(data, at(data, name) + field, struct.pack(code, value))


HUGE = 1 << 62
POISONS: dict[str, tuple[Change, str]] = {
    "another magic": (lambda data: put(data, 0, b"GGML"), "cannot read"),
    "empty": (lambda data: b"", "cannot read"),
    "big endian": (lambda data: put(data, 4, struct.pack(">I", 3)), "cannot read|big-endian"),
    "another version": (lambda data: put(data, 4, struct.pack("<I", 1)), "version 1"),
    "huge count of tensors": (_number(8, HUGE), "cannot read"),
    "huge count of keys": (_number(16, HUGE), "cannot read"),
    "huge key": (_number(24, HUGE), "its header names byte"),
    "huge list": (lambda d: put(d, at(d, b"tokenizer.ggml.tokens") + 8, struct.pack("<Q", HUGE)), "its header names byte"),
    "value of no type": (lambda d: put(d, at(d, b"general.architecture"), struct.pack("<I", 77)), "77.* is not a valid"),
    "cut off in the header": (lambda data: bytes(data[:500]), "it has 500 bytes, but its header names byte"),
    "cut off in a tensor": (lambda data: bytes(data[:-4000]), "its header names byte"),
    "nine dimensions": (_info(b"blk.0.attn_q.weight", 0, "<I", 9), "cannot read"),
    "no rows": (_info(b"blk.0.attn_q.weight", 4, "<Q", 0), "cannot read|attn_q.weight has shape"),
    "larger than the file": (_info(b"blk.0.attn_q.weight", 4, "<Q", 1 << 40), "its header names byte"),
    "half a block": (_info(b"blk.0.attn_q.weight", 20, "<I", 14), "not a multiple of Q6_K block size"),
    "a type that is not read": (_info(b"blk.0.ffn_down.weight", 20, "<I", 20), "ffn_down.weight' has type IQ4_NL, which is not supported"),
    "a type that does not exist": (_info(b"blk.0.attn_q.weight", 20, "<I", 4000), "4000.* is not a valid"),
    "beyond the end": (_info(b"blk.0.attn_q.weight", 24, "<Q", HUGE), "its header names byte"),
    "two of one name": (lambda d: bytes(d.replace(b"blk.0.attn_q.weight", b"blk.1.attn_q.weight")), "blk.1.attn_q.weight"),
    "one key twice": (lambda d: bytes(d.replace(b"qwen3.rope.freq_base", b"qwen3.context_length", 1)), "cannot read"),
    "an unknown architecture": (
        lambda d: put(d, at(d, b"general.architecture") + 12, b"mamba"),
        "(?s)unknown architecture 'mamba'.*llama, qwen2, qwen3, qwen3moe, deepseek2",
    ),
    "a tokenizer of sentencepiece": (
        lambda d: put(d, at(d, b"tokenizer.ggml.model") + 12, b"t5\0\0"),
        "the tokenizer is",
    ),
    "a pre-tokenizer that is not read": (lambda d: put(d, at(d, b"tokenizer.ggml.pre") + 12, b"falcon"), "'falcon' is not supported"),
    "a missing tensor": (
        lambda d: bytes(d.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight")),
        "missing blk.1.ffn_up.weight, unexpected blk.1.ffn_xx.weight",
    ),
    "an unknown key": (lambda d: bytes(d.replace(b"qwen3.rope.freq_base", b"qwen3.rope.freq_bass")), "unknown key 'rope.freq_bass'"),
    "no width": (lambda d: bytes(d.replace(b"qwen3.embedding_length", b"other.embedding_length")), "'embedding_length' is missing"),
    "another width": (
        lambda d: put(d, at(d, b"qwen3.feed_forward_length") + 4, struct.pack("<I", 128)),
        r"ffn_gate.weight has shape \(96, 64\), not \(128, 64\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", POISONS)
def test_a_poison_is_refused_by_name_and_nothing_is_written(good: Path, tmp_path: Path, name: str) -> None:
    change, match = POISONS[name]
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(change(bytearray(good.read_bytes())))
    with pytest.raises(RorqualError, match=match) as caught:
        import_gguf(bad, tmp_path / "out", progress=silent)
    assert str(bad) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.gguf"]


def test_the_file_that_the_poisons_are_made_of_is_read(good: Path, tmp_path: Path) -> None:
    import_gguf(good, tmp_path / "out", progress=silent)
    assert RunDir(tmp_path / "out").newest_complete_step() == (0, [])


def test_one_part_of_a_split_file_is_refused(tmp_path: Path) -> None:
    part = tmp_path / "model-00001-of-00002.gguf"
    write_gguf(part, "qwen3", {"split.count": 2}, [], silent)
    with pytest.raises(RorqualError, match=r"(?s)one part of a split model.*gguf-split"):
        import_gguf(part, tmp_path / "out", progress=silent)


def test_what_is_not_a_file_is_a_clear_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.gguf"):
        with pytest.raises(RorqualError, match="cannot read"):
            import_gguf(path, tmp_path / "out", progress=silent)
