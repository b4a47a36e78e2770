"""Digests of what the processes of one training must have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

import rorqual


@cache
def code_digest() -> str:
    """Return the SHA-256 of this package's Python files and torch's version, as of the first call."""
    digest = hashlib.sha256(torch.__version__.encode())
    for path in sorted(Path(rorqual.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def tensors_digest(tensors: Iterable[Tensor]) -> str:
    """Return the SHA-256 of the tensors' bytes."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
