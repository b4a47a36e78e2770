"""The journal: whole lines, a torn one cut, and one owner."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import pytest

from rorqual.core.errors import DataError, RorqualError
from rorqual.core.journal import Journal, append_line, json_line, read_lines, scan_journal, truncate_json_lines


def lines(path: Path) -> list[int]:
    return [json.loads(line)["n"] for line in path.read_bytes().split(b"\n")[:-1]]


def write(path: Path, *numbers: int) -> None:
    with Journal(path) as journal:
        journal.append({"n": n} for n in numbers)


@pytest.mark.parametrize(
    "torn", [b"", b"{", b'{"n": 3', b'{"n": 3}', b"\x00\x00", b'{"n"\n', b"\x00\x00\n", "é".encode()[:1]]
)
def test_a_torn_last_line_is_cut_and_the_rest_is_there(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "j.jsonl"
    write(path, 1, 2)
    path.write_bytes(path.read_bytes() + torn)
    with Journal(path) as journal:
        assert [line["n"] for _, _, line in journal.read()] == [1, 2]
        journal.append([{"n": 4}])
    assert lines(path) == [1, 2, 4]


def test_every_cut_of_a_journal_gives_a_beginning_of_it(tmp_path: Path) -> None:
    path, cut = tmp_path / "j.jsonl", tmp_path / "cut.jsonl"
    write(path, *range(5))
    raw = path.read_bytes()
    for size in range(len(raw) + 1):
        cut.write_bytes(raw[:size])
        write(cut, 9)
        assert lines(cut) == [*range(raw[:size].count(b"\n")), 9]


def test_a_line_in_the_middle_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": \n{"n": 3}\n')
    with pytest.raises(DataError, match=r"j.jsonl:2.*(?s:.)*requests the deleted sample again"):
        list(scan_journal(path))
    path.write_bytes(b'{"n": 1}\n{"n": "\\u2028 \xe2\x80\xa8"}\n{"n": 3}\n')
    with Journal(path) as journal:
        assert len(list(journal.read())) == 3, "U+2028 ends no line"


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path), pytest.raises(RorqualError, match=r"j.jsonl: another process is writing to this path"):
        Journal(path)  # the lock is of the opened file, and so holds within a process too
    with Journal(path) as journal:
        assert list(journal.read()) == []


def test_a_limit_of_the_file_size_is_told_and_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(path) as journal:
        journal.append([{"n": 1}])
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
            with pytest.raises(RorqualError, match=r"j.jsonl: cannot write: File too large(?s:.)*raise the limit"):
                journal.append([{"n": 2}, {"n": 3}, {"n": 4}])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        journal.append([{"n": 5}])
    assert lines(path) == [1, 5]


def test_a_line_is_one_line_for_every_reader() -> None:
    text = "".join(chr(code) for code in (*range(1, 256), 0x2028, 0x2029, 0xD83D, 0x1F600))
    raw = json_line({"text": text})
    assert len(raw.decode().splitlines()) == 1 and json.loads(raw) == {"text": text}


def test_offsets_are_those_of_the_lines(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        offsets = [*journal.append([{"n": "é"}, {"n": 2}]), *journal.append([{"n": 3}]), *journal.append([])]
        assert [(where, offset) for where, offset, _ in journal.read()] == [
            (f"{path}:{number}", offset) for number, offset in enumerate(offsets, start=1)
        ]
    assert [json.loads(path.read_bytes()[offset:].split(b"\n")[0])["n"] for offset in offsets] == ["é", 2, 3]


@pytest.mark.parametrize(("patience", "synced"), [(0.0, 3), (60.0, 0)])
def test_a_journal_is_synced_as_often_as_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: float, synced: int
) -> None:
    calls: list[int] = []
    with Journal(tmp_path / "j.jsonl", patience=patience) as journal:
        monkeypatch.setattr(os, "fsync", calls.append)
        for number in range(3):
            journal.append([{"n": number}])
    assert len(calls) == synced


def test_a_file_of_lines_is_cut_to_a_size_and_not_made_for_nothing(tmp_path: Path) -> None:
    truncate_json_lines(tmp_path / "none", 0)
    assert not (tmp_path / "none").exists() and list(read_lines(tmp_path / "none")) == []
    path = tmp_path / "file"
    for size, left in ((0, []), (9, [1]), (12, [1]), (99, [1, 2])):
        path.write_bytes(b'{"n": 1}\n{"n": 2}\n')
        truncate_json_lines(path, size)
        append_line(path, {"n": 3})
        assert [line["n"] for line in read_lines(path)] == [*left, 3]
