"""The fingerprint of a run's checkpoint. This module does not import torch, because the server imports this module."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rorqual.core.records import RunDir
from rorqual.data.chat.find import TEMPLATE_FILE

NO_WEIGHTS = frozenset({"optim.safetensors", "state.json"})
"""Checkpoint files that only training reads. These files contain no model weights, so the fingerprint ignores these files."""


def fingerprint(run: RunDir, checkpoint: Path) -> str:
    """Return a SHA-256 of a checkpoint's weights and of the run's settings, tokenizer and optional chat template."""
    digest = hashlib.sha256()
    weights = (file for file in sorted(checkpoint.rglob("*")) if file.name not in NO_WEIGHTS)
    for file in (run.config_file, run.tokenizer_file, run.path / TEMPLATE_FILE, *weights):
        if file.is_file():
            digest.update(f"{file.relative_to(run.path)} {file.stat().st_size}\n".encode())
            with open(file, "rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
