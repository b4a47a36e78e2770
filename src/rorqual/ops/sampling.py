"""Sample tokens, and return the log-probability of each token in the distribution from which it was sampled.

Each row of logits has its own random number (`SamplingMetadata.uniform`), which selects a token by inverse transform sampling.

Logits are processed in this order: penalties and biases, the mask of allowed tokens, temperature, top-k, top-p, min-p. With
`min_p_first`, the last three operations are min-p, top-k, top-p. The sampled token and the log-probability of a row are
bit-identical for any other rows in the batch, because each operation runs only on the rows that request the operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rorqual.core.sampling import SamplingParams

Ints = npt.NDArray[np.int64]
TokenHistory = tuple[Ints, npt.NDArray[np.float32]]
"""The token history of each row with penalties, as two arrays [rows, tokens]: the token ids of prompt and reply, and the count
of each token id in the reply."""

CANDIDATES = 256
"""Number of most likely tokens that are searched first for the probability threshold of top-k, top-p and min-p.

If the probability threshold is not among the `CANDIDATES` most likely tokens, the whole row of logits is sorted.
"""
BLOCK = 1 << 16
"""Number of logits processed at once on a CPU.

Logits in the processor's cache are processed ten times as fast as logits in newly allocated memory.
"""
COLDEST, HOTTEST = 1e-20, 1e20
"""Lower and upper limit to which temperatures are clipped. Division of logits by a temperature below `COLDEST` would overflow
fp32 and give NaN."""


@dataclass(frozen=True)
class Penalties:
    """The penalties and logit biases of a batch.

    `rows` [penalized rows] are the indices of the batch rows with repetition, presence or frequency penalties. Each penalty is
    a tensor [penalized rows, 1]. `biased` [2, biases] holds the rows and tokens of the logit biases, and `bias` [biases] holds
    the values of the logit biases.
    """

    rows: Ints
    repetition: Tensor
    presence: Tensor
    frequency: Tensor
    biased: Tensor
    bias: Tensor

    @classmethod
    def of(cls, params: Sequence[SamplingParams], device: torch.device | str) -> Penalties | None:
        """Return the penalties and logit biases of a batch, or None if no row has a penalty or a logit bias."""
        rows = [row for row, p in enumerate(params) if needs_history(p)]
        biases = [(row, token, bias) for row, p in enumerate(params) for token, bias in p.logit_bias]
        if not rows and not biases:
            return None
        penalized = [params[row] for row in rows]
        repetition, presence, frequency = (
            torch.tensor([getattr(p, name) for p in penalized], dtype=torch.float32, device=device).unsqueeze(1)
            for name in ("repetition_penalty", "presence_penalty", "frequency_penalty")
        )
        biased = torch.tensor([pair[:2] for pair in biases], dtype=torch.int64, device=device).view(-1, 2).t()
        bias = torch.tensor([bias for *_, bias in biases], dtype=torch.float32, device=device)
        return cls(np.array(rows, np.int64), repetition, presence, frequency, biased, bias)

    def apply(self, logits: Tensor, seen: TokenHistory | None) -> Tensor:
        """Return the logits [rows, vocab] with penalties and logit biases applied, as a new fp32 tensor.

        `seen` is the token history of `rows`, or None if `rows` is empty. The repetition penalty is applied first (CTRL, Keskar
        et al. 2019, section 4.1): positive logits of prompt and reply tokens are divided by the penalty, and negative logits of
        these tokens are multiplied by the penalty. Presence and frequency penalties apply to reply tokens as in OpenAI's API:
        logit - frequency * count - presence. Logit biases are added last.
        """
        adjusted = logits.float().clone()
        if seen is not None:
            ids, times = (torch.from_numpy(x).to(logits.device) for x in seen)
            row = torch.from_numpy(self.rows).to(logits.device).unsqueeze(1)
            x = adjusted[row, ids]
            x = torch.where(x > 0, x / self.repetition, x * self.repetition)
            adjusted[row, ids] = x - self.frequency * times - self.presence * (times > 0)
        if len(self.bias):
            biased, token = self.biased
            adjusted[biased, token] += self.bias
        return adjusted


def needs_history(params: SamplingParams) -> bool:
    """Return whether `params` has a repetition, presence or frequency penalty, which requires the token history."""
    return params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0


def truncates(params: SamplingParams) -> bool:
    """Return whether `params` leaves out unlikely tokens."""
    return params.temperature > 0 and (params.top_p < 1 or params.top_k > 0 or params.min_p > 0)


@dataclass(frozen=True)
class Truncation:
    """The truncation settings `top_p`, `top_k`, `min_p` (as a logarithm) and `min_p_first`, each [truncated rows, 1].

    `rows` [truncated rows] are the indices of the rows with truncation, ascending.
    """

    rows: Tensor
    top_p: Tensor
    top_k: Tensor
    log_min_p: Tensor
    min_p_first: Tensor


@dataclass(frozen=True)
class SamplingSettings:
    """The sampling settings of a batch.

    `temperature` and `greedy` are [rows, 1]. A greedy row has temperature 1 and no truncation. Sampling settings that no row
    uses are None or False, so that the operations of these settings are skipped.
    """

    temperature: Tensor
    greedy: Tensor
    any_greedy: bool
    all_greedy: bool
    scaled: bool
    cut: Truncation | None
    penalties: Penalties | None

    @classmethod
    def of(cls, params: Sequence[SamplingParams], device: torch.device | str) -> SamplingSettings:
        """Return the sampling settings of a batch. Row i has the sampling parameters `params[i]`, which must have passed
        `check_params`."""
        greedy = np.array([p.temperature <= 0 for p in params], np.bool_)
        temperatures = np.array([p.temperature for p in params], np.float64)
        temperature = np.where(greedy, 1, temperatures.clip(COLDEST, HOTTEST)).astype(np.float32)
        return cls(
            temperature=torch.from_numpy(temperature).unsqueeze(1).to(device),
            greedy=torch.from_numpy(greedy).unsqueeze(1).to(device),
            any_greedy=bool(greedy.any()),
            all_greedy=bool(greedy.all()),
            scaled=bool((temperature != 1).any()),
            cut=_truncation_of_batch(params, device),
            penalties=Penalties.of(params, device),
        )


def _truncation_of_batch(params: Sequence[SamplingParams], device: torch.device | str) -> Truncation | None:
    rows = [row for row, p in enumerate(params) if truncates(p)]
    if not rows:
        return None
    truncated = [params[row] for row in rows]
    top_p = np.array([p.top_p for p in truncated], np.float64)
    top_k = np.array([p.top_k for p in truncated], np.int64)
    with np.errstate(divide="ignore"):
        log_min_p = np.log(np.array([p.min_p for p in truncated], np.float64)).astype(np.float32)
    first = np.array([p.min_p_first for p in truncated], np.bool_)
    columns = (torch.from_numpy(column).unsqueeze(1).to(device) for column in (top_p, top_k, log_min_p, first))
    return Truncation(torch.tensor(rows, device=device), *columns)


def truncate(logprobs: Tensor, top_p: Tensor, top_k: Tensor, log_min_p: Tensor, min_p_first: Tensor) -> Tensor:
    """Apply top-k, top-p and min-p to log-probabilities [rows, vocab] and renormalize.

    First, top-k keeps the most likely tokens (0: all). Then top-p keeps the fewest tokens whose share of the remaining
    probability reaches `top_p`. Then min-p removes tokens below `min_p` times the highest probability; `log_min_p` is the
    logarithm of `min_p`. Where `min_p_first` [rows, 1] is true, min-p is applied first, and top-k and top-p are applied to the
    remaining tokens. Removed tokens get the log-probability -inf. Among tokens with equal probability, the tokens with the
    lowest ids stay. The most likely token is never removed.

    If the cumulative probability equals `top_p` up to rounding, slightly different logits may keep one token more or less. The
    set of kept tokens differs for about one sampled token in a thousand. Policy gradients therefore use the recorded set of
    kept tokens (`Completion.kept`).
    """
    vocab = logprobs.shape[-1]
    top_k = torch.where(top_k < vocab, top_k, 0)
    columns = (top_p, top_k, log_min_p, min_p_first)
    last, room, tied, unresolved = _truncation_threshold(
        logprobs.topk(min(CANDIDATES, vocab), dim=-1).values, vocab, *columns
    )
    if bool(unresolved.any()):
        rows = unresolved.flatten().nonzero().flatten()
        last[rows], room[rows], tied[rows], _ = _truncation_threshold(
            _sort_descending(logprobs[rows]), vocab, *(column[rows] for column in columns)
        )
    removed = logprobs < last
    if bool(tied.any()):
        equal = logprobs == last
        removed |= equal & (equal.cumsum(-1) > room)
    return logprobs.masked_fill(removed, float("-inf")).log_softmax(-1)


def _sort_descending(logprobs: Tensor) -> Tensor:
    if logprobs.device.type != "cpu":
        return logprobs.sort(dim=-1, descending=True).values
    # numpy's sort is five times as fast as torch's, which sorts indices too.
    return torch.from_numpy(np.sort(logprobs.detach().numpy(), axis=-1)).flip(-1)


def _truncation_threshold(
    ordered: Tensor, vocab: int, top_p: Tensor, top_k: Tensor, log_min_p: Tensor, min_p_first: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find the truncation threshold of each row.

    `ordered` [rows, candidates] holds the highest log-probabilities of each row, in descending order. The candidates are the
    tokens with the log-probabilities in `ordered`.

    Returns four tensors [rows, 1]:

    - the truncation threshold, which is the smallest log-probability that stays,
    - how many tokens with exactly the threshold log-probability stay,
    - whether some tokens with exactly the threshold log-probability are removed,
    - whether the threshold may be below the log-probabilities of the candidates. Where this tensor is True, the first three
      tensors are not valid.
    """
    candidates = ordered.shape[-1]
    rank = torch.arange(candidates, device=ordered.device)
    allowed = torch.where(top_k > 0, top_k, candidates)
    mass = ordered.double().exp()
    reached = mass.cumsum(-1)
    # Without top-k, the total probability is 1. With top-k, the total is the sum of the k highest probabilities.
    total = torch.where(top_k > 0, reached.gather(-1, allowed.clamp(max=candidates) - 1), 1.0)
    unlikely = ordered < ordered[:, :1] + log_min_p
    passed = candidates - unlikely.sum(-1, keepdim=True)
    share = reached.gather(-1, torch.minimum(passed, allowed.clamp(max=candidates)) - 1)
    total = torch.where(min_p_first & (log_min_p > -torch.inf), share, total)
    open_ = min_p_first & (passed == candidates) & (top_k == 0)  # whether tokens beyond the candidates may pass min-p
    removed = (rank >= allowed) | ((reached - mass >= top_p * total) & (top_p < 1)) | unlikely
    removed |= ordered == float("-inf")  # tokens that a grammar forbids do not count as ties
    removed[:, 0] = False
    count = candidates - removed.sum(-1, keepdim=True)
    last = ordered.gather(-1, count - 1)
    room = count - (ordered > last).sum(-1, keepdim=True)
    # If all candidates stay, tokens beyond the candidates may also stay, or may tie with the last candidate.
    unresolved = (
        open_ | (top_k > candidates) | (count == candidates) if candidates < vocab else torch.zeros_like(removed[:, :1])
    )
    tied = (ordered == last).sum(-1, keepdim=True) > room
    return last, room, tied, unresolved


def distribution(logits: Tensor, settings: SamplingSettings) -> Tensor:
    """Return the log-probabilities [rows, vocab] of the sampling distribution. For greedy rows, the log-probabilities are
    log_softmax(logits)."""
    cut, logprobs = settings.cut, torch.empty_like(logits, dtype=torch.float32)
    for rows in _row_slices(logits):
        block = logits[rows].float()
        logprobs[rows] = (block / settings.temperature[rows] if settings.scaled else block).log_softmax(-1)
    return logprobs if cut is None else truncate_rows(logprobs, cut)


def truncate_rows(logprobs: Tensor, cut: Truncation) -> Tensor:
    """Apply `truncate` to the rows `cut.rows` of log-probabilities [rows, vocab], in place."""
    for block_cut in _row_slices(logprobs[: len(cut.rows)]):
        index = cut.rows[block_cut]
        columns = (column[block_cut] for column in (cut.top_p, cut.top_k, cut.log_min_p, cut.min_p_first))
        logprobs[index] = truncate(logprobs[index], *columns)
    return logprobs


def _row_slices(logits: Tensor) -> list[slice]:
    """Split the rows of logits into slices that are processed at once. On a CPU, the logits of a slice fit in the processor's
    cache. On a GPU, one slice contains all rows of logits."""
    rows, vocab = logits.shape
    step = max(1, BLOCK // vocab) if logits.device.type == "cpu" else max(1, rows)
    return [slice(start, start + step) for start in range(0, rows, step)]


@dataclass(frozen=True)
class SamplingMetadata:
    """The sampling inputs of one engine step.

    - `uniform` [rows]: a random number in [0, 1) for each row of logits.
    - `seen`: the token history of the rows with penalties, or None.
    - `allowed`: the indices [n] of rows constrained by a grammar, and a mask [n, vocab] of these rows' allowed tokens. The mask
      must allow at least one token in each row.
    """

    settings: SamplingSettings
    uniform: npt.NDArray[np.float64]
    seen: TokenHistory | None = None
    allowed: tuple[Ints, npt.NDArray[np.bool_]] | None = None


@dataclass(frozen=True)
class SamplerOutput:
    """The sampled token ids [rows], the fp32 log-probabilities [rows] of the sampled tokens, and the log-probabilities of all
    tokens [rows, vocab]."""

    ids: Tensor
    logprobs: Tensor
    distribution: Tensor


def sample(logits: Tensor, metadata: SamplingMetadata) -> SamplerOutput:
    """Sample one token per row of logits [rows, vocab or more]. `sample` may modify the logits in place."""
    logits = adjust_logits(logits, metadata)
    logprobs = distribution(logits, metadata.settings)
    return SamplerOutput(*sample_from(logprobs, logits, metadata.settings, metadata.uniform), logprobs)


def adjust_logits(logits: Tensor, metadata: SamplingMetadata) -> Tensor:
    """Apply penalties, logit biases and the masks of allowed tokens to logits [rows, vocab or more], in place or as a new tensor."""
    if metadata.settings.penalties is not None:
        logits = metadata.settings.penalties.apply(logits, metadata.seen)
    if metadata.allowed is not None:
        rows, allowed = (torch.from_numpy(array).to(logits.device) for array in metadata.allowed)
        masked = logits.index_select(0, rows)
        masked[:, : allowed.shape[1]].masked_fill_(~allowed, -torch.inf)
        logits.index_copy_(0, rows, masked)
    return logits


def sample_from(
    logprobs: Tensor, logits: Tensor, settings: SamplingSettings, u: npt.NDArray[np.float64]
) -> tuple[Tensor, Tensor]:
    """Sample by inverse transform sampling, and return the token ids [rows] and their log-probabilities [rows].

    `logprobs` [rows, vocab] must be the `distribution` of `logits`. `u` [rows] are random numbers in [0, 1).
    """
    if settings.all_greedy:
        best = logits.argmax(-1, keepdim=True)
        return best.squeeze(1), logprobs.gather(1, best).squeeze(1)
    target = torch.from_numpy(u).to(logits.device).unsqueeze(1)
    tokens = torch.empty_like(target, dtype=torch.int64)
    blocks = _row_slices(logprobs)
    probability = torch.empty_like(logprobs[blocks[0]])
    cumulative = torch.empty_like(probability, dtype=torch.float64)
    for rows in blocks:
        # fp64 keeps all 53 bits of u. A token of probability 0 covers an empty interval and is never sampled.
        count = len(logprobs[rows])
        torch.exp(logprobs[rows], out=probability[:count])
        mass = torch.cumsum(probability[:count], -1, dtype=torch.float64, out=cumulative[:count])
        tokens[rows] = torch.searchsorted(mass, target[rows] * mass[:, -1:], right=True)
    tokens.clamp_(max=logits.shape[-1] - 1)
    if settings.any_greedy:
        tokens = torch.where(settings.greedy, logits.argmax(-1, keepdim=True), tokens)
    return tokens.squeeze(1), logprobs.gather(1, tokens).squeeze(1)


def top_k_logprobs(logprobs: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the `k` most likely tokens of each row in descending order: ids [rows, k] and log-probabilities [rows, k].

    Tokens with equal log-probability are sorted by id. Truncated tokens have log-probability -inf.
    """
    last = logprobs.topk(k, dim=-1).values[:, -1:]
    above, equal = logprobs > last, logprobs == last
    room = k - above.sum(-1, keepdim=True)
    taken = above | (equal & (equal.cumsum(-1) <= room))
    ids = taken.nonzero()[:, 1].view(-1, k)  # ascending ids; a stable sort keeps them ascending among ties
    values, order = logprobs.gather(1, ids).sort(dim=-1, descending=True, stable=True)
    return ids.gather(1, order), values


def likeliest_tokens(logprobs: Tensor, k: int) -> list[list[tuple[int, float]]]:
    """Return the `k` most likely tokens of each row as (id, log-probability) pairs. A log-probability of NaN is treated as
    -inf."""
    ids, values = (t.tolist() for t in top_k_logprobs(logprobs.masked_fill(logprobs.isnan(), -torch.inf), k))
    return [list(zip(row_ids, row_values)) for row_ids, row_values in zip(ids, values)]
