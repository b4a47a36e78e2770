"""A training loop written a second time, slowly and plainly: torch, and the model's forward pass for the trunk. It imports nothing of
`rorqual.train`. Equations: AdamW (Loshchilov and Hutter 2019), Muon (Jordan et al. 2024), MTP (V3 eq. 21-25), the router's bias
(V3, section 2.1.2), GRPO (DeepSeekMath eq. 3; R1 eq. 1-3), DistiLLM eq. 3 and 4."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from rorqual.model import Decoder
from rorqual.model.attention import AttentionContext


@dataclass
class Rows:
    """An update's rows [rows, seq]: token, next token, whether that is trained, document (-1: padding), place in it.

    sampled: the sampler's log-probabilities of the next tokens; replay: its experts; teacher [rows, seq, vocab]: log-probabilities.
    """

    tokens: Tensor
    targets: Tensor
    mask: Tensor
    documents: Tensor
    places: Tensor
    advantages: Tensor | None = None
    sampled: Tensor | None = None
    reference: Tensor | None = None
    replay: Tensor | None = None
    teacher: Tensor | None = None

    def halves(self) -> list[Rows]:
        """Two micro-batches: the first half of the rows, and the rest."""
        cut = math.ceil(len(self.tokens) / 2)
        parts = []
        for part in (slice(0, cut), slice(cut, None)):
            given = {f.name: getattr(self, f.name) for f in fields(self)}
            parts.append(Rows(**{name: None if value is None else value[part] for name, value in given.items()}))
        return [part for part in parts if len(part.tokens)]


@dataclass
class Seen:
    """What a forward pass gave: hidden [rows, seq, d], and, of each router, the experts of the tokens that are no padding."""

    hidden: Tensor
    experts: list[Tensor]


@dataclass
class Part:
    """An objective: its coefficient, what a micro-batch adds to the sum, and to the weight by which the update's sum is divided."""

    coefficient: float
    total: Callable[[Decoder, Rows, Seen], Tensor]
    weight: Callable[[Rows], float]


# ---- objectives


def logits(model: Decoder, hidden: Tensor) -> Tensor:
    head = model.embed_tokens.weight if model.lm_head is None else model.lm_head.weight
    return F.linear(hidden, head).float()


def logprobs(scores: Tensor) -> Tensor:
    """scores [n, vocab] fp32 -> log-probabilities."""
    top = scores.max(-1, keepdim=True).values.detach()
    return scores - top - (scores - top).exp().sum(-1, keepdim=True).log()


def of_targets(scores: Tensor, targets: Tensor) -> Tensor:
    return logprobs(scores)[torch.arange(len(targets)), targets]


def trained(rows: Rows) -> float:
    return float((rows.mask > 0).sum())


def next_token(coefficient: float = 1.0) -> Part:
    def total(model: Decoder, rows: Rows, seen: Seen) -> Tensor:
        at = rows.mask > 0
        return -of_targets(logits(model, seen.hidden[at]), rows.targets[at]).sum()

    return Part(coefficient, total, trained)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * (x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt())


def mtp(coefficient: float) -> Part:
    """One module, written out but for its block: from h_i and the embedding of t_{i+1} it predicts t_{i+2}. The gradient flows into the
    trunk by h_i and into the embedding."""

    def same(rows: Rows) -> Tensor:
        return (rows.documents[:, 1:] == rows.documents[:, :-1]) & (rows.documents[:, 1:] >= 0)

    def at(rows: Rows) -> Tensor:
        """Places i whose token i + 1 is of the document, and whose token i + 2 is trained."""
        return same(rows) & (rows.mask[:, 1:] > 0)

    def total(model: Decoder, rows: Rows, seen: Seen) -> Tensor:
        module, eps = model.mtp[0], model.config.rms_norm_eps
        ahead = model.embed_tokens.weight[rows.tokens[:, 1:]]
        joined = torch.cat(
            (rms_norm(ahead, module.enorm.weight, eps), rms_norm(seen.hidden[:, :-1], module.hnorm.weight, eps)), dim=-1
        )
        x = F.linear(joined, module.eh_proj.weight).float()
        length = x.shape[1]
        one = rows.documents[:, :-1]
        mask = (one[:, :, None] == one[:, None, :]) & (torch.arange(length)[:, None] >= torch.arange(length))
        context = AttentionContext(rows.places[:, :-1], mask.unsqueeze(1), model.ops)
        x, (routing,) = module.block(x, context, [None], [None])
        if routing is not None:
            seen.experts.append(routing.indices[same(rows).flatten()])
        hidden = rms_norm(x, module.norm.weight, eps)
        return -of_targets(logits(model, hidden[at(rows)]), rows.targets[:, 1:][at(rows)]).sum()

    return Part(coefficient, total, lambda rows: float(at(rows).sum()))


def of_answers(rows: Rows) -> Tensor:
    """For each trained place, how many the answer has that it is of [n]."""
    counts = []
    for row, place in (rows.mask > 0).nonzero().tolist():
        mine = (rows.documents[row] == rows.documents[row, place]) & (rows.mask[row] > 0)
        counts.append(float(mine.sum()))
    return torch.tensor(counts)


def grpo(*, low: float, high: float, beta: float, temperature: float, per_answer: bool) -> Part:
    """-min(r A, clip(r) A) + beta k3 of each token: mean over tokens, or over each answer's and then over answers."""

    def share(rows: Rows) -> Tensor:
        counts = of_answers(rows)
        return 1 / counts if per_answer else torch.ones_like(counts)

    def total(model: Decoder, rows: Rows, seen: Seen) -> Tensor:
        assert rows.sampled is not None and rows.advantages is not None and rows.reference is not None
        at = rows.mask > 0
        now = of_targets(logits(model, seen.hidden[at]) / temperature, rows.targets[at])
        ratio = (now - rows.sampled[at]).exp()
        advantage = rows.advantages[at]
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
        further = rows.reference[at] - now
        return ((beta * (further.exp() - further - 1) - gain) * share(rows)).sum()

    return Part(1.0, total, lambda rows: float(share(rows).sum()))


def distil(kind: str, *, alpha: float, temperature: float, coefficient: float = 1.0) -> Part:
    """The divergence of the whole distributions p (teacher) and q (student) at a temperature, times its square."""

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (a * (a.log() - b.log())).sum(-1)

    def total(model: Decoder, rows: Rows, seen: Seen) -> Tensor:
        assert rows.teacher is not None
        at = rows.mask > 0
        p = logprobs(rows.teacher[at] / temperature).exp()
        q = logprobs(logits(model, seen.hidden[at]) / temperature).exp()
        found = {
            "forward": lambda: kl(p, q),
            "reverse": lambda: kl(q, p),
            "skewed": lambda: kl(p, alpha * p + (1 - alpha) * q),
            "skewed_reverse": lambda: kl(q, alpha * q + (1 - alpha) * p),
        }[kind]()
        return found.sum() * temperature**2

    return Part(coefficient, total, trained)


# ---- optimizers


@dataclass(frozen=True)
class AdamW:
    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float


@dataclass(frozen=True)
class Muon:
    lr: float
    momentum: float
    weight_decay: float
    adamw: AdamW


def adamw(p: Tensor, grads: Sequence[Tensor], factor: float, c: AdamW) -> Tensor:
    """The parameter after the last of all gradients that there were, in float64."""
    first, second = c.betas
    m, v = torch.zeros_like(p, dtype=torch.float64), torch.zeros_like(p, dtype=torch.float64)
    for g in grads:
        m = first * m + (1 - first) * g.double()
        v = second * v + (1 - second) * g.double() ** 2
    t, rate = len(grads), c.lr * factor
    step = (m / (1 - first**t)) / ((v / (1 - second**t)).sqrt() + c.eps)
    decayed = p.double() * (1 - rate * c.weight_decay) if p.dim() > 1 else p.double()
    return decayed - rate * step


def muon(p: Tensor, grads: Sequence[Tensor], factor: float, c: Muon) -> Tensor:
    """One matrix: Nesterov's momentum, five quintic steps on the singular values, decoupled decay."""
    m = torch.zeros_like(p, dtype=torch.float64)
    for g in grads:
        m = c.momentum * m + (1 - c.momentum) * g.double()
    x = (1 - c.momentum) * grads[-1].double() + c.momentum * m
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    s = s / (s.norm() + 1e-7)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    rate = c.lr * factor
    return p.double() * (1 - rate * c.weight_decay) - rate * math.sqrt(max(1, p.shape[0] / p.shape[1])) * (u * s) @ vh


def updated(name: str, p: Tensor, grads: Sequence[Tensor], factor: float, c: AdamW | Muon) -> Tensor:
    """AdamW has vectors, the embedding, the head and routers; Muon each other matrix, gates and ups and all experts apart."""
    if isinstance(c, AdamW):
        return adamw(p, grads, factor, c)
    if p.dim() == 1 or name in ("embed_tokens.weight", "lm_head.weight") or name.endswith(".gate"):
        return adamw(p, grads, factor, c.adamw)
    if p.dim() == 3:
        return torch.stack([updated(name, p[e], [g[e] for g in grads], factor, c) for e in range(len(p))])
    if name.endswith("gate_up_proj"):
        return torch.cat([muon(h, [g.chunk(2)[i] for g in grads], factor, c) for i, h in enumerate(p.chunk(2))])
    return muon(p, grads, factor, c)


# ---- the loop


@dataclass(frozen=True)
class Plan:
    """Numbers of a run. warmup, decay and final: steps up, the share of the steps at the end over which the rate falls, and down to what."""

    steps: int
    optim: AdamW | Muon
    warmup: int
    decay: float
    final: float
    clip: float
    gamma: float
    bf16: bool


def factor(step: int, plan: Plan) -> float:
    """The rate's share in step 0, 1, ...: the first step of the warm-up has 1 / warmup, the last of the run has `final`."""
    up = (step + 1) / plan.warmup if step < plan.warmup else 1.0
    falling = plan.steps * plan.decay
    done = step + 1 - (plan.steps - falling)  # how much of the fall lies behind this step
    begun = step >= plan.steps - falling
    return up * (1 + (plan.final - 1) * done / falling if falling and begun else 1.0)


@dataclass
class Told:
    """Of a step: the loss and the norm of the gradient before the clip of each update, tokens that are no padding, and how many tokens
    each expert of each router served."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    tokens: int = 0
    loads: list[list[int]] = field(default_factory=list)

    @property
    def unevenness(self) -> float:
        """The largest load over the mean, a mean over routers."""
        return sum(max(load) * len(load) / sum(load) for load in self.loads) / len(self.loads)


def micro_batch(
    model: Decoder, parts: Sequence[Part], rows: Rows, weights: Sequence[float], bf16: bool
) -> tuple[float, list[Tensor]]:
    """Adds to every parameter's gradient; returns the loss, and of each router that ran the experts of tokens that are no padding."""
    real = (rows.documents >= 0).flatten()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        output = model(rows.tokens, rows.places, segments=rows.documents, replay=rows.replay)
        seen = Seen(output.hidden, [one.indices[real] for one in output.routing])
        sums = [part.total(model, rows, seen) for part in parts]
    loss = torch.zeros(())
    for part, total, weight in zip(parts, sums, weights):
        loss = loss + part.coefficient * total / weight
    loss.backward()
    return float(loss.detach()), seen.experts


def train(model: Decoder, updates: Callable[[int], list[Rows]], parts: Sequence[Part], plan: Plan) -> Iterator[Told]:
    """Trains `model` in place; after each step, what is to be told of it."""
    names = dict(model.named_parameters())
    history: dict[str, list[Tensor]] = {name: [] for name in names}
    for step in range(plan.steps):
        told = Told()
        for rows in updates(step):
            for p in names.values():
                p.grad = torch.zeros_like(p)
            weights = [part.weight(rows) for part in parts]
            found = [micro_batch(model, parts, half, weights, plan.bf16) for half in rows.halves()]
            grads = {name: p.grad for name, p in names.items() if p.grad is not None}
            norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in grads.values()))
            told.norms.append(norm)
            told.losses.append(sum(loss for loss, _ in found))
            told.tokens += int((rows.documents >= 0).sum())
            chosen = [torch.cat(experts) for experts in zip(*(experts for _, experts in found))]
            with torch.no_grad():
                for name, p in names.items():
                    history[name].append(grads[name] * min(1.0, plan.clip / norm))
                    p.copy_(updated(name, p, history[name], factor(step, plan), plan.optim))
                loads = [
                    [int((one == e).sum()) for e in range(len(r.router.gate))]
                    for r, one in zip(model.routing_ffns(), chosen)
                ]
                for router, load in zip(model.routing_ffns(), loads):
                    mean = sum(load) / len(load)
                    for expert, tokens in enumerate(load):
                        router.router.e_score_correction_bias[expert] += plan.gamma * (
                            (tokens < mean) - (tokens > mean)
                        )
            before = told.loads or [[0] * len(load) for load in loads]
            told.loads = [[a + b for a, b in zip(one, two)] for one, two in zip(before, loads)]
        yield told
