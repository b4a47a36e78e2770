"""Read an architecture's keys from a GGUF header. Each key is taken once, and leftover keys are an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rorqual.core.errors import CheckpointError

_MISSING = object()
_WITHOUT_EFFECT = ("vocab_size", "rope.scaling.finetuned", "attention.causal", "nextn_predict_layers")


class HeaderKeys:
    """The architecture's keys. Each can be taken once."""

    def __init__(self, keys: Mapping[str, Any], architecture: str, where: str) -> None:
        self.prefix, self.where = f"{architecture}.", where
        self._left = {name[len(self.prefix) :]: v for name, v in keys.items() if name.startswith(self.prefix)}

    def take(self, name: str, default: Any = _MISSING) -> Any:
        """Take the value of a key. Raises CheckpointError for a missing key without a default."""
        value = self._left.pop(name, default)
        if value is _MISSING:
            raise CheckpointError(
                f"key '{self.prefix}{name}' is missing",
                where=self.where,
                remedy="Use a file made by a newer llama.cpp.",
            )
        return _shortest(value) if isinstance(value, float) else value

    def integer(self, name: str, default: Any = _MISSING) -> int:
        """Take a non-negative integer below 2**31. Raises CheckpointError for any other value."""
        value = self.take(name, default)
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]  # some writers store one value per layer
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 31:
            raise CheckpointError(f"key '{self.prefix}{name}' is {value!r}, not a count", where=self.where)
        return value

    def expect(self, name: str, *allowed: Any) -> None:
        """Raise CheckpointError if the value is not in `allowed`. A missing key counts as the first one."""
        value = self.take(name, allowed[0])
        if value not in allowed:
            raise CheckpointError(
                f"key '{self.prefix}{name}' is {value!r}, but only {' or '.join(map(repr, allowed))} is supported",
                where=self.where,
            )

    def end(self) -> None:
        """Raise CheckpointError if a key that may matter was not taken."""
        left = [name for name in self._left if name not in _WITHOUT_EFFECT]
        if left:
            raise CheckpointError(
                f"unknown keys: {', '.join(self.prefix + name for name in left[:12])}",
                where=self.where,
                remedy="The file cannot be imported, because these keys could change what the model computes.",
            )


def _shortest(value: float) -> float:
    """Return the shortest decimal with the same fp32 value, since headers store 1e-5 as 9.99999974e-6."""
    return float(str(np.float32(value)))
