"""Score models on held-out long problems: the loss of each solution, and whether the model ranks every token of the solution
first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rorqual.core.records import RunDir
from rorqual.data.chat import chat_format
from rorqual.data.pack import TrainingSample
from rorqual.data.tokenizer import Tokenizer
from rorqual.lab.held_out import first_problems, run_on_sample_blocks, solution_samples
from rorqual.lab.long_training import DENSE, KINDS, LENGTH
from rorqual.model.decoder import Decoder
from rorqual.tasks.task import Split

EXACT, LOSS, PICKED = "exact solutions", "loss", "positions per query"
NEEDLE = ("needle",)
PERCENT, POINTS = 0.01, 0.02
"""The largest relative increase of the loss, and the largest drop in needle accuracy, that the claims allow."""


def solutions(
    place: Path, seed: int, kind: str, count: int, split: Split, length: int = LENGTH, run: str = DENSE
) -> list[TrainingSample]:
    """Return the worked solutions of `count` problems of one kind. All arms of a seed use the same problems."""
    chat = chat_format(Tokenizer.load(RunDir(place / run).tokenizer_file))
    return solution_samples(first_problems("long", {"names": [kind], "length": length}, split, seed, count), chat)


def score_solutions(
    model: Decoder, samples: Sequence[TrainingSample], record: Sequence[str] = ("selected",)
) -> dict[str, Any]:
    """Return, for each solution, the mean loss over the tokens in the loss mask, and whether the model ranks all these tokens
    first. If the model ranks all tokens first, it writes exactly this solution at temperature 0. `picked` is the mean number of
    selected positions per query and layer, or 0 for dense attention. `record` names the tensors that sparse attention records.
    """
    losses: list[float] = []
    right: list[bool] = []
    picked, queries = 0, 0
    for block in run_on_sample_blocks(model, samples, 8, record if model.needs_cache else ()):
        losses += block.mean_losses()
        right += (block.right | (block.batch.loss_mask == 0)).all(1).tolist()
        valid = (block.batch.segments >= 0).flatten()
        for selected in block.output.recorded.get("selected", ()):
            picked += int((selected[valid] >= 0).sum())
            queries += int(valid.sum())
    return {"loss": losses, "right": right, "picked": picked / max(queries, 1)}


def score_readings(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the readings of an experiment. `found` holds the results of
    `score_solutions` by arm and kind. In the loss over all kinds of problems, each kind has the same weight."""
    fewest = min(len(kinds[kind]["loss"]) for kinds in found.values() for kind in KINDS)
    return {
        EXACT: {arm: {kind: dict(enumerate(kinds[kind]["right"])) for kind in KINDS} for arm, kinds in found.items()},
        LOSS: {
            arm: {
                "all": {(kind, item): loss for kind in KINDS for item, loss in enumerate(kinds[kind]["loss"][:fewest])}
            }
            for arm, kinds in found.items()
        },
        PICKED: {arm: {kind: {0: kinds[kind]["picked"]} for kind in KINDS} for arm, kinds in found.items()},
    }
