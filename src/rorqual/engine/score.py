"""Compute a model's next-token distribution at each position of given sequences, without sampling."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rorqual.core.errors import DataError, NumericsError
from rorqual.data.pack import TrainingSample, pack, pack_rows
from rorqual.model import Decoder

ROWS = 16
"""Number of packed rows in one forward pass. The number of packed rows is constant, so the scores do not depend on the number
of threads."""

Ids = npt.NDArray[np.int32]
Logprobs = npt.NDArray[np.float32]
TopLogprobs = tuple[Ids, Logprobs]


@torch.no_grad()
def next_logprobs(model: Decoder, tokens: Tensor, positions: Tensor, segments: Tensor, wanted: Tensor) -> Tensor:
    """Return next-token log-probabilities [n, vocab] in fp32 for the n positions where `wanted` [rows, seq] is nonzero.

    `tokens`, `positions` and `segments` [rows, seq] hold packed rows, as in a training batch. Raises NumericsError if a logit
    is NaN or infinite.
    """
    hidden = model(tokens, positions, segments=segments).hidden
    logprobs = model.logits(hidden[wanted.nonzero(as_tuple=True)]).log_softmax(-1)
    if not bool(logprobs.isfinite().all()):
        raise NumericsError(
            "the model computed a NaN or infinite logit",
            where="engine.score",
            remedy="The weights contain NaN or infinity. Load an earlier checkpoint.",
        )
    return logprobs


def score(
    model: Decoder, samples: Sequence[tuple[Sequence[int], Sequence[int]]], k: int, *, threads: int = 1
) -> list[TopLogprobs]:
    """Return the `k` most likely tokens, with their log-probabilities, at each reply position of each sample.

    A sample is a pair (prompt ids, reply ids). The result for a sample is a pair: token ids [len(reply), k] int32, most likely
    first, and the log-probabilities of these tokens [len(reply), k] fp32 at temperature 1. Row i describes the model's
    distribution of reply[i], given all tokens before reply[i]. Samples are packed into rows as long as the longest sample.

    Raises DataError if `k` exceeds the vocabulary, a prompt or reply is empty, or a sample is longer than the context.
    """
    vocab, context = model.config.vocab_size, model.config.max_position_embeddings
    if not 1 <= k <= vocab:
        raise DataError(
            f"k={k} is out of range for a vocabulary of {vocab}", where="score", remedy=f"Set k from 1 to {vocab}."
        )
    documents = _packable_samples(samples, context)
    if not documents:
        return []
    packed = pack(documents, max(map(len, documents)))
    batch, device = packed.batch, model.embed_tokens.weight.device

    def top_of_rows(start: int) -> tuple[Tensor, Tensor]:
        tokens, positions, segments, wanted = (
            torch.from_numpy(array[start : start + ROWS]).to(device)
            for array in (batch.tokens, batch.positions, batch.segments, batch.loss_mask)
        )
        top = next_logprobs(model, tokens, positions, segments, wanted).topk(k, dim=-1)
        return top.indices.to(torch.int32).cpu(), top.values.cpu()

    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        top_parts = list(pool.map(top_of_rows, range(0, batch.n_rows, ROWS)))
    ids, logprobs = (torch.cat(parts).numpy() for parts in zip(*top_parts))
    # For each scored position of the batch: its index in `ids` and `logprobs`.
    flat_index = np.cumsum(batch.loss_mask.reshape(-1) > 0).reshape(batch.loss_mask.shape) - 1
    scored: list[TopLogprobs] = []
    for (packed_row, start, _), (prompt, reply) in zip(packed.places, samples, strict=True):
        first = int(flat_index[packed_row, start + len(prompt) - 1])
        scored.append((ids[first : first + len(reply)], logprobs[first : first + len(reply)]))
    return scored


@torch.no_grad()
def first_token_logprobs(model: Decoder, prompts: Sequence[Sequence[int]], ids: Sequence[int]) -> Logprobs:
    """Return the log-probability [prompts, ids] fp32 of each token in `ids` as the first token after each prompt.

    Raises DataError if a prompt is empty or longer than the context minus one token.
    """
    context, device = model.config.max_position_embeddings, model.embed_tokens.weight.device
    documents = _packable_samples([(prompt, ids[:1]) for prompt in prompts], context)
    found = []
    for start in range(0, len(documents), ROWS):
        part = documents[start : start + ROWS]
        batch = pack_rows(part, [[i] for i in range(len(part))], max(map(len, part))).batch
        tokens, positions, segments, wanted = (
            torch.from_numpy(array).to(device)
            for array in (batch.tokens, batch.positions, batch.segments, batch.loss_mask)
        )
        found.append(next_logprobs(model, tokens, positions, segments, wanted)[:, list(ids)].cpu())
    return torch.cat(found).numpy() if found else np.zeros((0, len(ids)), np.float32)


def _packable_samples(samples: Sequence[tuple[Sequence[int], Sequence[int]]], context: int) -> list[TrainingSample]:
    for number, (prompt, reply) in enumerate(samples, start=1):
        if not len(prompt) or not len(reply) or len(prompt) + len(reply) > context:
            raise DataError(
                f"a prompt of {len(prompt)} and a reply of {len(reply)} tokens must not be empty, and must fit the context of {context}",
                where=f"sample {number}",
                remedy="Remove the sample.",
            )
    return [TrainingSample([*prompt, *reply], [False] * len(prompt) + [True] * len(reply)) for prompt, reply in samples]
