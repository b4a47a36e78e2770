"""The Parquet format of teacher samples, with one row per sample.

A row holds the problem, the teacher's reply and the grader's verdict on the reply. If a filter dropped the sample, the row also
holds the filter's name.

If any message has content parts, the file has format 2. In format 2, each message has a key `parts` with the message's content
as JSON. `content` in format 2 is the text of the message, with a label in place of each non-text part. A file without content
parts has format 1. Files of older versions lack the column `model`.

The file metadata has the keys `rorqual.format`, `rorqual.tokenizer` and `rorqual.vocab` (vocabulary size).
`rorqual.tokenizer` is the SHA-256 of the teacher's tokenizer.json.
`rorqual.tokenizer` is empty if the teacher is remote and returns no token ids.

At each position of `token_ids`, `top_ids` holds the teacher's k most likely tokens, and `top_logprobs` holds the
log-probabilities of these tokens at temperature 1.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from rorqual.core.content_parts import Content, content_json, read_content
from rorqual.core.errors import DataError
from rorqual.core.records import Message, Role, write_atomic
from rorqual.core.rows import name_file_in_parquet_errors

FORMAT_KEY, TOKENIZER_KEY, VOCAB_KEY = b"rorqual.format", b"rorqual.tokenizer", b"rorqual.vocab"
ROWS_AT_ONCE = 1024
MODEL = "model"
AGAIN = "Sample the teacher again."
VerdictName = Literal["right", "wrong", "ungraded"]
Ids = npt.NDArray[np.int32]
Logprobs = npt.NDArray[np.float32]

_ids = pa.list_(pa.int32())
_message = pa.struct([("role", pa.string()), ("content", pa.string()), ("reasoning", pa.string())])
_message_of_parts = pa.struct([*_message, ("parts", pa.string())])
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("family", pa.string()),
        ("level", pa.string()),
        ("prompt", pa.string()),
        ("messages", pa.list_(_message)),
        ("prompt_ids", _ids),
        ("token_ids", _ids),
        ("verdict", pa.string()),
        ("dropped", pa.string()),
        ("teacher", pa.string()),
        (MODEL, pa.string()),
        ("params", pa.string()),
        ("seed", pa.int64()),
        ("number", pa.int32()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("core_seconds", pa.float64()),
        ("money", pa.float64()),
        ("top_ids", pa.list_(_ids)),
        ("top_logprobs", pa.list_(pa.list_(pa.float32()))),
    ]
)
SCHEMAS = {
    "1": SCHEMA,
    "2": SCHEMA.set(SCHEMA.get_field_index("messages"), pa.field("messages", pa.list_(_message_of_parts))),
}
"""The Parquet schema of each file format."""


def empty_top_ids() -> Ids:
    """Return an array of shape [0, 0]: the `top_ids` of a sample without stored top-k tokens."""
    return np.zeros((0, 0), np.int32)


def empty_top_logprobs() -> Logprobs:
    """Return an array of shape [0, 0]: the `top_logprobs` of a sample without stored top-k tokens."""
    return np.zeros((0, 0), np.float32)


@dataclass(frozen=True, eq=False)
class TeacherSample:
    """One teacher sample. The last of `messages` is the teacher's reply.

    `teacher` names the run or server that was asked, and `model` the model that answered by the server's reply. `model` is ""
    for a local run and for a reply that names no model. `seed` is the seed of this sample: a request with `n=1` and this seed
    draws the same random numbers. `dropped` is the name of the filter that dropped the sample, or "". `params` holds the
    sampling parameters as JSON, and `number` is the index of the sample among all samples of the same problem. `core_seconds`
    is the CPU time of the sample, and `money` is its cost in the currency of the configured price. `top_ids` and
    `top_logprobs` have the shape [len(token_ids), k], or [0, 0] if no top-k tokens were stored.
    """

    key: str
    family: str
    level: str
    prompt: str
    messages: tuple[Message, ...]
    verdict: VerdictName
    teacher: str
    params: str
    seed: int
    number: int
    dropped: str = ""
    prompt_ids: Sequence[int] = ()
    token_ids: Sequence[int] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    core_seconds: float = 0.0
    money: float = 0.0
    model: str = ""
    top_ids: Ids = field(default_factory=empty_top_ids)
    top_logprobs: Logprobs = field(default_factory=empty_top_logprobs)


@dataclass(frozen=True)
class DistilledFile:
    """All teacher samples of a file, and the fingerprint and vocabulary size of the teacher's tokenizer.

    If the teacher returned no token ids, `tokenizer` is "" and `vocab` is 0.
    """

    rows: list[TeacherSample]
    tokenizer: str = ""
    vocab: int = 0

    @property
    def kept_samples(self) -> list[TeacherSample]:
        """The samples that no filter dropped."""
        return [row for row in self.rows if not row.dropped]


def write_distilled(path: Path, rows: Iterable[TeacherSample], *, tokenizer: str = "", vocab: int = 0) -> None:
    """Write samples to a Parquet file atomically. Files with equal samples have identical bytes."""
    sink, samples = io.BytesIO(), list(rows)
    format_ = "1" if all(isinstance(m.content, str) for row in samples for m in row.messages) else "2"
    schema = SCHEMAS[format_].with_metadata({FORMAT_KEY: format_, TOKENIZER_KEY: tokenizer, VOCAB_KEY: str(vocab)})
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for start in range(0, max(len(samples), 1), ROWS_AT_ONCE):
            writer.write_table(_table(samples[start : start + ROWS_AT_ONCE], SCHEMAS[format_]))
    write_atomic(path, sink.getvalue())


def _table(rows: Sequence[TeacherSample], schema: pa.Schema) -> pa.Table:
    nested = {"messages", "top_ids", "top_logprobs"}
    columns: dict[str, Any] = {}
    for column in schema:
        if column.name not in nested:
            columns[column.name] = pa.array([getattr(row, column.name) for row in rows], column.type)
    columns["messages"] = pa.array(
        [[_message_row(message) for message in row.messages] for row in rows], schema.field("messages").type
    )
    columns["top_ids"] = _nested_list_column([row.top_ids for row in rows], pa.int32())
    columns["top_logprobs"] = _nested_list_column([row.top_logprobs for row in rows], pa.float32())
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _message_row(message: Message) -> dict[str, Any]:
    text = isinstance(message.content, str)
    parts = None if text else json.dumps(content_json(message.content), ensure_ascii=False)
    return {"role": message.role, "content": message.label, "reasoning": message.reasoning, "parts": parts}


def _nested_list_column(arrays: Sequence[npt.NDArray[Any]], kind: pa.DataType) -> pa.Array:
    """Convert arrays of shape [tokens, k] to an Arrow column of nested lists, without a Python object for each
    number."""
    widths = np.concatenate([np.full(a.shape[0], a.shape[1], np.int32) for a in arrays] or [np.zeros(0, np.int32)])
    values = np.concatenate([a.reshape(-1) for a in arrays] or [np.zeros(0)])
    inner = pa.ListArray.from_arrays(_list_offsets(widths), pa.array(values, kind))
    return pa.ListArray.from_arrays(_list_offsets([a.shape[0] for a in arrays]), inner)


def _list_offsets(lengths: Any) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), pa.int32())


def is_distilled(path: Path) -> bool:
    """Return whether `path` is a Parquet file that `write_distilled` wrote. If the file is missing, return False."""
    try:
        return FORMAT_KEY in (pq.read_schema(path).metadata or {})
    except (OSError, pa.ArrowException):
        return False


def read_distilled(path: Path) -> DistilledFile:
    """Read all samples of a file that `write_distilled` wrote.

    Raises a DataError that names the file if the file is missing, corrupt or empty, or has an unknown format.
    """
    table = _read_table(path, SCHEMA.names)
    metadata = table.schema.metadata
    rows: list[TeacherSample] = []
    for batch in table.to_batches(ROWS_AT_ONCE):
        rows += _samples_of_batch(batch, path, len(rows) + 1)
    if not rows:
        raise DataError("the file has no samples", where=str(path), remedy=AGAIN)
    return DistilledFile(rows, metadata[TOKENIZER_KEY].decode(), int(metadata[VOCAB_KEY]))


def read_kept_messages(path: Path) -> tuple[dict[int, tuple[Message, ...]], int]:
    """Return the samples that no filter dropped, as a dictionary from row number to messages.

    Also return the number of samples that a filter dropped.
    """
    rows = _read_table(path, ["messages", "dropped"]).to_pylist()
    kept = {
        number: _parse_messages(row["messages"], f"{path}:row {number}")
        for number, row in enumerate(rows, start=1)
        if not row["dropped"]
    }
    return kept, len(rows) - len(kept)


def _read_table(path: Path, columns: list[str]) -> pa.Table:
    """Read columns of a file of teacher samples. Raises DataError if the file does not have the columns of its format, or if a
    value is null."""
    with name_file_in_parquet_errors(path):
        format_ = (pq.read_schema(path).metadata or {}).get(FORMAT_KEY, b"none").decode("utf-8", "replace")
        if format_ not in SCHEMAS:
            raise DataError(
                f"not a file of teacher samples in format {' or '.join(SCHEMAS)} (found: {format_})",
                where=str(path),
                remedy="Give the data.parquet that `rorqual distil` wrote.",
            )
        if MODEL not in pq.read_schema(path).names:
            columns = [name for name in columns if name != MODEL]
        table = pq.read_table(path, columns=columns)
    schema = pa.schema([SCHEMAS[format_].field(name) for name in columns])
    if not table.schema.equals(schema) or any(column.null_count for column in table.columns):
        raise DataError("the columns are not those of a file of teacher samples", where=str(path), remedy=AGAIN)
    return table


def _samples_of_batch(batch: pa.RecordBatch, path: Path, first: int) -> Iterator[TeacherSample]:
    plain = batch.drop_columns(["top_ids", "top_logprobs"]).to_pylist()
    top = zip(
        _column_arrays(batch.column("top_ids"), np.int32), _column_arrays(batch.column("top_logprobs"), np.float32)
    )
    for number, (row, (top_ids, top_logprobs)) in enumerate(zip(plain, top, strict=True), start=first):
        row["messages"] = _parse_messages(row["messages"], f"{path}:row {number}")
        yield TeacherSample(**row, top_ids=top_ids, top_logprobs=top_logprobs)


def _parse_messages(rows: list[dict[str, Any]], where: str) -> tuple[Message, ...]:
    """Read the messages of a sample. Raises DataError if the last message is not an assistant turn."""
    messages = tuple(Message(row["role"], _content(row, where), row["reasoning"]) for row in rows)
    if not messages or messages[-1].role != "assistant" or any(m.role not in get_args(Role) for m in messages):
        raise DataError("the messages do not end with an assistant turn", where=where, remedy=AGAIN)
    return messages


def _content(row: dict[str, Any], where: str) -> Content:
    parts = row.get("parts")
    return row["content"] or "" if parts is None else read_content(json.loads(parts), f"{where}: parts")


def _column_arrays(column: pa.ListArray, kind: Any) -> Iterator[npt.NDArray[Any]]:
    for scalar in column:
        tokens = scalar.values
        if not len(tokens):
            yield np.zeros((0, 0), kind)
            continue
        yield tokens.flatten().to_numpy(zero_copy_only=False).astype(kind).reshape(len(tokens), -1)
