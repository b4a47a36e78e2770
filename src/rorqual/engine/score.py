"""What a model says of given tokens: its distribution at each, without drawing any."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rorqual.core.errors import DataError, NumericsError
from rorqual.data.pack import Sample, pack
from rorqual.model import Decoder

ROWS = 16
"""Rows in one forward: a constant, so that the number of threads changes no bit."""

Ids = npt.NDArray[np.int32]
Logprobs = npt.NDArray[np.float32]
Scored = tuple[Ids, Logprobs]


@torch.no_grad()
def next_logprobs(model: Decoder, tokens: Tensor, positions: Tensor, segments: Tensor, wanted: Tensor) -> Tensor:
    """log softmax over the vocabulary of what follows each position where `wanted` [rows, seq] is not 0: [n, vocab] fp32.

    tokens, positions and segments [rows, seq] are packed rows as in a training batch.
    """
    hidden = model(tokens, positions, segments=segments).hidden
    logprobs = model.logits(hidden[wanted.nonzero(as_tuple=True)]).log_softmax(-1)
    if not bool(logprobs.isfinite().all()):
        raise NumericsError(
            "the model gave a logit that is not a number",
            where="engine.score",
            remedy="Its weights hold NaN or infinity: go back to an earlier checkpoint.",
        )
    return logprobs


def score(
    model: Decoder, samples: Sequence[tuple[Sequence[int], Sequence[int]]], k: int, *, row: int = 0, threads: int = 1
) -> list[Scored]:
    """For each (prompt ids, reply's ids) the `k` likeliest tokens at each of the reply's places, and their log-probabilities.

    ids [len(reply), k] int32, the likeliest first, and log-probabilities [len(reply), k] fp32 at temperature 1, given everything
    before that place: row i is of the place where reply[i] stands. Samples are packed into rows of `row` tokens (0: the
    longest sample's length). A `DataError` for k beyond the vocabulary, an empty prompt or reply, or a sample beyond the context.
    """
    vocab, context = model.config.vocab_size, model.config.max_position_embeddings
    if not 1 <= k <= vocab:
        raise DataError(f"k={k} of a vocabulary of {vocab}", where="score", remedy=f"Use 1 to {vocab}.")
    documents = [_document(number, *sample) for number, sample in enumerate(samples, start=1)]
    longest = max(map(len, documents), default=0)
    if longest > context:
        raise DataError(
            f"a sample of {longest} tokens, and the model's context is {context}", where="score", remedy="Leave it out."
        )
    if not documents:
        return []
    packed = pack(documents, max(row, longest))
    batch, device = packed.batch, model.embed_tokens.weight.device

    def look(start: int) -> tuple[Tensor, Tensor]:
        tokens, positions, segments, wanted = (
            torch.from_numpy(array[start : start + ROWS]).to(device)
            for array in (batch.tokens, batch.positions, batch.segments, batch.loss_mask)
        )
        top = next_logprobs(model, tokens, positions, segments, wanted).topk(k, dim=-1)
        return top.indices.to(torch.int32).cpu(), top.values.cpu()

    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        found = list(pool.map(look, range(0, batch.n_rows, ROWS)))
    ids, logprobs = (torch.cat(parts).numpy() for parts in zip(*found))
    place = (
        np.cumsum(batch.loss_mask.reshape(-1) > 0).reshape(batch.loss_mask.shape) - 1
    )  # of a position among the wanted
    scored: list[Scored] = []
    for (at, start, _), (prompt, reply) in zip(packed.places, samples, strict=True):
        first = int(place[at, start + len(prompt) - 1])
        scored.append((ids[first : first + len(reply)], logprobs[first : first + len(reply)]))
    return scored


def _document(number: int, prompt: Sequence[int], reply: Sequence[int]) -> Sample:
    if not len(prompt) or not len(reply):
        raise DataError(
            f"an empty {'reply' if len(prompt) else 'prompt'}", where=f"sample {number}", remedy="Leave it out."
        )
    return Sample([*prompt, *reply], [False] * len(prompt) + [True] * len(reply))
