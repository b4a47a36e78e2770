"""A source of preference pairs for DPO, with the log-probabilities of a frozen reference model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from rorqual.core.config import RowLength, Rows
from rorqual.core.errors import DataError
from rorqual.core.rows import read_rows
from rorqual.data.pack import TrainingSample, pack_rows
from rorqual.data.source.pairs import render_pair
from rorqual.train.batch import TrainBatch
from rorqual.train.sources.reference import ReferenceModel
from rorqual.train.sources.source import Source, SourceConfig, SourceInputs, StepBatches


class PreferencesConfig(SourceConfig):
    """Train on `data`, a file of preference pairs in the form of OpenAI's fine-tuning API. Every pair is used once per epoch.

    A step has `pairs` pairs. A pair is two consecutive rows: the prompt with the preferred reply, and the prompt with the other
    reply. Rows are padded to the longest row of the step. `reference` is the run of the reference model. If a row has more than
    `row` tokens, an error says how many pairs are too long.
    """

    kind: Literal["preferences"] = "preferences"
    data: str
    reference: str
    pairs: Rows = 16
    row: RowLength = 512

    def build(self, materials: SourceInputs) -> Source:
        return Preferences(self, materials)

    def provided_batch_fields(self) -> frozenset[str]:
        return frozenset({"reference_logprobs"})


class Preferences(Source):
    """A source of preference pairs. Seed and step determine the pairs of a step."""

    def __init__(self, config: PreferencesConfig, materials: SourceInputs) -> None:
        self.config, self.pad, self.seed = config, materials.chat.pad, materials.seed
        self.pairs = [
            [TrainingSample(one.ids, one.mask) for one in render_pair(row, materials.chat)]
            for row in read_rows(Path(config.data))
        ]
        if too_long := [longest for pair in self.pairs if (longest := max(map(len, pair))) > config.row]:
            raise DataError(
                f"{len(too_long)} of {len(self.pairs)} pairs are longer than a row of {config.row} tokens "
                f"(the longest: {max(too_long)})",
                where=config.data,
                remedy=f"Set row={max(too_long)}, or remove these pairs.",
            )
        self.reference = ReferenceModel(
            config.reference, materials.model, materials.tokenizer, temperature=1.0, threads=materials.threads
        )
        self.frozen_models = {"reference": self.reference.sha256}

    def step(self, step: int) -> StepBatches:
        count, first = len(self.pairs), step * self.config.pairs
        places = [divmod(place, count) for place in range(first, first + self.config.pairs)]
        orders = {epoch: np.random.default_rng([self.seed, epoch]).permutation(count) for epoch, _ in places}
        samples = [sample for epoch, place in places for sample in self.pairs[orders[epoch][place]]]
        rows = [[number] for number in range(len(samples))]
        batch = TrainBatch.from_packed(pack_rows(samples, rows, max(map(len, samples)), pad=self.pad).batch)
        batch = replace(batch, reference_logprobs=self.reference.logprobs(batch))
        return StepBatches([batch], {"reference_tokens": batch.n_tokens})
