"""Small models whose weights are scaled until logits have a spread of about one and attention is peaked."""

from __future__ import annotations

import torch

from rorqual.engine import Completion, Engine
from rorqual.model import Decoder, ModelConfig, Stage, build
from rorqual.model.attention import GQAConfig, MLAConfig
from rorqual.model.attention.attention import AttentionConfig
from rorqual.model.ffn import DenseConfig, MoEConfig
from rorqual.ops.sampling import SamplingSettings, distribution

ATTENTION: dict[str, AttentionConfig] = {
    "mla": MLAConfig(
        num_attention_heads=3,
        q_lora_rank=12,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=12,
    ),
    "gqa": GQAConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=8, qk_norm=True),
}


def make_model(kind: str, *, experts: bool = True, seed: int = 0, context: int = 96) -> Decoder:
    attention = ATTENTION[kind]
    dense = DenseConfig(intermediate_size=48)
    moe = MoEConfig(n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=16, n_shared_experts=1)
    config = ModelConfig(
        vocab_size=264,
        hidden_size=32,
        stages=(
            Stage(layers=1, attention=attention, ffn=dense),
            Stage(layers=2, attention=attention, ffn=moe if experts else dense),
        ),
        max_position_embeddings=context,
        initializer_range=0.3,
    )
    model = build(config, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:  # norms at one would hide a missing or misplaced one
            parameter.data.copy_(0.7 + 0.6 * torch.rand(parameter.shape, generator=generator))
        if name in ("lm_head.weight",):
            parameter.data.mul_(0.6)
    for router in model.routing_ffns():
        router.router.e_score_correction_bias.copy_(
            0.2 * torch.randn(router.router.e_score_correction_bias.shape, generator=generator)
        )
    return model


def whole_forward(model: Decoder, completion: Completion) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that predict each new token, from one uncached forward that replays the engine's experts; and the choices
    [positions, layers, k] that this forward would have made itself."""
    ids = torch.tensor([[*completion.prompt_ids, *completion.token_ids]])
    with torch.no_grad():
        replay = None if completion.experts is None else completion.experts.unsqueeze(0)
        output = model(ids[:, :-1], replay=replay)
        logits = model.logits(output.hidden)[0, len(completion.prompt_ids) - 1 :]
    own = torch.stack([r.own for r in output.routing], 1) if output.routing else torch.empty(0)
    return logits, own


def recomputed(model: Decoder, completion: Completion, settings: SamplingSettings) -> torch.Tensor:
    """Log-probabilities of the new tokens under `settings`, from the whole forward."""
    logits, _ = whole_forward(model, completion)
    return distribution(logits, settings).gather(1, torch.tensor(completion.token_ids).unsqueeze(1)).squeeze(1)


def ids_and_logprobs(completion: Completion) -> tuple[list[int], list[float]]:
    """The ids and log-probabilities of a reply, which are compared to the last bit."""
    return completion.token_ids, completion.logprobs


def finish(engine: Engine) -> dict[int, Completion]:
    """Run steps until nothing runs or waits; the last sample of each request by the request's id."""
    found: dict[int, Completion] = {}
    while engine.stats()["running"] + engine.stats()["waiting"]:
        found |= {delta.request_id: delta.completion for delta in engine.step() if delta.completion is not None}
    return found
