"""Drawing tokens, and the log-probability of each under the very distribution it was drawn from.

Random numbers are a function of (seed, sample, position) and of nothing else: who else is in the batch, which slot a
sequence has and how many threads run change nothing. They come from SplitMix64 (Steele, Lea and Flood 2014), one number
a row and step, and choose a token by the inverse of the cumulative distribution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_GOLDEN, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def sample_key(seed: int, sample: int) -> int:
    """The 64-bit key of one sample's random numbers."""
    return _mix(_mix(seed & _MASK) ^ (sample & _MASK))


def _mix(value: int) -> int:
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * _MIX1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX2) & _MASK
    return value ^ (value >> 31)


def uniform(keys: npt.NDArray[np.uint64], positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """One number in [0, 1), with 53 random bits, for each row: the `positions`-th of SplitMix64's stream at `keys`."""
    value = keys + (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)  # wraps, as it should
    value = (value ^ (value >> np.uint64(30))) * np.uint64(_MIX1)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(_MIX2)
    value ^= value >> np.uint64(31)
    return (value >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(frozen=True)
class Settings:
    """Sampling settings of each row, each [rows, 1]; a greedy row has temperature 1 and nothing cut off."""

    temperature: Tensor
    top_p: Tensor
    top_k: Tensor
    greedy: Tensor
    any_greedy: bool
    all_greedy: bool
    truncated: bool

    @classmethod
    def of(
        cls,
        temperature: npt.NDArray[np.float32],
        top_p: npt.NDArray[np.float32],
        top_k: npt.NDArray[np.int64],
        device: torch.device | str,
    ) -> Settings:
        """From arrays [rows]."""
        greedy = temperature <= 0
        top_p, top_k = np.where(greedy, np.float32(1), top_p), np.where(greedy, 0, top_k)
        columns = (np.where(greedy, np.float32(1), temperature), top_p, top_k, greedy)
        temperatures, top_ps, top_ks, greedies = (torch.from_numpy(c).unsqueeze(1).to(device) for c in columns)
        truncated = bool(((top_p < 1) | (top_k > 0)).any())
        return cls(temperatures, top_ps, top_ks, greedies, bool(greedy.any()), bool(greedy.all()), truncated)


def truncate(logprobs: Tensor, top_p: Tensor, top_k: Tensor) -> Tensor:
    """Log-probabilities [rows, vocab] cut to the `top_k` likeliest tokens and then to the fewest whose mass reaches
    `top_p` of what is left, renormalised; a token cut off has -inf. The likeliest token always stays.

    A mass that reaches `top_p` to within rounding may be cut one token earlier or later when it is computed again from
    logits that differ in their last bits: one token in some thousand. A policy gradient needs the very set that was drawn
    from: `Completion.kept`.
    """
    vocab = logprobs.shape[-1]
    ordered, order = logprobs.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(vocab, device=logprobs.device)
    ordered = ordered.masked_fill(rank >= torch.where(top_k > 0, top_k, vocab), float("-inf"))
    mass = ordered.softmax(-1)
    before = mass.cumsum(-1) - mass
    ordered = ordered.masked_fill((before >= top_p) & (top_p < 1) & (rank > 0), float("-inf"))
    kept = torch.empty_like(logprobs).scatter_(-1, order, ordered)
    return kept.log_softmax(-1)


def distribution(logits: Tensor, settings: Settings) -> Tensor:
    """Log-probabilities [rows, vocab] of the distribution that each row is drawn from; plain softmax where greedy."""
    logprobs = (logits.float() / settings.temperature).log_softmax(-1)
    if not settings.truncated:
        return logprobs
    return truncate(logprobs, settings.top_p, settings.top_k)


def draw(logits: Tensor, settings: Settings, u: npt.NDArray[np.float64]) -> tuple[Tensor, Tensor]:
    """logits [rows, vocab], u [rows] in [0, 1) -> tokens [rows] and their log-probabilities [rows] (fp32)."""
    return draw_from(distribution(logits, settings), logits, settings, u)


def draw_from(
    logprobs: Tensor, logits: Tensor, settings: Settings, u: npt.NDArray[np.float64]
) -> tuple[Tensor, Tensor]:
    """`draw`, of the `distribution` that the caller has."""
    if settings.all_greedy:
        best = logits.argmax(-1, keepdim=True)
        return best.squeeze(1), logprobs.gather(1, best).squeeze(1)
    # In fp64, so that 53 bits of u are not wasted; a token of probability 0 has no width and is never met.
    cumulative = logprobs.exp().cumsum(-1, dtype=torch.float64)
    target = torch.from_numpy(u).to(logits.device).unsqueeze(1) * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, target, right=True)
    tokens.clamp_(max=logits.shape[-1] - 1)
    if settings.any_greedy:
        tokens = torch.where(settings.greedy, logits.argmax(-1, keepdim=True), tokens)
    return tokens.squeeze(1), logprobs.gather(1, tokens).squeeze(1)
