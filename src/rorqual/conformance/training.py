"""Checks of optimizers and objectives."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rorqual.conformance.models import ConformanceError, check_near, model_of
from rorqual.data.tokenizer import BASE_VOCAB
from rorqual.model.attention import DSAConfig, MLAConfig
from rorqual.model.config import Stage
from rorqual.model.ffn import MoEConfig
from rorqual.model.ffn.router import GroupedTopKConfig
from rorqual.train.batch import TrainBatch
from rorqual.train.gradient import gradient, open_workers
from rorqual.train.objectives import Objective
from rorqual.train.optim import OptimConfig, Optimizer

SHAPES = {
    "embed_tokens.weight": (12, 8),
    "layers.0.o_proj.weight": (8, 8),
    "layers.0.ffn.router.gate": (4, 8),
    "norm.weight": (8,),
}
LATENT = {
    "num_attention_heads": 2,
    "q_lora_rank": 10,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 5,
}


def _begun(config: OptimConfig) -> tuple[dict[str, nn.Parameter], Optimizer]:
    generator = torch.Generator().manual_seed(0)
    params = {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()}
    return params, config.build(params)


def _steps(optimizer: Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step + 1)
        optimizer.step({name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}, 1.0)


def resume(config: OptimConfig) -> None:
    """An optimizer that loads the saved state continues with the bits of a straight run."""
    (straight, optimizer), (stopped, first), (resumed, second) = (_begun(config) for _ in range(3))
    _steps(optimizer, 0, 6)
    _steps(first, 0, 3)
    second.load({name: tensor.clone() for name, tensor in first.state().items()})
    for name, parameter in resumed.items():
        parameter.data.copy_(stopped[name])
    _steps(second, 3, 6)
    if differing := [name for name in straight if not torch.equal(resumed[name], straight[name])]:
        raise ConformanceError(f"the parameters {', '.join(differing)} have other bits")


def _batch_for(objective: Objective, rows: int, seq: int = 16) -> TrainBatch:
    """Return random rows with all optional fields that `objective` requires. Each row is one document."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(BASE_VOCAB, (rows, seq), generator=generator)
    fields: dict[str, Tensor] = {}
    for name in objective.required_batch_fields():
        values = 1 + torch.rand((rows, seq, BASE_VOCAB if name.startswith("teacher") else 1), generator=generator)
        values = values if name.startswith("teacher") else values.squeeze(-1)
        fields[name] = values.log_softmax(-1) if name.endswith("logprobs") else values
    mask = (torch.rand((rows, seq), generator=generator) < torch.rand((rows, 1), generator=generator)).float()
    positions = torch.arange(seq).expand(rows, seq)
    return TrainBatch(tokens, tokens.roll(-1, 1), mask, torch.zeros_like(tokens), positions, **fields)


def micro_batches(objective: Objective) -> None:
    """Micro-batches have the loss and the gradient of the whole batch."""
    attention = (
        DSAConfig(**LATENT, index_n_heads=2, index_head_dim=8, index_topk=4)
        if objective.recorded_tensors()
        else MLAConfig(**LATENT)
    )
    ffn = MoEConfig(router=GroupedTopKConfig(n_routed_experts=6, num_experts_per_tok=2), moe_intermediate_size=8)
    model = model_of(Stage(layers=2, attention=attention, ffn=ffn), mtp=getattr(objective, "depth", 0))
    batch = _batch_for(objective, 6 * objective.rows_together)
    with open_workers(1) as pool:
        whole = gradient(model, [objective], batch, parts=1, pool=pool)
        for parts in (2, 3, 6):
            found = gradient(model, [objective], batch, parts=parts, pool=pool)
            check_near(
                torch.tensor(found.loss), torch.tensor(whole.loss), what=f"the losses of 1 and {parts} micro-batches"
            )
            for (name, _), grad, one in zip(model.named_parameters(), found.grads, whole.grads, strict=True):
                check_near(grad, one, what=f"the gradients of {name} in 1 and {parts} micro-batches")
