"""Sample tokens, and return each one's log-probability under the distribution from which it was drawn.

Each row has a given random number (`SamplingMetadata.uniform`), which selects a token by the inverse cumulative
distribution.

Logits pass through penalties and biases, the mask of allowed tokens, temperature, top-k, top-p and min-p, in this
order. With `min_p_first` the last three are min-p, top-k and top-p. No row's result depends on other rows, to the last
bit: an operation that only some rows request is applied to those rows only.
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
Seen = tuple[Ints, npt.NDArray[np.float32]]
"""For each row with penalties: tokens of its prompt or reply, and their counts in the reply, each [rows, most tokens]."""

CANDIDATES = 256
"""Number of likeliest tokens searched for a cut before a whole row is sorted."""
BLOCK = 1 << 16
"""Number of logits processed at once on a CPU. A block that fits in cache is ten times as fast as memory newly allocated for each step."""
COLDEST, HOTTEST = 1e-20, 1e20
"""Bounds to which temperatures are clipped. Dividing logits by less would overflow fp32 and give NaN."""


@dataclass(frozen=True)
class Penalties:
    """Penalties and logit biases of the rows that have any.

    `rows` [penalised rows] are the rows with a history. Repetition, presence and frequency penalties are each
    [penalised rows, 1]. `biased` holds (row, token) [2, biases] with `bias` [biases].
    """

    rows: Ints
    repetition: Tensor
    presence: Tensor
    frequency: Tensor
    biased: Tensor
    bias: Tensor

    @classmethod
    def of(cls, params: Sequence[SamplingParams], device: torch.device | str) -> Penalties | None:
        """Return the penalties of a batch, or None if no row has any."""
        rows = [row for row, p in enumerate(params) if needs_history(p)]
        biases = [(row, token, bias) for row, p in enumerate(params) for token, bias in p.logit_bias]
        if not rows and not biases:
            return None
        asked = [params[row] for row in rows]
        repetition, presence, frequency = (
            torch.tensor([getattr(p, name) for p in asked], dtype=torch.float32, device=device).unsqueeze(1)
            for name in ("repetition_penalty", "presence_penalty", "frequency_penalty")
        )
        biased = torch.tensor([pair[:2] for pair in biases], dtype=torch.int64, device=device).view(-1, 2).t()
        bias = torch.tensor([bias for *_, bias in biases], dtype=torch.float32, device=device)
        return cls(np.array(rows, np.int64), repetition, presence, frequency, biased, bias)

    def apply(self, logits: Tensor, seen: Seen | None) -> Tensor:
        """Return the logits [rows, vocab] with penalties and biases applied, as a new fp32 tensor.

        `seen` is the history of `rows`, or None if `rows` is empty. Repetition comes first (CTRL, Keskar et al. 2019,
        section 4.1): a positive logit of a prompt or reply token is divided, a negative one multiplied. Then come
        presence and frequency over the reply's tokens, as in OpenAI's API: logit - frequency * count - presence. Biases
        are added last.
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
    """Return True if `params` penalises tokens of the history."""
    return params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0


@dataclass(frozen=True)
class Cut:
    """Truncation settings of the rows that truncate: `top_p`, `top_k`, log of `min_p`, `min_p_first`, each [cut rows, 1].

    `rows` [cut rows] are their indices, ascending.
    """

    rows: Tensor
    top_p: Tensor
    top_k: Tensor
    log_min_p: Tensor
    min_p_first: Tensor


@dataclass(frozen=True)
class Settings:
    """Sampling settings of a batch.

    `temperature` and `greedy` are [rows, 1]. A greedy row has temperature 1 and no truncation. Settings that no row
    uses are None or False and cost nothing.
    """

    temperature: Tensor
    greedy: Tensor
    any_greedy: bool
    all_greedy: bool
    scaled: bool
    cut: Cut | None
    penalties: Penalties | None

    @property
    def truncated(self) -> bool:
        return self.cut is not None

    @classmethod
    def of(cls, params: Sequence[SamplingParams], device: torch.device | str) -> Settings:
        """Return the settings of a batch with one row per entry of `params`, which must have passed `check_params`."""
        greedy = np.array([p.temperature <= 0 for p in params], np.bool_)
        given = np.array([p.temperature for p in params], np.float64)
        temperature = np.where(greedy, 1, given.clip(COLDEST, HOTTEST)).astype(np.float32)
        return cls(
            temperature=torch.from_numpy(temperature).unsqueeze(1).to(device),
            greedy=torch.from_numpy(greedy).unsqueeze(1).to(device),
            any_greedy=bool(greedy.any()),
            all_greedy=bool(greedy.all()),
            scaled=bool((temperature != 1).any()),
            cut=_cut(params, device),
            penalties=Penalties.of(params, device),
        )


def _cut(params: Sequence[SamplingParams], device: torch.device | str) -> Cut | None:
    rows = [row for row, p in enumerate(params) if p.temperature > 0 and (p.top_p < 1 or p.top_k > 0 or p.min_p > 0)]
    if not rows:
        return None
    asked = [params[row] for row in rows]
    top_p = np.array([p.top_p for p in asked], np.float64)
    top_k = np.array([p.top_k for p in asked], np.int64)
    with np.errstate(divide="ignore"):
        log_min_p = np.log(np.array([p.min_p for p in asked], np.float64)).astype(np.float32)
    first = np.array([p.min_p_first for p in asked], np.bool_)
    columns = (torch.from_numpy(column).unsqueeze(1).to(device) for column in (top_p, top_k, log_min_p, first))
    return Cut(torch.tensor(rows, device=device), *columns)


def truncate(
    logprobs: Tensor,
    top_p: Tensor,
    top_k: Tensor,
    log_min_p: Tensor | None = None,
    min_p_first: Tensor | None = None,
) -> Tensor:
    """Truncate and renormalise log-probabilities [rows, vocab].

    The order is top-k (0: all), then top-p over the remaining mass, then min-p relative to the likeliest token.
    `log_min_p` is its logarithm. Top-p keeps the fewest tokens whose mass reaches `top_p`. Where `min_p_first` [rows,
    1] is true, `top_p` also applies to the mass that `min_p` leaves. A removed token has -inf. Ties keep the lowest
    ids, and the likeliest token always stays.

    If a mass reaches `top_p` to within rounding, recomputation from logits that differ in their last bits may cut one
    token earlier or later. This affects about one token in a thousand. A policy gradient needs the exact set used for
    sampling: `Completion.kept`.
    """
    vocab = logprobs.shape[-1]
    top_k = torch.where(top_k < vocab, top_k, 0)
    columns = [column for column in (top_p, top_k, log_min_p, min_p_first) if column is not None]
    last, room, tied, beyond = _threshold(logprobs.topk(min(CANDIDATES, vocab), dim=-1).values, vocab, *columns)
    if bool(beyond.any()):
        rows = beyond.flatten().nonzero().flatten()
        last[rows], room[rows], tied[rows], _ = _threshold(
            _descending(logprobs[rows]), vocab, *(column[rows] for column in columns)
        )
    gone = logprobs < last
    if bool(tied.any()):
        equal = logprobs == last
        gone |= equal & (equal.cumsum(-1) > room)
    return logprobs.masked_fill(gone, float("-inf")).log_softmax(-1)


def _descending(logprobs: Tensor) -> Tensor:
    if logprobs.device.type != "cpu":
        return logprobs.sort(dim=-1, descending=True).values
    # numpy's sort is five times as fast as torch's, which also sorts indices.
    return torch.from_numpy(np.sort(logprobs.detach().numpy(), axis=-1)).flip(-1)


def _threshold(
    ordered: Tensor,
    vocab: int,
    top_p: Tensor,
    top_k: Tensor,
    log_min_p: Tensor | None = None,
    min_p_first: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find the cut of each row from its likeliest log-probabilities in descending order [rows, candidates].

    Returns four tensors [rows, 1]: the smallest value that stays, how many tokens with that value stay, if more tokens
    have it, and if the cut is beyond the candidates. In the last case the other three are meaningless.
    """
    candidates = ordered.shape[-1]
    rank = torch.arange(candidates, device=ordered.device)
    allowed = torch.where(top_k > 0, top_k, candidates)
    mass = ordered.double().exp()
    reached = mass.cumsum(-1)
    # The mass of a whole row is 1; the mass of its top k is their sum.
    total = torch.where(top_k > 0, reached.gather(-1, allowed.clamp(max=candidates) - 1), 1.0)
    unlikely = None if log_min_p is None else ordered < ordered[:, :1] + log_min_p
    open_ = torch.zeros_like(top_k, dtype=torch.bool)  # True if tokens beyond the candidates may pass min_p
    if unlikely is not None and log_min_p is not None and min_p_first is not None:
        passed = candidates - unlikely.sum(-1, keepdim=True)
        share = reached.gather(-1, torch.minimum(passed, allowed.clamp(max=candidates)) - 1)
        total = torch.where(min_p_first & (log_min_p > -torch.inf), share, total)
        open_ = min_p_first & (passed == candidates) & (top_k == 0)
    gone = (rank >= allowed) | ((reached - mass >= top_p * total) & (top_p < 1))
    if unlikely is not None:
        gone |= unlikely
    gone |= ordered == float("-inf")  # tokens that a grammar forbids are not ties at the cut
    gone[:, 0] = False
    count = candidates - gone.sum(-1, keepdim=True)
    last = ordered.gather(-1, count - 1)
    room = count - (ordered > last).sum(-1, keepdim=True)
    # With more candidates, `count` could have been larger. At the last candidate, a tie would be missed.
    beyond = (
        open_ | (top_k > candidates) | (count == candidates) if candidates < vocab else torch.zeros_like(gone[:, :1])
    )
    tied = (ordered == last).sum(-1, keepdim=True) > room
    return last, room, tied, beyond


def distribution(logits: Tensor, settings: Settings) -> Tensor:
    """Return the log-probabilities [rows, vocab] of each row's sampling distribution. Greedy rows have a plain softmax."""
    cut, logprobs = settings.cut, torch.empty_like(logits, dtype=torch.float32)
    for rows in _blocks(logits):
        some = logits[rows].float()
        logprobs[rows] = (some / settings.temperature[rows] if settings.scaled else some).log_softmax(-1)
    if cut is not None:
        for some_cut in _blocks(logprobs[: len(cut.rows)]):
            index = cut.rows[some_cut]
            columns = (column[some_cut] for column in (cut.top_p, cut.top_k, cut.log_min_p, cut.min_p_first))
            logprobs[index] = truncate(logprobs[index], *columns)
    return logprobs


def _blocks(logits: Tensor) -> list[slice]:
    """Return slices of rows to process at once: as many as fit in cache on a CPU, otherwise all."""
    rows, vocab = logits.shape
    step = max(1, BLOCK // vocab) if logits.device.type == "cpu" else max(1, rows)
    return [slice(start, start + step) for start in range(0, rows, step)]


@dataclass(frozen=True)
class SamplingMetadata:
    """Sampling inputs of a step's rows.

    - `uniform` [rows]: each row's random number in [0, 1).
    - `seen`: the history of the rows of `settings.penalties`, if any.
    - `allowed`: the indices of restricted rows [some], and their allowed tokens [some, vocab], at least one per row.
    """

    settings: Settings
    uniform: npt.NDArray[np.float64]
    seen: Seen | None = None
    allowed: tuple[Ints, npt.NDArray[np.bool_]] | None = None


@dataclass(frozen=True)
class SamplerOutput:
    """Sampled ids [rows], their log-probabilities [rows] (fp32), and the distribution [rows, vocab] they were drawn from."""

    ids: Tensor
    logprobs: Tensor
    distribution: Tensor


def sample(logits: Tensor, asked: SamplingMetadata) -> SamplerOutput:
    """Sample a token for each row of logits [rows, vocab or more]. The logits may be overwritten."""
    settings = asked.settings
    if settings.penalties is not None:
        logits = settings.penalties.apply(logits, asked.seen)
    if asked.allowed is not None:
        rows, allowed = (torch.from_numpy(array).to(logits.device) for array in asked.allowed)
        masked = logits.index_select(0, rows)
        masked[:, : allowed.shape[1]].masked_fill_(~allowed, -torch.inf)
        logits.index_copy_(0, rows, masked)
    every = distribution(logits, settings)
    return SamplerOutput(*draw_from(every, logits, settings, asked.uniform), every)


def draw_from(
    logprobs: Tensor, logits: Tensor, settings: Settings, u: npt.NDArray[np.float64]
) -> tuple[Tensor, Tensor]:
    """Draw tokens [rows] with their log-probabilities [rows].

    logprobs [rows, vocab] is the `distribution` of logits; u [rows] is in [0, 1).
    """
    if settings.all_greedy:
        best = logits.argmax(-1, keepdim=True)
        return best.squeeze(1), logprobs.gather(1, best).squeeze(1)
    target = torch.from_numpy(u).to(logits.device).unsqueeze(1)
    tokens = torch.empty_like(target, dtype=torch.int64)
    blocks = _blocks(logprobs)
    probability = torch.empty_like(logprobs[blocks[0]])
    cumulative = torch.empty_like(probability, dtype=torch.float64)
    for rows in blocks:
        # fp64 uses all 53 bits of u. A token of probability 0 has no width and is never drawn.
        count = len(logprobs[rows])
        torch.exp(logprobs[rows], out=probability[:count])
        mass = torch.cumsum(probability[:count], -1, dtype=torch.float64, out=cumulative[:count])
        tokens[rows] = torch.searchsorted(mass, target[rows] * mass[:, -1:], right=True)
    tokens.clamp_(max=logits.shape[-1] - 1)
    if settings.any_greedy:
        tokens = torch.where(settings.greedy, logits.argmax(-1, keepdim=True), tokens)
    return tokens.squeeze(1), logprobs.gather(1, tokens).squeeze(1)


def top(logprobs: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the `k` likeliest tokens of each row, likeliest first: ids [rows, k] and log-probabilities [rows, k].

    Ties take the lowest id first. A truncated token has -inf.
    """
    last = logprobs.topk(k, dim=-1).values[:, -1:]
    above, equal = logprobs > last, logprobs == last
    room = k - above.sum(-1, keepdim=True)
    taken = above | (equal & (equal.cumsum(-1) <= room))
    ids = taken.nonzero()[:, 1].view(-1, k)  # ascending; a stable sort keeps this order among ties
    values, order = logprobs.gather(1, ids).sort(dim=-1, descending=True, stable=True)
    return ids.gather(1, order), values


def likeliest(logprobs: Tensor, k: int) -> list[list[tuple[int, float]]]:
    """Return `top` of each row as (id, log-probability) pairs. NaN counts as -inf."""
    ids, values = (t.tolist() for t in top(logprobs.masked_fill(logprobs.isnan(), -torch.inf), k))
    return [list(zip(row_ids, row_values)) for row_ids, row_values in zip(ids, values)]
