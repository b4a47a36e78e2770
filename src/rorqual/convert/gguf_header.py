"""An architecture's keys in the header of a GGUF file, each to be taken once: what is left over is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rorqual.core.errors import CheckpointError

_MISSING = object()
_WITHOUT_EFFECT = ("vocab_size", "rope.scaling.finetuned", "attention.causal", "nextn_predict_layers")


class HeaderKeys:
    """The architecture's keys, each to be taken once."""

    def __init__(self, keys: Mapping[str, Any], architecture: str, where: str) -> None:
        self.prefix, self.where = f"{architecture}.", where
        self._left = {name[len(self.prefix) :]: v for name, v in keys.items() if name.startswith(self.prefix)}

    def take(self, name: str, default: Any = _MISSING) -> Any:
        """The value; without a default a missing key is an error."""
        value = self._left.pop(name, default)
        if value is _MISSING:
            raise CheckpointError(
                f"key '{self.prefix}{name}' is missing",
                where=self.where,
                remedy="Take a file made by a newer llama.cpp.",
            )
        return _shortest(value) if isinstance(value, float) else value

    def integer(self, name: str, default: Any = _MISSING) -> int:
        """A count."""
        value = self.take(name, default)
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]  # some writers give one for each layer
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 31:
            raise CheckpointError(f"key '{self.prefix}{name}' is {value!r}, not a count", where=self.where)
        return value

    def expect(self, name: str, *allowed: Any) -> None:
        """Refuse a value that is none of `allowed`; absent is the first of them."""
        value = self.take(name, allowed[0])
        if value not in allowed:
            raise CheckpointError(
                f"key '{self.prefix}{name}' is {value!r}, but only {' or '.join(map(repr, allowed))} is read",
                where=self.where,
            )

    def end(self) -> None:
        """Refuse whatever was not taken."""
        left = [name for name in self._left if name not in _WITHOUT_EFFECT]
        if left:
            raise CheckpointError(
                f"keys that are not known: {', '.join(self.prefix + name for name in left[:12])}",
                where=self.where,
                remedy="They could change what the model computes, so the file is not read.",
            )


def _shortest(value: float) -> float:
    """Headers hold 32 bits: 1e-5 is written 9.99999974e-6. The shortest decimal that means the same is what was meant."""
    return float(str(np.float32(value)))
