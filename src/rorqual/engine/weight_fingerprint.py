"""Fingerprints of a model's weights, so that KV-cache blocks computed with other weights are never reused."""

from __future__ import annotations

import platform
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor

from rorqual.engine.kv_cache.block_hash import fingerprint_of
from rorqual.model import Decoder

ROUNDING = 5
"""Version of the engine's floating-point arithmetic. Increment `ROUNDING` when the order of additions or multiplications
changes, so that lookups in old disk caches miss."""


def tensor_versions(model: Decoder) -> list[tuple[int, int]]:
    """Return the address and the version counter of every tensor of the model.

    The version counter grows with every in-place change that torch sees: by an optimizer, `copy_` or `load_state_dict`. The
    version counter ignores writes by fused optimizers, numpy, `tensor.data` and mapped files, and all writes to inference
    tensors.
    """
    tensors = (*model.parameters(), *model.buffers())
    return [(tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version) for tensor in tensors]


def fingerprint(model: Decoder, *, arithmetic: str = "") -> bytes:
    """Return a fingerprint of `model` that is the same in every process.

    The fingerprint covers tensor values, modules with their settings, and everything that affects rounding: torch's version, the
    processor and `arithmetic`.
    """
    plain = (bool, int, float, str)
    modules = [
        (
            name,
            type(module).__qualname__,
            {key: value for key, value in vars(module).items() if isinstance(value, plain)},
        )
        for name, module in model.named_modules()
    ]
    return fingerprint_of(
        {
            "weights": _digest([*model.parameters(), *model.buffers()]),
            "modules": repr(modules),
            "config": model.config.model_dump_json(),
            "torch": torch.__version__,
            "processor": f"{torch.backends.cpu.get_cpu_capability()} {_processor_model()}",
            "layout": repr([kind.cache_spec() for kind in model.config.attentions]),
            "arithmetic": f"{ROUNDING} {arithmetic}",
        }
    )


def _digest(tensors: list[Tensor]) -> str:
    hash_ = blake2b(digest_size=32)
    for tensor in tensors:
        hash_.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        hash_.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy().data)
    return hash_.hexdigest()


def _processor_model() -> str:
    """Return the model name of the processor. Two processors with the same torch CPU capability may round differently
    (docs/explanation/engine.md)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].split("\n")
    except (OSError, UnicodeDecodeError):
        return platform.processor() or platform.machine()
    return " ".join(line for line in lines if line.startswith(("vendor_id", "cpu family", "model", "flags")))
