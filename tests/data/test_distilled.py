"""The Parquet file of a teacher's samples: what is written is read, and fine-tuning reads what was kept."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rorqual.core.errors import DataError
from rorqual.core.records import Message
from rorqual.data.chat import chat_format
from rorqual.data.distilled import SCHEMA, TeacherSample, is_distilled, read_distilled, write_distilled
from rorqual.data.source.conversations import read_conversations
from rorqual.data.tokenizer import Tokenizer
from rorqual.model import build
from rorqual.recipes.models import v3_like
from rorqual.train.sources import ConversationsConfig, SourceInputs


def row(number: int = 0, *, dropped: str = "", tokens: int = 0, k: int = 0, **changes: Any) -> TeacherSample:
    rng = np.random.default_rng(number)
    messages = (Message("user", "2+2?"), Message("assistant", f"4 ({number})", "two\u2028and two"))
    made = TeacherSample(
        "k", "add", "1", "2+2?", messages, "right", "run@step-000003", "{}", 7, number,
        dropped=dropped, prompt_ids=[1, 2], token_ids=list(range(tokens)), prompt_tokens=2, completion_tokens=tokens,
        core_seconds=0.25, money=0.5,
        top_ids=rng.integers(0, 99, (tokens, k), np.int32), top_logprobs=rng.normal(size=(tokens, k)).astype(np.float32),
    )  # fmt: skip
    return replace(made, **changes)


def same(one: TeacherSample, other: TeacherSample) -> bool:
    pairs = [(getattr(one, f.name), getattr(other, f.name)) for f in fields(TeacherSample)]
    return all(
        np.array_equal(a, b) and a.shape == b.shape and a.dtype == b.dtype if isinstance(a, np.ndarray) else a == b
        for a, b in pairs
    )


# No lone surrogates: they are not text, and UTF-8 has no bytes for them.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(texts, st.none() | texts, st.integers(0, 5), st.sampled_from(["", "length"])), min_size=1),
    st.sampled_from([0, 1, 3]),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, given_rows: list[tuple[str, str | None, int, str]], k: int
) -> None:
    rows = []
    for number, (text, reasoning, tokens, dropped) in enumerate(given_rows):
        messages = (Message("user", text), Message("assistant", text, reasoning))
        rows.append(row(number, dropped=dropped, tokens=tokens, k=k if tokens else 0, prompt=text, messages=messages))
    path = tmp_path_factory.mktemp("parquet") / "data.parquet"
    write_distilled(path, rows, tokenizer="abc", vocab=263)
    found = read_distilled(path)
    assert all(same(a, b) for a, b in zip(found.rows, rows, strict=True))
    assert (found.tokenizer, found.vocab) == ("abc", 263)
    assert [r.number for r in found.kept_samples] == [r.number for r in rows if not r.dropped]


def test_the_same_rows_give_the_same_bytes_and_the_agreed_columns(tmp_path: Path) -> None:
    one, other = tmp_path / "a.parquet", tmp_path / "b.parquet"
    for path in (one, other):
        write_distilled(path, [row(i, tokens=i, k=2 if i else 0) for i in range(1500)])
    assert one.read_bytes() == other.read_bytes()
    assert pq.read_schema(one).equals(SCHEMA)
    assert pq.read_schema(one).names == [f.name for f in SCHEMA]
    assert len(read_distilled(one).rows) == 1500


def test_a_file_of_an_older_version_names_no_model(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    write_distilled(path, [row(0, model="adder-2024"), row(1)])
    assert [one.model for one in read_distilled(path).rows] == ["adder-2024", ""]
    pq.write_table(pq.read_table(path).drop_columns(["model"]), path)
    assert [one.model for one in read_distilled(path).rows] == ["", ""]
    assert read_conversations(path).conversations == [row(0).messages, row(1).messages]


def test_fine_tuning_reads_what_was_kept(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    write_distilled(path, [row(0), row(1, dropped="wrong"), row(2)])
    loaded = read_conversations(path)
    assert loaded.conversations == [row(0).messages, row(2).messages] and loaded.skipped == 1
    tokenizer = Tokenizer.byte_level()
    model = build(v3_like("tiny", vocab_size=tokenizer.vocab_size, context=128), seed=0)
    materials = SourceInputs(model=model, tokenizer=tokenizer, chat=chat_format(tokenizer), seed=0, threads=1)
    step = ConversationsConfig(data=str(path), rows=1, row=128).build(materials).step(0)
    text = tokenizer.decode(step.batches[0].tokens.flatten().tolist())
    assert "two\u2028and two" in text and "(1)" not in text
    assert any("skipped 1" in note for note in step.notes)


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    write_distilled(path, [row(0, dropped="wrong")])
    assert is_distilled(path)
    with pytest.raises(DataError, match=r"(?s)data.parquet.*all 1 samples were dropped"):
        read_conversations(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"data.parquet: not Parquet"):
        read_distilled(path)
    with pytest.raises(DataError, match="no such file"):
        read_distilled(tmp_path / "none.parquet")
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"prompt": ["2+2?"], "completion": ["4"]}), other)
    assert not is_distilled(other)
    with pytest.raises(
        DataError, match=r"(?s)not a file of teacher samples in format 1 or 2 \(found: none\).*rorqual distil"
    ):
        read_distilled(other)
    assert read_conversations(other).conversations == [(Message("user", "2+2?"), Message("assistant", "4"))]
    write_distilled(path, [])
    with pytest.raises(DataError, match="no sample"):
        read_distilled(path)


def poisoned(path: Path, name: str, value: Any) -> None:
    """The file with a value, or a whole column of another type, in the second of three rows."""
    write_distilled(path, [row(n, tokens=2, k=2) for n in range(3)], tokenizer="abc", vocab=263)
    table = pq.read_table(path)
    column = table.schema.get_field_index(name)
    if isinstance(value, pa.Array):
        table = table.set_column(column, name, value)
    else:
        values = table.column(name).to_pylist()
        values[1] = value
        table = table.set_column(
            column, table.schema.field(column), [pa.array(values, table.schema.field(column).type)]
        )
    pq.write_table(table, path)


USER, REPLY = ({"role": role, "content": "a", "reasoning": None} for role in ("user", "assistant"))
POISONS: list[tuple[str, Any, str]] = [
    *((name, None, r"parquet: the columns are not those") for name in ("key", "messages", "dropped", "top_ids")),
    *(
        (name, pa.array([[{"a": 1}]] * 3), "parquet: the columns are not those")
        for name in ("messages", "dropped", "seed")
    ),
    ("messages", [], "row 2: the messages do not end with an assistant turn"),
    ("messages", [USER], "row 2: the messages do not end with an assistant turn"),
    ("messages", [USER | {"role": "bot"}, REPLY], "row 2: the messages do not end with an assistant turn"),
]


@pytest.mark.parametrize(("name", "value", "said"), POISONS, ids=[f"{n}-{s[:28]}" for n, _, s in POISONS])
def test_a_field_that_is_null_or_of_another_type_is_named(tmp_path: Path, name: str, value: Any, said: str) -> None:
    path = tmp_path / "data.parquet"
    poisoned(path, name, value)
    with pytest.raises(DataError, match=said) as caught:
        read_distilled(path)
    assert caught.value.remedy
    if name in ("messages", "dropped"):
        with pytest.raises(DataError, match=said):
            read_conversations(path)
