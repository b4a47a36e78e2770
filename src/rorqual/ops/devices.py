"""Devices that tensors lie on."""

from __future__ import annotations

import torch

from rorqual.core.errors import ConfigError


def check_device(name: str) -> None:
    """Refuse a device that this torch cannot put a tensor on."""
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"no device '{name}' here: {str(error).splitlines()[0]}",
            where="device",
            remedy="Use device=cpu. `rorqual doctor` says what this machine has.",
        ) from None
