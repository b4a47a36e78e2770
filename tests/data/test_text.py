"""A text file to pretrain on: its parts are the file, and what is not text is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

import rorqual.data
from rorqual.core.errors import DataError
from rorqual.data.source.text import read_text_split

SAMPLE = Path(rorqual.data.__file__).parent / "samples" / "tinyshakespeare-64k.txt"


def test_the_parts_are_the_file_and_the_last_tenth_is_held_out(tmp_path: Path) -> None:
    parts = read_text_split(SAMPLE)
    whole = SAMPLE.read_bytes().decode("utf-8")
    assert parts.train + parts.validation == whole and parts.train.startswith("First Citizen:")
    assert len(parts.train) == int(len(whole) * 0.9)  # nanoGPT's own cut
    (tmp_path / "t.txt").write_bytes("\ufeffaé\r\n中\U0001f600\n12345".encode())
    parts = read_text_split(tmp_path / "t.txt")
    assert (parts.train, parts.validation) == ("aé\r\n中\U0001f600\n123", "45")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b" \n", "the file is empty"),
        (b"abc\xffdef", "not UTF-8: byte 0xff at position 3"),
        (b"abc def".decode().encode("utf-16"), "not UTF-8"),
        (b"a", "has no text"),
        (b" " * 19 + b"a", "has no text"),
    ],
)
def test_what_is_not_text_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_text_split(path)
    assert caught.value.where in (str(path), f"{path}:1") and caught.value.remedy


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_text_split(tmp_path / "none.txt")
    with pytest.raises(DataError, match="cannot read"):
        read_text_split(tmp_path)
