"""Which weights a model has: what was cached of others must never serve."""

from __future__ import annotations

import secrets
from hashlib import blake2b

import torch

from rorqual.engine.prefix import fingerprint_of
from rorqual.model import Decoder

ROUNDING = 2
"""To be raised by whoever changes in what order the engine's operations add or multiply: a folder filled before is then a miss."""


def fingerprint(model: Decoder, *, stable: bool, arithmetic: str = "") -> bytes:
    """What names the weights and how they are computed with: of their contents where it must hold over a restart, else a number nobody had
    before. What another machine or another setting rounds in another way must not be found in a folder."""
    if not stable:
        return secrets.token_bytes(32)
    kind = str(model.embed_tokens.weight.dtype)
    return fingerprint_of(
        {
            "weights": digest(model),
            "dtype": kind,
            "torch": torch.__version__,
            "processor": torch.backends.cpu.get_cpu_capability(),
            "device": model.embed_tokens.weight.device.type,
            "arithmetic": f"{ROUNDING} {arithmetic}",
        }
    )


def version_of(model: Decoder) -> int:
    """A number that grows whenever a weight is changed in place."""
    return sum(tensor._version for tensor in (*model.parameters(), *model.buffers()))


def digest(model: Decoder) -> str:
    """Of all weights and buffers, by name: 64 hexadecimal digits."""
    found = blake2b(digest_size=32)
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()
