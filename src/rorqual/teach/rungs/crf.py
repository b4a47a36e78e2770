"""A linear-chain conditional random field (Lafferty et al. 2001) as functions of tensors.

`emissions` [words, tags] has the score of each tag at each word, `first` [tags] that of each tag at the first word, and `following`
[tags, tags] that of each pair of neighbouring tags. The score of a sequence of tags is the sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def log_partition(emissions: Sequence[Tensor], first: Tensor, following: Tensor) -> Tensor:
    """Return for each text [texts] the logarithm of the sum of exp(score) over all sequences of tags."""
    lengths, padded = torch.tensor([len(one) for one in emissions]), pad_sequence([*emissions], batch_first=True)
    ending = padded[:, 0] + first
    for place in range(1, padded.shape[1]):
        longer = torch.logsumexp(ending[:, :, None] + following, 1) + padded[:, place]
        ending = torch.where((lengths > place)[:, None], longer, ending)
    return torch.logsumexp(ending, 1)


def path_score(emissions: Tensor, tags: Tensor, first: Tensor, following: Tensor) -> Tensor:
    """Return the score of one text's tags [words]."""
    at_words = emissions.gather(1, tags[:, None]).sum()
    return at_words + first[tags[0]] + following[tags[:-1], tags[1:]].sum()


def best_path(emissions: Tensor, first: Tensor, following: Tensor) -> list[int]:
    """Return the tags of one text with the highest score (Viterbi 1967)."""
    ending, sources = emissions[0] + first, []
    for emission in emissions[1:]:
        best, source = (ending[:, None] + following).max(0)
        ending = best + emission
        sources.append(source.tolist())
    path = [int(ending.argmax())]
    for source in reversed(sources):
        path.append(source[path[-1]])
    return path[::-1]
