"""Writes tests/parity/golden/trl_losses.json: TRL's GRPO loss and its gradient for the logits, for each option of ours.

    pip install trl==1.16.0
    python tests/parity/make_trl_golden.py

It calls the loss of TRL's own trainer, in fp64, on the numbers that it writes beside the results; test_trl_losses.py gives the
same numbers to ours. No model is run: logits are given.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import torch
import trl
from torch import Tensor
from trl import GRPOTrainer
from trl.rewards import get_soft_overlong_punishment

FILE = Path(__file__).parent / "golden" / "trl_losses.json"
LENGTHS = [7, 3, 5, 1, 6, 4]
VOCAB, MAX_TOKENS = 11, 9

CASES: dict[str, dict[str, Any]] = {
    "r1": {"loss_type": "grpo"},
    "token": {"loss_type": "dapo"},
    "clip_higher": {"loss_type": "dapo", "epsilon_high": 0.28},
    "bnpo": {"loss_type": "bnpo", "epsilon_high": 0.28},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.05, "epsilon_high": 0.08},
    "gspo_per_token": {"loss_type": "dapo", "importance_sampling_level": "sequence"},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.3},
    "cispo_sequence": {"loss_type": "cispo", "epsilon_high": 1.1, "importance_sampling_level": "sequence"},
    "tis": {"loss_type": "dapo", "tis_cap": 1.15},
    "tis_gspo": {"loss_type": "grpo", "tis_cap": 1.15, "importance_sampling_level": "sequence"},
    "kl": {"loss_type": "grpo", "beta": 0.3},
    "kl_dr_grpo": {"loss_type": "dr_grpo", "beta": 0.3},
    "kl_unbiased": {"loss_type": "grpo", "beta": 0.3, "use_bias_correction_kl": True},
    "off_policy": {"loss_type": "grpo", "off_policy_mask_threshold": 0.02},
    "v32": {"loss_type": "grpo", "beta": 0.3, "use_bias_correction_kl": True, "off_policy_mask_threshold": 0.02},
    "mask_truncated": {"loss_type": "dapo", "truncated": [0, 4]},
}


def numbers() -> dict[str, Tensor]:
    """Ratios on both sides of every clip, of advantages of both signs."""
    generator = torch.Generator().manual_seed(7)
    rows, width = len(LENGTHS), max(LENGTHS)

    def noise(scale: float) -> Tensor:
        return scale * torch.randn(rows, width, generator=generator, dtype=torch.float64)

    logits = 1.5 * torch.randn(rows, width, VOCAB, generator=generator, dtype=torch.float64)
    targets = torch.randint(VOCAB, (rows, width), generator=generator)
    now = logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    shift = torch.tensor([0.1, -0.12, 0.15, 0.2, -0.1, 0.3], dtype=torch.float64).unsqueeze(1)
    old = now + noise(0.25) + shift
    out = {
        "logits": logits,
        "targets": targets,
        "advantages": torch.tensor([1.0, -0.5, 0.75, -1.25, 0.4, -2.0], dtype=torch.float64),
        "old_logprobs": old,
        "sampled_logprobs": old + noise(0.2),
        "reference_logprobs": now + noise(0.5),
    }
    # Whoever reads them has fp32: both sides start from the same values.
    return {name: tensor if name == "targets" else tensor.float().double() for name, tensor in out.items()}


def trainer(case: dict[str, Any], logits: Tensor, targets: Tensor) -> Any:
    """What the loss reads of a trainer: its settings, and log-probabilities that are of these logits."""
    unchanged = SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x)

    def logprobs(*_: Any, **__: Any) -> tuple[Tensor, Tensor, None]:
        every = logits.log_softmax(-1)
        return every.gather(-1, targets.unsqueeze(-1)).squeeze(-1), -(every.exp() * every).sum(-1), None

    return SimpleNamespace(
        _get_per_token_logps_and_entropies=logprobs,
        get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
        accelerator=unchanged,
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(
            use_bias_correction_kl=case.get("use_bias_correction_kl", False), delta=None, steps_per_generation=1
        ),
        _metrics={"train": defaultdict(list)},
        _entropy_bonus_enabled=False,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        current_gradient_accumulation_steps=1,
        max_completion_length=MAX_TOKENS,
        loss_type=case["loss_type"],
        importance_sampling_level=case.get("importance_sampling_level", "token"),
        epsilon_low=case.get("epsilon_low", 0.2),
        epsilon_high=case.get("epsilon_high", 0.2),
        beta=case.get("beta", 0.0),
        off_policy_mask_threshold=case.get("off_policy_mask_threshold"),
        use_vllm="tis_cap" in case,
        vllm_importance_sampling_correction="tis_cap" in case,
    )


def trl_loss(case: dict[str, Any], given: dict[str, Tensor]) -> dict[str, Any]:
    """The loss and its gradient for the logits."""
    logits = given["logits"].clone().requires_grad_()
    mask = torch.tensor([[float(i < n) for i in range(max(LENGTHS))] for n in LENGTHS], dtype=torch.float64)
    mask[case.get("truncated", [])] = 0.0  # as the trainer does it where mask_truncated_completions asks for it
    tis = "tis_cap" in case
    inputs = {
        "prompt_ids": torch.zeros(len(LENGTHS), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(LENGTHS), 1, dtype=torch.long),
        "completion_ids": given["targets"],
        "completion_mask": mask,
        "advantages": given["advantages"],
        "num_items_in_batch": mask.sum(),
        "old_per_token_logps": given["old_logprobs" if tis else "sampled_logprobs"],
        "sampling_per_token_logps": given["sampled_logprobs"],
        "ref_per_token_logps": given["reference_logprobs"],
    }
    if tis:  # token_truncate, as the trainer computes it before the loss
        difference = (given["old_logprobs"] - given["sampled_logprobs"]) * mask
        inputs["importance_sampling_ratio"] = difference.exp().clamp(max=case["tis_cap"])
    stub = trainer(case, logits, given["targets"])
    loss = MethodType(GRPOTrainer._compute_loss, stub)(None, inputs)
    loss.backward()
    assert logits.grad is not None
    return {"settings": case, "loss": float(loss.detach()), "gradient": brief(logits.grad)}


def brief(tensor: Tensor) -> Any:
    """Nested lists of nine digits, which say an fp32 exactly."""
    if tensor.dim():
        return [brief(part) for part in tensor]
    return float(f"{tensor.item():.9g}") if tensor.is_floating_point() else tensor.item()


def main() -> None:
    given = numbers()
    lengths = list(range(1, MAX_TOKENS + 1))
    punish = get_soft_overlong_punishment(MAX_TOKENS, 4)
    golden = {
        "trl": trl.__version__,
        "max_tokens": MAX_TOKENS,
        "lengths": LENGTHS,
        "numbers": {name: brief(tensor) for name, tensor in given.items()},
        "overlong": {"buffer": 4, "penalty": punish(completion_ids=[[0] * n for n in lengths])},
        "cases": {name: trl_loss(case, given) for name, case in CASES.items()},
    }
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(golden) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
