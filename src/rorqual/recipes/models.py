"""Small models that the recipes train.

A teacher model follows DeepSeek-V3: MLA, one dense layer, then MoE layers, a router bias and MTP. A student model is dense,
like DeepSeek-R1's students, and has Qwen3's architecture.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

from rorqual.model.account import account
from rorqual.model.attention import GQAConfig, MLAConfig
from rorqual.model.config import ModelConfig, Stage
from rorqual.model.ffn import DenseConfig, MoEConfig
from rorqual.model.ffn.router import GroupedTopKConfig

TeacherSize = Literal["tiny", "small", "medium"]
"""Size of a teacher model. `tiny` is for tests and trains in a second. `small` is the quickstart's teacher, with 0.7M
parameters. `medium` has 57M parameters."""
Size = Literal[TeacherSize, "student", "tiny-student"]
"""Size of a model: a teacher's size, `student` for the student of a small teacher, or `tiny-student` for the student of
a tiny teacher."""

HIDDEN: dict[TeacherSize, int] = {"tiny": 32, "small": 96, "medium": 384}
STUDENT_OF: dict[Size, TeacherSize] = {"student": "small", "tiny-student": "tiny"}


def model_of(size: Size, *, vocab_size: int, context: int) -> ModelConfig:
    """Return the model of the size `size`."""
    if size in STUDENT_OF:
        return student_like(v3_like(STUDENT_OF[size], vocab_size=vocab_size, context=context))
    teacher = next(known for known in get_args(TeacherSize) if known == size)
    return v3_like(teacher, vocab_size=vocab_size, context=context)


def v3_like(size: TeacherSize, *, vocab_size: int, context: int) -> ModelConfig:
    """Return a small model of DeepSeek-V3's architecture.

    One in eight routed experts is active. Each MoE layer has one shared expert, and the model has one MTP module.
    """
    d = HIDDEN[size]
    layers, experts, active = {"tiny": (1, 16, 2), "small": (2, 16, 2), "medium": (7, 32, 4)}[size]
    mla = MLAConfig(
        num_attention_heads=d // 32,
        q_lora_rank=d // 2,
        kv_lora_rank=3 * d // 8,
        qk_nope_head_dim=16,
        qk_rope_head_dim=16,
        v_head_dim=32,
    )
    moe = MoEConfig(
        router=GroupedTopKConfig(n_routed_experts=experts, num_experts_per_tok=active),
        moe_intermediate_size=d // 2,
        n_shared_experts=1,
    )
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=d,
        stages=(
            Stage(layers=1, attention=mla, ffn=DenseConfig(intermediate_size=2 * d)),
            Stage(layers=layers, attention=mla, ffn=moe),
        ),
        max_position_embeddings=context,
        num_nextn_predict_layers=1,
        initializer_range=0.05,
    )


def student_like(teacher: ModelConfig) -> ModelConfig:
    """Return a dense model of Qwen3's architecture with a quarter of the teacher's active parameters, within 3 %.

    The student has the teacher's vocabulary size, context length and number of layers. The architecture is that of
    Qwen3's small models (2505.09388, table 1): grouped-query attention with two heads per key-value head, norms on q and
    k, tied embeddings. The SwiGLU layer is about three times as wide as the hidden state.

    The widths of the student's layers are multiples of 8. Among the models within 3 % of the target parameter count, the
    function minimizes a weighted sum of two deviations: from the target parameter count, and from a SwiGLU width of three times
    the hidden size.
    """
    target, depth = account(teacher).active / 4, len(teacher.layers)
    candidates: list[tuple[float, ModelConfig]] = []
    for hidden in range(8, teacher.hidden_size * 4 + 1, 8):
        narrow_params, wide_params = (account(_qwen3_like(teacher, hidden, depth, inner)).active for inner in (8, 16))
        inner = 8 * round(1 + (target - narrow_params) / (wide_params - narrow_params))
        if inner < 8:
            break
        model = _qwen3_like(teacher, hidden, depth, inner)
        error = account(model).active / target - 1
        if abs(error) <= 0.03:
            candidates.append((abs(math.log(inner / (3 * hidden))) + 10 * abs(error), model))
    return min(candidates, key=lambda candidate: candidate[0])[1]


def _qwen3_like(teacher: ModelConfig, hidden: int, layers: int, inner: int) -> ModelConfig:
    """Return a dense Qwen3-like model with an even number of query heads. The query heads together are at least `hidden` wide.
    If `hidden` is at most 512, the model has at most four query heads. Wider models have more query heads, each 128 wide."""
    head_dim = min(max(8, 2 ** math.ceil(math.log2(hidden / 4))), 128)
    heads = 2 * math.ceil(hidden / head_dim / 2)
    attention = GQAConfig(
        num_attention_heads=heads, num_key_value_heads=heads // 2, head_dim=head_dim, qk_norm=True
    )  # keep RoPE's base at 10,000: Qwen3's 1,000,000 is for a context of 32,768
    return ModelConfig(
        vocab_size=teacher.vocab_size,
        hidden_size=hidden,
        stages=(Stage(layers=layers, attention=attention, ffn=DenseConfig(intermediate_size=inner)),),
        max_position_embeddings=teacher.max_position_embeddings,
        tie_word_embeddings=True,
        initializer_range=0.05,
    )
