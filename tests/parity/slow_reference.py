"""DeepSeek-V2/V3 written a second time, from the reports, token by token in float64, sharing no code with the package.

It reads a state_dict by name and a configuration's fields, nothing else. Equations are those of the V3 report.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

State = Mapping[str, Tensor]


def double(state: State) -> dict[str, Tensor]:
    return {name: tensor.detach().double() for name, tensor in state.items()}


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    total = sum(float(value) ** 2 for value in x)
    return x * weight / math.sqrt(total / len(x) + eps)


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def swiglu(state: State, prefix: str, x: Tensor) -> Tensor:
    gate, up = state[f"{prefix}.gate_proj.weight"] @ x, state[f"{prefix}.up_proj.weight"] @ x
    return state[f"{prefix}.down_proj.weight"] @ (silu(gate) * up)


def frequency(rope: Any, dim: int, pair: int) -> float:
    """Radians a position of the pair'th pair of `dim`; YaRN as the V2 report and DeepSeek's code have it."""
    plain = rope.theta ** (-2 * pair / dim)
    yarn = rope.yarn
    if yarn is None:
        return plain
    length = yarn.original_max_position_embeddings

    def where(turns: float) -> float:  # real-valued pair index (times two is dim's unit) that turns that often
        return dim * math.log(length / (2 * math.pi * turns)) / (2 * math.log(rope.theta))

    low, high = max(0, math.floor(where(yarn.beta_fast))), min(dim - 1, math.ceil(where(yarn.beta_slow)))
    if low == high:
        high += 0.001
    slow = min(1.0, max(0.0, (pair - low) / (high - low)))
    return slow * plain / yarn.factor + (1 - slow) * plain


def temperature(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 1.0 + 0.1 * scale * math.log(factor)


def turn(x: Tensor, rope: Any, position: int) -> Tensor:
    """Neighbouring dimensions as one complex number, turned."""
    length = 1.0
    if rope.yarn is not None:
        length = temperature(rope.yarn.factor, rope.yarn.mscale) / temperature(
            rope.yarn.factor, rope.yarn.mscale_all_dim
        )
    out = []
    for pair in range(len(x) // 2):
        angle = position * frequency(rope, len(x), pair)
        value = complex(float(x[2 * pair]), float(x[2 * pair + 1]))
        value *= length * complex(math.cos(angle), math.sin(angle))
        out += [value.real, value.imag]
    return torch.tensor(out, dtype=torch.float64)


def latent_attention(
    state: State, prefix: str, c: Any, xs: list[Tensor], positions: list[int], eps: float
) -> list[Tensor]:
    """Eq. 1-11, over the tokens of one document."""
    nope, rope_dim, heads = c.qk_nope_head_dim, c.qk_rope_head_dim, c.num_attention_heads
    scale = 1 / math.sqrt(nope + rope_dim)
    if c.rope.yarn is not None:
        scale *= temperature(c.rope.yarn.factor, c.rope.yarn.mscale_all_dim) ** 2

    def part(name: str, x: Tensor) -> Tensor:
        return state[f"{prefix}.{name}.weight"] @ x

    queries, keys, values = [], [], []
    for x, position in zip(xs, positions):
        if c.q_lora_rank:
            q = part("q_b_proj", norm(part("q_a_proj", x), state[f"{prefix}.q_a_layernorm.weight"], eps))
        else:
            q = part("q_proj", x)
        down = part("kv_a_proj_with_mqa", x)
        latent = norm(down[: c.kv_lora_rank], state[f"{prefix}.kv_a_layernorm.weight"], eps)
        shared_key = turn(down[c.kv_lora_rank :], c.rope, position)
        up = part("kv_b_proj", latent).view(heads, nope + c.v_head_dim)
        q = q.view(heads, nope + rope_dim)
        queries.append([torch.cat((q[h, :nope], turn(q[h, nope:], c.rope, position))) for h in range(heads)])
        keys.append([torch.cat((up[h, :nope], shared_key)) for h in range(heads)])
        values.append([up[h, nope:] for h in range(heads)])
    outputs = []
    for t in range(len(xs)):
        mixed = []
        for h in range(heads):
            scores = torch.stack([queries[t][h] @ keys[s][h] * scale for s in range(t + 1)])
            weights = torch.exp(scores - scores.max())
            weights = weights / weights.sum()
            mixed.append(sum(weights[s] * values[s][h] for s in range(t + 1)))
        outputs.append(part("o_proj", torch.cat(mixed)))
    return outputs


def choose_experts(scores: list[float], bias: list[float], c: Any) -> list[int]:
    """Eq. 14-16 with node-limited routing: sort whole groups, then the experts inside the groups that stay."""
    biased = [s + b for s, b in zip(scores, bias)]
    size = len(biased) // c.n_group
    groups = [list(range(g * size, (g + 1) * size)) for g in range(c.n_group)]

    def merit(group: list[int]) -> float:
        best = sorted((biased[e] for e in group), reverse=True)
        return sum(best[:2]) if c.group_score == "top2" else best[0]

    stay = sorted(groups, key=merit, reverse=True)[: c.topk_group] if c.n_group > 1 else groups
    return sorted((e for group in stay for e in group), key=lambda e: -biased[e])[: c.num_experts_per_tok]


def mixture(state: State, prefix: str, moe: Any, x: Tensor) -> Tensor:
    c = moe.router
    logits = state[f"{prefix}.router.gate"] @ x
    if c.scoring_func == "sigmoid":
        scores = [1 / (1 + math.exp(-float(z))) for z in logits]
    else:
        top = float(logits.max())
        total = sum(math.exp(float(z) - top) for z in logits)
        scores = [math.exp(float(z) - top) / total for z in logits]
    moved = state[f"{prefix}.router.e_score_correction_bias"] if c.score_bias else [0.0] * len(scores)
    bias = [float(b) for b in moved]
    chosen = choose_experts(scores, bias, c)
    total = sum(scores[e] for e in chosen) if c.norm_topk_prob else 1.0
    out = torch.zeros_like(x)
    for e in chosen:
        gate, up = (state[f"{prefix}.experts.gate_up_proj"][e] @ x).chunk(2)
        out = out + c.routed_scaling_factor * scores[e] / total * (
            state[f"{prefix}.experts.down_proj"][e] @ (silu(gate) * up)
        )
    if moe.n_shared_experts:
        out = out + swiglu(state, f"{prefix}.shared_experts", x)
    return out


def block(state: State, prefix: str, stage: Any, xs: list[Tensor], positions: list[int], eps: float) -> list[Tensor]:
    normed = [norm(x, state[f"{prefix}.input_layernorm.weight"], eps) for x in xs]
    mixed = latent_attention(state, f"{prefix}.attention", stage.attention, normed, positions, eps)
    xs = [x + y for x, y in zip(xs, mixed)]
    out = []
    for x in xs:
        inner = norm(x, state[f"{prefix}.post_attention_layernorm.weight"], eps)
        if stage.ffn.kind == "dense":
            out.append(x + swiglu(state, f"{prefix}.ffn", inner))
        else:
            out.append(x + mixture(state, f"{prefix}.ffn", stage.ffn, inner))
    return out


def hidden_states(state: State, config: Any, tokens: list[int], positions: list[int]) -> list[Tensor]:
    """What the head reads, for the tokens of one document."""
    xs = [state["embed_tokens.weight"][t] for t in tokens]
    stages = [stage for stage in config.stages for _ in range(stage.layers)]
    for index, stage in enumerate(stages):
        xs = block(state, f"layers.{index}", stage, xs, positions, config.rms_norm_eps)
    return [norm(x, state["norm.weight"], config.rms_norm_eps) for x in xs]


def prediction_module(
    state: State, config: Any, depth: int, hidden: list[Tensor], tokens: list[int], positions: list[int]
) -> list[Tensor]:
    """Eq. 21-23 for module `depth` (from 0): hidden [i] joined with the embedding of token i + 1 + depth.

    `hidden` is what the module before it gave (the main model's for depth 0); the result has one row for each i for which that token exists.
    """
    prefix, eps = f"mtp.{depth}", config.rms_norm_eps
    joined = []
    for i in range(len(tokens) - 1 - depth):
        embedded = norm(state["embed_tokens.weight"][tokens[i + 1 + depth]], state[f"{prefix}.enorm.weight"], eps)
        before = norm(hidden[i], state[f"{prefix}.hnorm.weight"], eps)
        joined.append(state[f"{prefix}.eh_proj.weight"] @ torch.cat((embedded, before)))
    out = block(state, f"{prefix}.block", config.stages[-1], joined, positions[: len(joined)], eps)
    return [norm(x, state[f"{prefix}.norm.weight"], eps) for x in out]


def sequence_balance(scores: list[list[float]], chosen: list[list[int]]) -> float:
    """Eq. 17-20 for one sequence, without alpha: scores [token][expert], chosen [token] the k experts counted."""
    n_tokens, n_experts, k = len(scores), len(scores[0]), len(chosen[0])
    loss = 0.0
    for i in range(n_experts):
        f = n_experts / (k * n_tokens) * sum(1 for experts in chosen if i in experts)
        p = sum(row[i] / sum(row) for row in scores) / n_tokens
        loss += f * p
    return loss
