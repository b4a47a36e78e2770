"""Drawing tokens, and the log-probability of each under the very distribution it was drawn from.

A row's random number is given (`SamplingMetadata.uniform`), and chooses a token by the inverse of the cumulative distribution.

Logits pass, in this order, through penalties and biases, what the row may draw at all, temperature, top-k, top-p and min-p (or, where
`min_p_first` asks for it, min-p, top-k and top-p). No row's result depends on the other rows, to the last bit: what one row asks for and
another does not is done to the one alone.
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
"""Of each row that asks for penalties: tokens of its prompt or reply, and how often in the reply, each [rows, most tokens]."""

CANDIDATES = 256
"""Tokens among which a cut is looked for before a whole row is sorted."""
BLOCK = 1 << 16
"""Numbers of a large vocabulary that are worked on at once on a CPU: what then lies in its cache is ten times as fast as memory
that the system hands out anew for each step."""
COLDEST, HOTTEST = 1e-20, 1e20
"""Temperatures beyond these are these: logits divided by less would overflow fp32 and leave NaN."""


@dataclass(frozen=True)
class Penalties:
    """What each row of a batch adds to its logits, for the rows that do.

    `rows` [penalised rows] have a history, and repetition, presence and frequency penalties, each [penalised rows, 1].
    `biased`: (row, token) [2, biases] with `bias` [biases].
    """

    rows: Ints
    repetition: Tensor
    presence: Tensor
    frequency: Tensor
    biased: Tensor
    bias: Tensor

    @classmethod
    def of(cls, params: Sequence[SamplingParams], device: torch.device | str) -> Penalties | None:
        """None where no row asks for any."""
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
        """Logits [rows, vocab] after penalties and biases, a new tensor in fp32. `seen`: of `rows`; None where there are none.

        In this order: repetition (CTRL, Keskar et al. 2019, section 4.1: a positive logit of a token of prompt or reply is divided, a
        negative one multiplied), presence and frequency (of the reply's tokens, as in OpenAI's API: logit - frequency * count - presence),
        and biases, which are added.
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
    """Whether a row with `params` has a history."""
    return params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0


@dataclass(frozen=True)
class Cut:
    """What is cut off in the rows that cut anything: `top_p`, `top_k`, the logarithm of `min_p` and `min_p_first`, each [cut rows, 1].

    `rows` [cut rows] says which they are, in ascending order.
    """

    rows: Tensor
    top_p: Tensor
    top_k: Tensor
    log_min_p: Tensor
    min_p_first: Tensor


@dataclass(frozen=True)
class Settings:
    """Sampling settings of a batch: `temperature` and `greedy` [rows, 1]; a greedy row has temperature 1 and nothing cut off.

    What no row asks for is None or False, and costs nothing.
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
        """Of one row for each of `params`, which have passed `check_params`."""
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
    """Log-probabilities [rows, vocab] cut to the `top_k` likeliest tokens (0: all), then to the fewest whose mass reaches
    `top_p` of what is left, then to those that are at least `min_p` (given as its logarithm) times as likely as the likeliest;
    renormalised. Where `min_p_first` [rows, 1] is true, `top_p` is a share of what `min_p` leaves, too. A token cut off has -inf. Of equally
    likely ones the lowest ids stay; the likeliest always does.

    A mass that reaches `top_p` to within rounding may be cut one token earlier or later when it is computed again from
    logits that differ in their last bits: one token in some thousand. A policy gradient needs the very set that was drawn
    from: `Completion.kept`.
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
    # numpy's is five times as fast as torch's, which sorts places with the values.
    return torch.from_numpy(np.sort(logprobs.detach().numpy(), axis=-1)).flip(-1)


def _threshold(
    ordered: Tensor,
    vocab: int,
    top_p: Tensor,
    top_k: Tensor,
    log_min_p: Tensor | None = None,
    min_p_first: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the likeliest tokens' log-probabilities in descending order [rows, candidates], each [rows, 1]: the least that stays, how many
    tokens of that very value stay, whether more have it, and whether the cut lies beyond the candidates (the rest is then meaningless).
    """
    candidates = ordered.shape[-1]
    rank = torch.arange(candidates, device=ordered.device)
    allowed = torch.where(top_k > 0, top_k, candidates)
    mass = ordered.double().exp()
    reached = mass.cumsum(-1)
    # Of the whole row the mass is one; of its `top_k` likeliest it is what they have together.
    total = torch.where(top_k > 0, reached.gather(-1, allowed.clamp(max=candidates) - 1), 1.0)
    unlikely = None if log_min_p is None else ordered < ordered[:, :1] + log_min_p
    open_ = torch.zeros_like(top_k, dtype=torch.bool)  # whether more may pass min_p than the candidates
    if unlikely is not None and log_min_p is not None and min_p_first is not None:
        passed = candidates - unlikely.sum(-1, keepdim=True)
        share = reached.gather(-1, torch.minimum(passed, allowed.clamp(max=candidates)) - 1)
        total = torch.where(min_p_first & (log_min_p > -torch.inf), share, total)
        open_ = min_p_first & (passed == candidates) & (top_k == 0)
    gone = (rank >= allowed) | ((reached - mass >= top_p * total) & (top_p < 1))
    if unlikely is not None:
        gone |= unlikely
    gone |= ordered == float("-inf")  # what a grammar forbids is not a tie at the cut
    gone[:, 0] = False
    count = candidates - gone.sum(-1, keepdim=True)
    last = ordered.gather(-1, count - 1)
    room = count - (ordered > last).sum(-1, keepdim=True)
    # With more candidates than there are, `count` of these might have been another; at their very end, a tie would not be seen.
    beyond = (
        open_ | (top_k > candidates) | (count == candidates) if candidates < vocab else torch.zeros_like(gone[:, :1])
    )
    tied = (ordered == last).sum(-1, keepdim=True) > room
    return last, room, tied, beyond


def distribution(logits: Tensor, settings: Settings) -> Tensor:
    """Log-probabilities [rows, vocab] of the distribution that each row is drawn from; plain softmax where greedy."""
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
    """Rows to work on at once: on a CPU as many as its cache holds, else all."""
    rows, vocab = logits.shape
    step = max(1, BLOCK // vocab) if logits.device.type == "cpu" else max(1, rows)
    return [slice(start, start + step) for start in range(0, rows, step)]


@dataclass(frozen=True)
class SamplingMetadata:
    """What each row of a step draws by.

    uniform [rows]: its random number in [0, 1). seen: of the rows of `settings.penalties`, where these have any. allowed: numbers of the
    rows that may not draw everything [some], and what these may draw [some, vocab]; a row may draw one token at least.
    """

    settings: Settings
    uniform: npt.NDArray[np.float64]
    seen: Seen | None = None
    allowed: tuple[Ints, npt.NDArray[np.bool_]] | None = None


@dataclass(frozen=True)
class SamplerOutput:
    """ids [rows] and their log-probabilities [rows] (fp32), of the distribution [rows, vocab] that each row was drawn from (`distribution`)."""

    ids: Tensor
    logprobs: Tensor
    distribution: Tensor


def sample(logits: Tensor, asked: SamplingMetadata) -> SamplerOutput:
    """Draw a token for each row of logits [rows, vocab or more], which may be overwritten."""
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
    """logprobs [rows, vocab] of the `distribution` of logits, u [rows] in [0, 1) -> tokens [rows] and their log-probabilities [rows]."""
    if settings.all_greedy:
        best = logits.argmax(-1, keepdim=True)
        return best.squeeze(1), logprobs.gather(1, best).squeeze(1)
    target = torch.from_numpy(u).to(logits.device).unsqueeze(1)
    tokens = torch.empty_like(target, dtype=torch.int64)
    blocks = _blocks(logprobs)
    probability = torch.empty_like(logprobs[blocks[0]])
    cumulative = torch.empty_like(probability, dtype=torch.float64)
    for rows in blocks:
        # In fp64, so that 53 bits of u are not wasted; a token of probability 0 has no width and is never met.
        count = len(logprobs[rows])
        torch.exp(logprobs[rows], out=probability[:count])
        mass = torch.cumsum(probability[:count], -1, dtype=torch.float64, out=cumulative[:count])
        tokens[rows] = torch.searchsorted(mass, target[rows] * mass[:, -1:], right=True)
    tokens.clamp_(max=logits.shape[-1] - 1)
    if settings.any_greedy:
        tokens = torch.where(settings.greedy, logits.argmax(-1, keepdim=True), tokens)
    return tokens.squeeze(1), logprobs.gather(1, tokens).squeeze(1)


def top(logprobs: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` likeliest tokens of each row, likeliest first: ids [rows, k] and log-probabilities [rows, k].

    Of equally likely ones the lowest id comes first and is taken first. A token that was cut off has -inf.
    """
    last = logprobs.topk(k, dim=-1).values[:, -1:]
    above, equal = logprobs > last, logprobs == last
    room = k - above.sum(-1, keepdim=True)
    taken = above | (equal & (equal.cumsum(-1) <= room))
    ids = taken.nonzero()[:, 1].view(-1, k)  # in ascending order, which a stable sort keeps among equals
    values, order = logprobs.gather(1, ids).sort(dim=-1, descending=True, stable=True)
    return ids.gather(1, order), values


def likeliest(logprobs: Tensor, k: int) -> list[list[tuple[int, float]]]:
    """`top` of each row as pairs. Of what is not a number nothing is likely."""
    ids, values = (t.tolist() for t in top(logprobs.masked_fill(logprobs.isnan(), -torch.inf), k))
    return [list(zip(row_ids, row_values)) for row_ids, row_values in zip(ids, values)]
