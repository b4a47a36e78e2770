"""transformers' model of a model of ours, by the family's own `config.json` and names."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from rorqual.model import Decoder
from rorqual.model.load.find import CheckpointFamily, family_for


def fused(hub: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published tensors in the form transformers holds in memory: the experts of a layer in two tensors."""
    out = {name: tensor for name, tensor in hub.items() if ".mlp.experts." not in name}
    for prefix in {name.split(".experts.")[0] for name in hub if ".mlp.experts." in name}:
        count = sum(name.startswith(f"{prefix}.experts.") and name.endswith("down_proj.weight") for name in hub)
        rows = [{p: hub[f"{prefix}.experts.{e}.{p}_proj.weight"] for p in ("gate", "up", "down")} for e in range(count)]
        out[f"{prefix}.experts.gate_up_proj"] = torch.stack([torch.cat((row["gate"], row["up"])) for row in rows])
        out[f"{prefix}.experts.down_proj"] = torch.stack([row["down"] for row in rows])
    return out


def their_model(model: Decoder) -> tuple[CheckpointFamily, Any]:
    """The family that was found for our model, and transformers' model with the same weights."""
    family = family_for(model.config)
    data = json.loads(json.dumps(family.config_to_hf(model.config)))
    config = AutoConfig.for_model(data.pop("model_type"), **data)
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    theirs.load_state_dict(fused(family.name_map(model.config).to_hf(model.state_dict())), strict=True)
    return family, theirs.float()


def relative(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, in units of the largest value."""
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())
