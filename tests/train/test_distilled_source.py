"""A teacher's samples as batches: what was drawn is what is trained, the reply alone, with the distribution of its own place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from little import ROW, tiny, tokenizer, update_of

from rorqual.core.errors import ConfigError, DataError
from rorqual.core.records import Message
from rorqual.data.chat import chat_format
from rorqual.data.distilled import TeacherSample, write_distilled
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Engine, Request, SamplingParams
from rorqual.engine.score import next_logprobs, score
from rorqual.model import Decoder
from rorqual.recipes import make_run
from rorqual.train.objectives import Distil
from rorqual.train.sources import DistilledConfig, Source, SourceInputs

TOP_K = 6


def sampled(engine: Engine, *, n: int = 4, top_k: int = TOP_K, **changes: Any) -> list[TeacherSample]:
    """What a teacher answers to nine prompts, `n` times each, with its likeliest tokens."""
    prompts = [f"after {letter}" for letter in "abcdefghi"]
    params = SamplingParams(max_tokens=14, temperature=1.0, n=n)
    asked = [Request((Message("user", p),), replace(params, seed=i)) for i, p in enumerate(prompts)]
    rows = []
    for prompt, group in zip(prompts, engine.generate(asked)):
        pairs = [(one.prompt_ids, one.token_ids) for one in group]
        for number, (one, (ids, logprobs)) in enumerate(zip(group, score(engine.scoring_model, pairs, top_k))):
            reply = Message(
                "assistant", one.text if one.text.strip() else "-", one.reasoning
            )  # an empty answer is left out
            row = TeacherSample(
                key=prompt, family="letters", level="", prompt=prompt, messages=(Message("user", prompt), reply),
                verdict="right", teacher="run", params="{}", seed=0, number=number, prompt_ids=one.prompt_ids,
                token_ids=one.token_ids, top_ids=ids, top_logprobs=logprobs,
            )  # fmt: skip
            rows.append(replace(row, **changes))
    return rows


@pytest.fixture(scope="module")
def teacher(base: Path) -> Engine:
    return Engine(base, backend="torch-invariant")


@pytest.fixture(scope="module")
def rows(teacher: Engine) -> list[TeacherSample]:
    return sampled(teacher)


def write(folder: Path, rows: Sequence[TeacherSample], *, ids: Tokenizer | None = None) -> str:
    ids = ids or tokenizer()
    write_distilled(folder / "data.parquet", rows, tokenizer=ids.fingerprint, vocab=ids.vocab_size)
    return str(folder / "data.parquet")


def source(data: str, model: Decoder | None = None, *, seed: int = 0, **settings: Any) -> Source:
    config = DistilledConfig(data=data, **({"row": ROW, "rows": 3} | settings))
    ids = tokenizer()
    return config.build(SourceInputs(model or Decoder(tiny()), ids, chat_format(ids), seed, 1))


def documents(source: Source, step: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The ids of each document of a batch, and those of them that are trained."""
    (batch,) = source.step(step).batches
    found = []
    for tokens, targets, mask, segments in zip(batch.tokens, batch.targets, batch.loss_mask, batch.segments):
        for number in range(int(segments.max()) + 1):
            here = segments == number
            trained = targets[here & (mask > 0)]
            found.append((tuple(tokens[here].tolist()), tuple(trained.tolist())))
    return found


@pytest.mark.parametrize("logits", [False, True])
def test_it_trains_the_reply_as_it_was_drawn_and_nothing_else(
    rows: list[TeacherSample], tmp_path: Path, logits: bool
) -> None:
    known = {(*one.prompt_ids, *one.token_ids): tuple(one.token_ids) for one in rows}
    got = [one for step in range(3) for one in documents(source(write(tmp_path, rows), logits=logits), step)]
    assert len(got) > 12 and all(known[ids] == trained for ids, trained in got)


def test_the_teachers_row_lies_where_it_predicts(teacher: Engine, rows: list[TeacherSample], tmp_path: Path) -> None:
    """A student that is the teacher has nothing to learn from its own log-probabilities; one place off it would have."""
    (batch,) = source(write(tmp_path, rows), teacher.model, logits=True).step(0).batches
    assert batch.teacher_ids is not None and batch.teacher_logprobs is not None
    at = batch.loss_mask.nonzero(as_tuple=True)
    own = next_logprobs(teacher.model, batch.tokens, batch.positions, batch.segments, batch.loss_mask)
    assert float((own.gather(1, batch.teacher_ids[at]) - batch.teacher_logprobs[at]).abs().max()) <= 1e-4
    update = update_of(teacher.model, (Distil(),), batch)
    assert abs(update.loss) <= 1e-5 and max(float(grad.abs().max()) for grad in update.grads) <= 1e-4
    off = [
        replace(one, top_ids=np.roll(one.top_ids, 1, 0), top_logprobs=np.roll(one.top_logprobs, 1, 0)) for one in rows
    ]
    (wrong,) = source(write(tmp_path, off), teacher.model, logits=True).step(0).batches
    assert update_of(teacher.model, (Distil(),), wrong).loss > 0.5


def test_what_a_filter_dropped_is_never_seen(rows: list[TeacherSample], tmp_path: Path) -> None:
    marked = [replace(one, dropped="wrong" if number % 3 else "") for number, one in enumerate(rows)]
    kept = {(*one.prompt_ids, *one.token_ids) for one in marked if not one.dropped}
    one = source(write(tmp_path, marked))
    assert {ids for step in range(6) for ids, _ in documents(one, step)} == kept
    said = source(write(tmp_path, marked)).step(0).notes
    assert said == [f"{tmp_path / 'data.parquet'}: 12 samples, 24 dropped by filters, 0 longer than a row"]
    with pytest.raises(DataError, match="all 36 samples were dropped"):
        source(write(tmp_path, [replace(one, dropped="wrong") for one in rows]))


@pytest.mark.parametrize("words", [False, True], ids=["ids", "words"])
def test_empty_answers_are_left_out_and_counted_and_an_empty_prompt_is_refused(
    words: bool, rows: list[TeacherSample], tmp_path: Path
) -> None:
    end = chat_format(tokenizer()).stop_ids[0]
    gone: dict[str, Any] = {"prompt_ids": (), "token_ids": ()} if words else {"token_ids": [end]}
    gone |= {"top_ids": rows[0].top_ids[:1], "top_logprobs": rows[0].top_logprobs[:1]} if not words else {}
    said = [replace(one, messages=(one.messages[0], Message("assistant", " \n\u3000")), **gone) for one in rows[:3]]
    one = source(write(tmp_path, [*rows[3:], *said]))
    assert "33 samples, 0 dropped by filters, 0 longer than a row, 3 with an empty answer" in one.step(0).notes[0]
    with pytest.raises(DataError, match="all 3 samples were dropped or have an empty answer"):
        source(write(tmp_path, said))
    asked = replace(rows[1], messages=(Message("user", "\t "), rows[1].messages[1]))
    with pytest.raises(DataError, match=r"data.parquet:row 2: message 1: an empty prompt"):
        source(write(tmp_path, [rows[0], asked]))


def test_what_was_cut_off_in_a_thought_is_no_empty_answer(rows: list[TeacherSample], tmp_path: Path) -> None:
    """The filters judge it, and by `keep=all` a user wants it."""
    cut = replace(rows[0], messages=(rows[0].messages[0], Message("assistant", "", "thinking")), token_ids=[97, 98],
                  top_ids=rows[0].top_ids[:2], top_logprobs=rows[0].top_logprobs[:2])  # fmt: skip
    assert "1 samples" in source(write(tmp_path, [cut])).step(0).notes[0]


def test_another_vocabulary_is_refused_with_what_to_do(rows: list[TeacherSample], tmp_path: Path) -> None:
    other = Tokenizer.byte_level(["after after after"] * 9, vocab_size=270)
    for logits in (False, True):
        with pytest.raises(DataError, match=r"tokenizer=TEACHER/tokenizer.json, or .*train sft data=.*data.parquet"):
            source(write(tmp_path, rows, ids=other), logits=logits)
    ours = tokenizer()
    swapped = Tokenizer(ours.source.replace("<｜User｜>", "<a>").replace("<｜Assistant｜>", "<b>"))  # of one size
    for print_, vocab in ((swapped.fingerprint, ours.vocab_size), (ours.fingerprint, ours.vocab_size + 1)):
        write_distilled(tmp_path / "data.parquet", rows, tokenizer=print_, vocab=vocab)
        with pytest.raises(DataError, match="differs from the student's"):
            source(str(tmp_path / "data.parquet"))
    words = [replace(one, prompt_ids=(), token_ids=()) for one in rows]  # a teacher whose ids we do not hold
    assert documents(source(write(tmp_path, words, ids=other)), 0)


def test_a_teacher_whose_ids_we_do_not_hold_is_rendered(rows: list[TeacherSample], tmp_path: Path) -> None:
    chat = chat_format(tokenizer())
    words = [replace(one, prompt_ids=(), token_ids=(), top_ids=rows[0].top_ids[:0, :0],
                     top_logprobs=rows[0].top_logprobs[:0, :0]) for one in rows]  # fmt: skip
    known = {tuple(chat.render(one.messages).ids) for one in words}
    assert {ids for ids, _ in documents(source(write(tmp_path, words)), 0)} <= known
    with pytest.raises(DataError, match="stored: none"):
        source(write(tmp_path, words), logits=True)


def test_rows_with_distributions_of_two_widths_are_refused(rows: list[TeacherSample], tmp_path: Path) -> None:
    wrong = replace(rows[4], top_ids=rows[4].top_ids[:, :3], top_logprobs=rows[4].top_logprobs[:, :3])
    with pytest.raises(DataError, match="stored: 3, 6 tokens"):
        source(write(tmp_path, [*rows[:4], wrong, *rows[5:]]), logits=True)
    source(write(tmp_path, [*rows[:4], replace(wrong, dropped="length"), *rows[5:]]), logits=True)


def test_a_run_is_refused_whose_source_has_no_distributions(rows: list[TeacherSample], tmp_path: Path) -> None:
    given = {"data": write(tmp_path, rows), "size": "tiny-student", "row": str(ROW), "objective": "forward"}
    with pytest.raises(ConfigError, match="teacher_logprobs"):
        make_run("distil", given | {"source.logits": "false"})
