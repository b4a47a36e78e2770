"""Check that a torch device is available."""

from __future__ import annotations

import torch

from rorqual.core.errors import ConfigError


def check_device(name: str) -> None:
    """Raise ConfigError if torch cannot create a tensor on the device called `name`."""
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"device '{name}' is not available: {str(error).splitlines()[0]}",
            where="device",
            remedy="Use device=cpu. `rorqual doctor` lists the devices of this machine.",
        ) from None
