"""A LoRA adapter that was trained on another one, as one adapter of the other's base."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from rorqual.model.adapter.files import ADAPTER_FILE, find_base_and_adapters
from rorqual.model.adapter.lora import LoRA


def joined_adapter(checkpoint: Path) -> dict[str, bytes]:
    """Return the contents of the files of one LoRA adapter that equals the adapter `checkpoint` and its base, also an adapter, by file
    name. Both must have the same targets.

    W + s1 B1 A1 + s2 B2 A2 = W + [s1 B1, s2 B2] [A1; A2], so the rank is the sum of the ranks.
    """
    adapters = find_base_and_adapters(checkpoint)[1][-2:]
    tunes = [one.info.tune for one in adapters if isinstance(one.info.tune, LoRA)]
    tensors = [load_file(one.folder / ADAPTER_FILE) for one in adapters]
    joined = {}
    for name in tensors[0]:
        if name.endswith(".lora_A"):
            joined[name] = torch.cat([one[name] for one in tensors])
        else:
            joined[name] = torch.cat([tune.scale * one[name] for tune, one in zip(tunes, tensors, strict=True)], dim=1)
    rank = sum(tune.r for tune in tunes)
    tune = tunes[0].model_copy(update={"r": rank, "alpha": float(rank), "use_rslora": False})
    return adapters[0].info.model_copy(update={"tune": tune}).file_contents(joined)
