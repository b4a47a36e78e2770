"""A source of teacher samples from a file of `rorqual distil`, optionally with the teacher's log-probabilities."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from rorqual.core.config import RowLength, Rows
from rorqual.core.conversations import refuse_empty_prompt
from rorqual.core.errors import DataError
from rorqual.core.records import is_blank_message
from rorqual.data.distilled import DistilledFile, TeacherSample, read_distilled
from rorqual.data.pack import PackedSamples, TrainingSample
from rorqual.data.stream import ConversationStream
from rorqual.data.tokenizer import Tokenizer
from rorqual.train.batch import TrainBatch
from rorqual.train.sources.source import Source, SourceConfig, SourceInputs, StepBatches


class DistilledConfig(SourceConfig):
    """Train on `data`, a Parquet file written by `rorqual distil`. Every sample is used once per epoch.

    Samples that a filter dropped are not used. A step has `rows` rows of `row` tokens. `logits` adds to the batches the
    teacher's stored log-probabilities, which the objective `distil` needs. `longer` sets whether a sample longer than a row is
    an error or is skipped and counted.
    """

    kind: Literal["distilled"] = "distilled"
    data: str
    logits: bool = False
    longer: Literal["error", "skip"] = "error"
    rows: Rows = 32
    row: RowLength = 128

    def build(self, materials: SourceInputs) -> Source:
        return DistilledSamples(self, materials)

    def provided_batch_fields(self) -> frozenset[str]:
        return frozenset({"teacher_ids", "teacher_logprobs"} if self.logits else ())

    def texts(self) -> Iterator[str]:
        for one in read_distilled(Path(self.data)).kept_samples:
            for message in one.messages:
                yield f"{message.reasoning or ''} {message.text}"


class DistilledSamples(Source):
    """A source that trains on the exact token ids that the teacher sampled.

    If the file has no token ids, the file's messages are rendered and tokenized.
    """

    def __init__(self, config: DistilledConfig, materials: SourceInputs) -> None:
        self.config = config
        file = read_distilled(Path(config.data))
        for number, one in enumerate(file.rows, start=1):
            if not one.dropped:
                refuse_empty_prompt(one.messages, f"{config.data}:row {number}")
        kept = [one for one in file.kept_samples if not is_empty_answer(one, materials.chat.stop_ids)]
        if not kept:
            raise DataError(
                f"all {len(file.rows)} samples were dropped or have an empty answer",
                where=config.data,
                remedy="Sample more, or filter less. Column 'dropped' names the filter that dropped each sample.",
            )
        check_teacher_file(file, materials.tokenizer, config)
        pairs = [pair for one in kept for pair in _samples(one, materials)]
        fit = [(sample, one) for sample, one in pairs if len(sample) <= config.row]
        longest = max(len(sample) for sample, _ in pairs)
        if not fit or (len(fit) < len(pairs) and config.longer == "error"):
            raise DataError(
                f"{len(pairs) - len(fit)} of {len(pairs)} samples are longer than a row of {config.row} tokens (the longest: {longest})",
                where=config.data,
                remedy=f"Set row={longest} or source.longer=skip.",
            )
        samples, self.rows = [sample for sample, _ in fit], [one for _, one in fit]
        self.stream = ConversationStream(samples, config.rows, config.row, materials.seed, pad=materials.chat.pad)
        filtered, longer = len(file.rows) - len(file.kept_samples), len(pairs) - len(fit)
        silent = len(file.kept_samples) - len(kept)
        self.notes = [
            f"{config.data}: {len(fit)} samples, {filtered} dropped by filters, {longer} longer than a row"
            + f", {silent} with an empty answer" * bool(silent)
        ]

    def step(self, step: int) -> StepBatches:
        packed, numbers = self.stream.pack(step)
        notes, self.notes = self.notes, []
        if self.config.logits:
            return StepBatches([pack_teacher_batch(packed, [self.rows[number] for number in numbers])], notes=notes)
        return StepBatches([TrainBatch.from_packed(packed.batch)], notes=notes)


def is_empty_answer(one: TeacherSample, stops: Collection[int]) -> bool:
    """Return whether the teacher's answer is empty.

    A sample that was truncated while thinking does not count as empty, because filters handle truncated samples.
    """
    cut_off = len(one.token_ids) and one.token_ids[-1] not in stops and one.messages[-1].reasoning
    return is_blank_message(one.messages[-1]) and not cut_off


def pack_teacher_batch(packed: PackedSamples, rows: Sequence[TeacherSample]) -> TrainBatch:
    """Build a training batch with the teacher's most likely tokens and their log-probabilities.

    Row i of `top_ids` belongs to the distribution of reply token i. This distribution is stored at the position that predicts
    reply token i.
    """
    batch = TrainBatch.from_packed(packed.batch)
    shape = (*batch.tokens.shape, rows[0].top_ids.shape[1])
    ids, logprobs = torch.zeros(shape, dtype=torch.long), torch.zeros(shape)
    for (row, start, length), one in zip(packed.places, rows, strict=True):
        reply = slice(start + len(one.prompt_ids) - 1, start + length - 1)
        ids[row, reply] = torch.from_numpy(one.top_ids.astype(np.int64))
        logprobs[row, reply] = torch.from_numpy(one.top_logprobs)
    return TrainBatch(
        batch.tokens,
        batch.targets,
        batch.loss_mask,
        batch.segments,
        batch.positions,
        teacher_ids=ids,
        teacher_logprobs=logprobs,
    )


def check_teacher_file(file: DistilledFile, tokenizer: Tokenizer, config: DistilledConfig) -> None:
    """Raise DataError if the file's token ids belong to another tokenizer, or if required log-probabilities are missing."""
    has_ids = any(len(one.token_ids) for one in file.kept_samples)
    if has_ids and (file.tokenizer != tokenizer.fingerprint or file.vocab != tokenizer.vocab_size):
        raise vocabulary_mismatch_error(config.data, file.vocab, tokenizer.vocab_size, config.data)
    if not config.logits:
        return
    widths = {one.top_ids.shape[1] if len(one.token_ids) else 0 for one in file.kept_samples}
    if widths == {0} or len(widths) > 1 or not has_ids:
        stored = "none" if widths == {0} else f"{', '.join(map(str, sorted(widths)))} tokens, depending on the sample"
        raise DataError(
            f"objective distil needs the teacher's k most likely tokens at every position of every sample; stored: {stored}",
            where=config.data,
            remedy="Sample again with a run directory as teacher and a top_k such as 32, or use objective=sequence.",
        )


def vocabulary_mismatch_error(where: str, teacher: int, student: int, data: str = "FILE.parquet") -> DataError:
    """Return the error for a teacher and a student with different vocabularies."""
    return DataError(
        f"the teacher's tokenizer ({teacher} tokens) differs from the student's ({student} tokens), so its token ids stand for"
        " other tokens",
        where=where,
        remedy="Train the student with tokenizer=TEACHER/tokenizer.json, or train on the messages: "
        f"rorqual train sft data={data}",
    )


def _samples(one: TeacherSample, materials: SourceInputs) -> Iterator[tuple[TrainingSample, TeacherSample]]:
    if len(one.token_ids):
        mask = [False] * len(one.prompt_ids) + [True] * len(one.token_ids)
        yield TrainingSample([*one.prompt_ids, *one.token_ids], mask), one
        return
    for rendered in materials.chat.training_renderings(one.messages):
        yield TrainingSample(rendered.ids, rendered.mask), one
