"""Rows of a user's file: every format gives the same rows, and each fault is named by file and line."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rorqual.core.errors import DataError
from rorqual.core.rows import BadRow, DataRow, read_rows, scan_rows

ROWS: list[dict[str, Any]] = [{"text": f'{n}; "so", it\nis \u2028 {n}', "label": f"{n % 2:02}"} for n in range(300)]
LINES = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ROWS)


def table(rows: list[dict[str, Any]], **form: Any) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n", **form)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def written(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


FORMS = {
    "a.jsonl": LINES,
    "crlf.ndjson": b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n\r\n"),
    "list.json": json.dumps(ROWS).encode(),
    "object.json": json.dumps({"version": 1, "data": ROWS}).encode(),
    "lines.json": LINES,
    "a.csv": table(ROWS),
    "semicolon.CSV": b"\xef\xbb\xbf" + table(ROWS, delimiter=";"),
    "tab.csv": table(ROWS, delimiter="\t"),
    "a.tsv": table(ROWS, delimiter="\t"),
    "excel.csv": table(ROWS, delimiter="\t").decode().encode("utf-16"),
    "big-endian.tsv": b"\xfe\xff" + table(ROWS, delimiter="\t").decode().encode("utf-16-be"),
    "a.parquet": parquet(ROWS),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_table_has_the_same_rows(name: str, tmp_path: Path) -> None:
    assert [row.values for row in read_rows(written(tmp_path, name, FORMS[name]))] == ROWS


@given(
    st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False) | st.text() | st.lists(st.none()), max_size=4)
)
def test_a_json_object_is_read_as_python_reads_it(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "one.jsonl"
    path.write_bytes(json.dumps(values, ensure_ascii=False).encode() + b"\n")
    assert [row.values for row in read_rows(path)] == [values]


def test_the_last_of_two_equal_keys_counts_and_large_integers_stay_exact(tmp_path: Path) -> None:
    [row] = read_rows(written(tmp_path, "a.jsonl", b'{"a": 1, "a": 123456789012345678901}'))
    assert row.values == {"a": 123456789012345678901}


def test_a_conversation_in_a_json_file_is_one_row(tmp_path: Path) -> None:
    talk = {"messages": [{"role": "user", "content": "a"}]}
    assert [row.values for row in read_rows(written(tmp_path, "a.json", json.dumps(talk).encode()))] == [talk]


def test_null_fields_of_parquet_are_no_fields(tmp_path: Path) -> None:
    rows = [{"a": 1, "b": {"c": None, "d": [None, 2]}}, {"a": None, "b": None}]
    assert [row.values for row in read_rows(written(tmp_path, "a.parquet", parquet(rows)))] == [
        {"a": 1, "b": {"d": [None, 2]}},
        {},
    ]


@pytest.mark.parametrize(
    ("name", "data", "places"),
    [
        ("a.jsonl", b'\n\n{"a": 1}\n\n{"a": 2}', [(3, ":3"), (5, ":5")]),
        ("a.csv", b'a,b\n\n"x\ny",1\nz,2\n', [(3, ":3"), (5, ":5")]),
        ("a.csv", b'sep=;\r\na;b\r\n"x\ny";1,2,3\r\nz;2\r\n', [(3, ":3"), (5, ":5")]),
        ("a.json", b'[{"a": 1},\n{"a": 2}]', [(1, ":row 1"), (2, ":row 2")]),
        ("a.parquet", parquet([{"a": 1}, {"a": 2}]), [(1, ":row 1"), (2, ":row 2")]),
    ],
)  # fmt: skip
def test_a_row_has_its_first_line_or_its_number(
    name: str, data: bytes, places: list[tuple[int, str]], tmp_path: Path
) -> None:
    path = written(tmp_path, name, data)
    assert [(row.line, row.where) for row in read_rows(path)] == [(line, f"{path}{place}") for line, place in places]


GOOD = b'{"a": "b"}\n'
BAD = [
    ("a.jsonl", GOOD + b"{\n" + GOOD, 2, "not JSON", "not JSON: EOF"),
    ("a.jsonl", GOOD + b"[" * 100_000 + b"\n" + GOOD, 2, "not JSON", "recursion limit"),
    ("a.jsonl", GOOD + b'{"a": ' + b"9" * 5000 + b"}\n" + GOOD, 2, "not JSON", "number out of range"),
    ("a.jsonl", GOOD + b'{"a": "\\ud800 b"}\n' + GOOD, 2, "not JSON", "hex escape"),
    ("a.jsonl", GOOD + b"\n[1]\n" + GOOD, 3, "not an object", "a JSON list, not an object"),
    ("a.jsonl", GOOD + b'{"a": "\xe9"}\n' + GOOD, 2, "not UTF-8", "not UTF-8: byte 0xe9 at position 7"),
    ("a.json", b'[{"a": "b"}, 5, {"a": "b"}]', 2, "not an object", "a JSON int, not an object"),
    ("a.csv", b'a,b\n"x\n",y\none,two,three\nx,y\n', 4, "wrong number of cells", "3 cells, but the header has 2"),
    ("a.csv", b"a,b\nx,y\none\nx,y\n", 3, "wrong number of cells", "1 cells, but the header has 2"),
]


@pytest.mark.parametrize(("name", "data", "line", "kind", "what"), BAD)
def test_a_bad_row_is_named_and_the_others_are_read(
    name: str, data: bytes, line: int, kind: str, what: str, tmp_path: Path
) -> None:
    path = written(tmp_path, name, data)
    before, bad, after = scan_rows(path)
    assert isinstance(before, DataRow) and isinstance(after, DataRow) and isinstance(bad, BadRow)
    assert (bad.line, bad.kind) == (line, kind) and what in bad.what and bad.remedy
    with pytest.raises(DataError, match=rf"{name}:(row )?{line}: {kind if kind.startswith('not J') else ''}"):
        list(read_rows(path))


REFUSED = [
    ("a.txt", b"x", "unknown file type '.txt'"),
    ("a", b"x", "the file has no extension"),
    ("a.jsonl", b"", "the file is empty"),
    ("a.jsonl", b"\n \n", "the file is empty"),
    ("a.csv", b"a,b\n", "the file is empty"),
    ("a.json", b"[]", "the file is empty"),
    ("a.parquet", parquet([{"a": 1}][:0] or [{"a": 1}])[:-20], "not Parquet"),
    ("a.parquet", b"", "not Parquet"),
    ("a.jsonl", b"\x1f\x8b\x08\x00" * 9, "look binary"),
    ("a.jsonl", bytes(range(256)) * 4, "look binary"),
    ("a.jsonl", '{"a": "b"}'.encode("utf-16"), "UTF-16 text\n.*iconv -f UTF-16"),
    ("a.csv", "a,b\nx,y\n".encode("utf-16")[:-1], "not UTF-16-LE: byte 0x0a"),
    ("a.json", b"5", "a JSON int, not a list"),
    ("a.json", b"[1,", "not JSON"),
    ("a.csv", b"a,a\nx,y\n", "a.csv:1: the header repeats a column: a, a"),
    ("a.csv", b"a,b\n" + b"x,y\n" * 9000 + b"x,\xff\n", "a.csv:9002: not UTF-8: byte 0xff at position 2"),
    ("a.csv", b'"a,b\nx,y\n', "a.csv:1: not CSV"),
    ("a.csv", b'a,b\nx,y\n"x,y\nx,y\n', "a.csv:3: not CSV"),
    ("a.csv", b'a,b\nx,y\n"say "hi" now",y\n', "a.csv:3: not CSV"),
]


@pytest.mark.parametrize(("name", "data", "what"), REFUSED)
def test_a_file_that_is_not_what_its_name_says_is_refused(name: str, data: bytes, what: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=what) as refused:
        list(read_rows(written(tmp_path, name, data)))
    assert str(tmp_path / name) in refused.value.where and refused.value.remedy


@pytest.mark.parametrize("name", ["none.jsonl", "none.json", "none.csv", "none.parquet"])
def test_a_missing_file_and_a_folder_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        list(read_rows(tmp_path / name))
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=r"directory|not Parquet"):
        list(read_rows(tmp_path / name))


def test_a_column_of_another_type_is_named() -> None:
    row = DataRow(3, "f:3", {"b": 1, "c": ["x", 2]})
    assert row.get("b", int) == 1
    for read, what in (
        (lambda: row.get("a"), "f:3: no column 'a'\n.*b, c"),
        (lambda: row.get("b"), "f:3: column 'b' is not str: 1"),
        (lambda: row.text_values("c"), "f:3: column 'c' holds an item that is not a string: 2"),
    ):
        with pytest.raises(DataError, match=what):
            read()
