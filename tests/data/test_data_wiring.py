"""What comes after the first piece of a file, the first epoch or the first key counts like what comes before."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rorqual.core.errors import DataError
from rorqual.core.records import Message, RunDir
from rorqual.data.chat import DeepSeekChat
from rorqual.data.distilled import TeacherSample, read_distilled, write_distilled
from rorqual.data.fingerprint import fingerprint
from rorqual.data.pack import TrainingSample, pack_rows
from rorqual.data.source.conversations import read_conversations
from rorqual.data.stream import ConversationStream, GeneratedStream, TextStream
from rorqual.data.tokenizer import Tokenizer

MANY = 2100
"""Rows of more than two of the pieces that Parquet files are read in."""
CHAT = DeepSeekChat(Tokenizer.byte_level())


# ---- files of several pieces


def row(number: int, *, k: int = 2, **changes: Any) -> TeacherSample:
    messages = (Message("user", f"q{number}"), Message("assistant", f"a{number}", f"t{number}" if number % 2 else None))
    ids = [number, number + 1, number + 2][: 1 + number % 3]
    made = TeacherSample("k", "f", "1", f"q{number}", messages, "right", "t", "{}", 7, number, prompt_ids=[1], token_ids=ids,
                     top_ids=np.full((len(ids), k), number, np.int32), top_logprobs=np.full((len(ids), k), -number, np.float32))  # fmt: skip
    return replace(made, **changes)


def test_a_file_of_samples_keeps_each_with_its_own_alternatives_and_number(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    rows = [row(n, dropped="wrong" if n in (1023, 1024, 2099) else "", k=n % 4) for n in range(MANY)]
    write_distilled(path, rows)
    found = read_distilled(path).rows
    assert [one.number for one in found] == list(range(MANY))
    for one, wanted in zip(found, rows, strict=True):
        assert (list(one.token_ids), one.messages) == (wanted.token_ids, wanted.messages)
        assert (
            one.top_ids.tolist() == wanted.top_ids.tolist()
            and one.top_logprobs.tolist() == wanted.top_logprobs.tolist()
        )
    rows[7] = replace(rows[7], messages=(rows[7].messages[0], Message("assistant", " \n")))
    write_distilled(path, rows)
    loaded = read_conversations(path)
    assert loaded.skipped == 4, "three that a filter dropped, and one that says nothing"
    assert len(loaded.conversations) == MANY - 4
    assert loaded.conversations == [one.messages for one in rows if not one.dropped and one.number != 7]


@pytest.mark.parametrize("bad", [1024, MANY - 1])
@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ((Message("wizard", "q"), Message("assistant", "a")), "the messages do not end with an assistant turn"),  # type: ignore[arg-type]
        ((Message("user", "q"),), "the messages do not end with an assistant turn"),
        ((Message("user", " "), Message("assistant", "a")), "an empty prompt"),
    ],
)
def test_a_fault_in_a_file_of_samples_is_named_by_its_row(
    bad: int, messages: tuple[Message, ...], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "d.parquet"
    rows = [row(n) for n in range(MANY)]
    rows[bad] = replace(rows[bad], messages=messages)
    write_distilled(path, rows)
    with pytest.raises(DataError, match=said) as caught:
        read_conversations(path)
    assert re.match(rf"{path}:row {bad + 1}(?!\d)", caught.value.where)


# ---- keys of a row


def read(folder: Path, *rows: dict[str, Any]) -> list[tuple[Message, ...]]:
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return read_conversations(folder / "data.jsonl").conversations


def test_each_pair_of_keys_and_each_name_of_reasoning_is_read(tmp_path: Path) -> None:
    wanted = (Message("user", "q"), Message("assistant", "a", "r"))
    pairs = (("prompt", "completion"), ("question", "answer"))
    rows: list[dict[str, Any]] = [
        {ask: "q", reply: "a", name: "r"} for ask, reply in pairs for name in ("reasoning", "reasoning_content")
    ]
    # A table gives a row the columns of the others, without a value.
    rows += [
        row | {"messages": None, "reasoning_content": row.get("reasoning_content"), "reasoning": row.get("reasoning")}
        for row in rows
    ]
    rows += [{"prompt": None, "completion": None, "question": "q", "answer": "a", "reasoning": "r"}]
    assert read(tmp_path, *rows) == [wanted] * 9
    with pytest.raises(DataError, match="key 'completion' is null"):
        read(tmp_path, {"prompt": "q", "completion": None, "question": "q", "answer": "a"})


def test_the_thought_of_an_answer_is_its_first_block_and_white_space_beside_the_marks_goes(tmp_path: Path) -> None:
    for text, reasoning, content in ((" <think> a </think>\n b ", "a", "b"), ("<think></think>b", "", "b"),
                                     ("<think>a</think>b</think>c", "a", "b</think>c"),
                                     ("b <think>a</think>", None, "b <think>a</think>")):  # fmt: skip
        assert read(tmp_path, {"prompt": "q", "completion": text})[0][1] == Message("assistant", content, reasoning)
    said = [{"role": "user", "content": "<think>x"}, {"role": "assistant", "content": "a"}]
    assert read(tmp_path, {"messages": said})[0][0] == Message("user", "<think>x"), "only the assistant thinks"
    with pytest.raises(DataError, match="reasoning is given twice"):
        read(tmp_path, {"prompt": "q", "completion": "<think>a</think>b", "reasoning": "c"})


# ---- rows


@pytest.mark.parametrize("pad", [0, 9])
def test_streams_pad_with_what_they_are_told(pad: int) -> None:
    samples = [TrainingSample([3] * 5, [True] * 5), TrainingSample([4] * 4, [True] * 4)]
    streams = [
        ConversationStream(samples, 2, 16, 0, pad=pad),
        GeneratedStream(lambda rng: samples[0], 2, 16, 0, pad=pad),
    ]
    for batch in (stream.batch(0) for stream in streams):
        empty = batch.segments < 0
        assert empty.any() and (batch.tokens[empty] == pad).all() and (batch.targets[empty] == pad).all()


def test_a_finished_epoch_is_counted_in_whole_steps() -> None:
    stream = TextStream(np.arange(33, dtype=np.int64), 3, 8, 0)
    assert (stream.n_chunks, [stream.steps_for_epochs(n) for n in range(4)]) == (4, [0, 2, 3, 4])
    assert TextStream(np.arange(34, dtype=np.int64), 3, 8, 0).n_chunks == 5
    talk = ConversationStream([TrainingSample([1] * 8, [True] * 8)] * 4, 3, 8, 0)
    assert [talk.steps_for_epochs(n) for n in range(4)] == [0, 2, 3, 4]


def test_one_sample_twice_in_a_batch_lies_in_each_of_its_places() -> None:
    """Two epochs may meet in a batch; `pack_rows` knows samples by their number."""
    stream = ConversationStream([TrainingSample([7, 8, 9], [True] * 3)], 4, 3, 0)
    assert stream.batch(0).tokens.tolist() == [[7, 8, 9]] * 4 == stream.batch(5).tokens.tolist()
    packed = pack_rows([TrainingSample([1, 2], [True] * 2), TrainingSample([3, 4, 5], [True] * 3)], [[1], [0]], 4)
    assert packed.places == [(1, 0, 2), (0, 0, 3)]


def test_two_misses_end_a_generated_batch() -> None:
    """A sample that finds no room is dropped, and the one after it may still find some."""
    lengths: list[int] = []

    def make(rng: Any) -> TrainingSample:
        lengths.append(8 if len(lengths) in (1, 3) else 3)
        return TrainingSample([len(lengths)] * lengths[-1], [True] * lengths[-1])

    batch = GeneratedStream(make, 1, 10, 0).batch(0)
    assert lengths == [3, 8, 3, 8] and batch.tokens[0].tolist() == [1, 1, 1, 3, 3, 3, 0, 0, 0, 0]
    lengths.clear()
    batch = GeneratedStream(make, 1, 10, 0, misses=1).batch(0)
    assert lengths == [3, 8] and batch.n_tokens == 3


# ---- rendering


def turns(*answers: tuple[str, str | None]) -> Sequence[Message]:
    return [m for n, (a, r) in enumerate(answers) for m in (Message("user", f"q{n}"), Message("assistant", a, r))]


def test_turns_from_the_one_named_on_are_trained_where_they_stand_as_they_were_written() -> None:
    messages = turns(("a0", None), ("a1", "x"), ("a2", None))
    for start in range(7):
        one = CHAT.render(messages, train_from=start)
        said = CHAT.tokenizer.decode([id_ for id_, on in zip(one.ids, one.mask) if on])
        assert said == "a0" * (start <= 1) + "a2" * (start <= 5), "a1 stands there without its reasoning"
        assert len(one.mask) == len(one.ids) and one.ids == CHAT.render(messages).ids
        assert one.n_trained_tokens == sum(one.mask[1:])


def test_a_fingerprint_is_of_weights_settings_tokenizer_and_template(tmp_path: Path) -> None:
    run, step = RunDir(tmp_path), tmp_path / "step-1"
    step.mkdir()
    parts = (run.config_file, run.tokenizer_file, tmp_path / "chat_template.jinja", step / "model.safetensors")
    for file in parts:
        file.write_text("one", encoding="utf-8")
    seen = {fingerprint(run, step)}
    for file in parts:
        file.write_text("two", encoding="utf-8")
        seen.add(fingerprint(run, step))
    assert len(seen) == 1 + len(parts)
    (step / "optim.safetensors").write_text("more", encoding="utf-8")
    assert fingerprint(run, step) in seen, "training's own files do not count"
