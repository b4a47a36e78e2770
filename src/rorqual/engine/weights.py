"""Which weights a model has: what was cached of others must never serve."""

from __future__ import annotations

import platform
import secrets
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor, nn

from rorqual.engine.prefix import fingerprint_of
from rorqual.model import Decoder

ROUNDING = 3
"""To be raised by whoever changes in what order the engine's operations add or multiply: a folder filled before is then a miss."""


def fingerprint(model: Decoder, *, stable: bool, arithmetic: str = "") -> bytes:
    """What names the weights and what is computed of them: of their contents where it must hold over a restart, else a number nobody had
    before. What another machine or another setting rounds in another way, or another configuration of the same weights (a base of
    RoPE, a scale of the router), must not be found in a folder."""
    if not stable:
        return secrets.token_bytes(32)
    kind = str(model.embed_tokens.weight.dtype)
    return fingerprint_of(
        {
            "weights": digest(model),
            "config": model.config.model_dump_json(),
            "scales": repr([(name, scale) for name, module in model.named_modules() if (scale := _scale(module))]),
            "dtype": kind,
            "torch": torch.__version__,
            "processor": f"{torch.backends.cpu.get_cpu_capability()} {_make()}",
            "device": model.embed_tokens.weight.device.type,
            "arithmetic": f"{ROUNDING} {arithmetic}",
        }
    )


def _make() -> str:
    """Of the processor: two makes of one capability round in two ways (docs/engine.md)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].split("\n")
    except (OSError, UnicodeDecodeError):
        return platform.processor() or platform.machine()
    return " ".join(line for line in lines if line.startswith(("vendor_id", "cpu family", "model", "flags")))


def _scale(module: nn.Module) -> float | None:
    """What an adapter's tensors do not say: how much of them is added."""
    scale = getattr(module, "scale", None)
    return scale if isinstance(scale, float) else None


def version_of(model: Decoder) -> tuple[int, int]:
    """What is another whenever a weight was changed in place, or lies elsewhere. A write through `tensor.data` is not seen."""
    tensors: list[Tensor] = []
    for module in model.modules():
        tensors += [
            tensor for tensor in (*module._parameters.values(), *module._buffers.values()) if tensor is not None
        ]
        if (
            parts := getattr(module, "parts", None)
        ) is not None:  # `HoldsParts`: slices that count their changes themselves
            tensors += [part for _, part in parts()]
    return sum(0 if tensor.is_inference() else tensor._version for tensor in tensors), hash(
        tuple(tensor.data_ptr() for tensor in tensors)
    )


def digest(model: Decoder) -> str:
    """Of all weights and buffers, by name: 64 hexadecimal digits."""
    found = blake2b(digest_size=32)
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()
