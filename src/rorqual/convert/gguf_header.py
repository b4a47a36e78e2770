"""A reader for the architecture keys of a GGUF header. Unknown keys raise an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rorqual.core.errors import CheckpointError

_MISSING = object()
_IGNORED = ("vocab_size", "rope.scaling.finetuned", "attention.causal", "nextn_predict_layers")


class HeaderKeys:
    """The keys of a GGUF header that begin with the name of the architecture. Each key can be taken once."""

    def __init__(self, keys: Mapping[str, Any], architecture: str, where: str) -> None:
        self.prefix, self.where = f"{architecture}.", where
        self._remaining = {name[len(self.prefix) :]: v for name, v in keys.items() if name.startswith(self.prefix)}

    def take(self, name: str, default: Any = _MISSING) -> Any:
        """Remove a key and return its value. Raises CheckpointError if the key is missing and has no default."""
        value = self._remaining.pop(name, default)
        if value is _MISSING:
            raise CheckpointError(
                f"key '{self.prefix}{name}' is missing",
                where=self.where,
                remedy="Use a file that a newer llama.cpp wrote.",
            )
        return _shortest(value) if isinstance(value, float) else value

    def integer(self, name: str, default: Any = _MISSING) -> int:
        """Remove a key and return its value. Raises CheckpointError unless the value is an integer from 0 to 2**31 - 1."""
        value = self.take(name, default)
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]  # some writers store one value per layer
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 31:
            raise CheckpointError(
                f"key '{self.prefix}{name}' is {value!r}, not an integer from 0 to 2**31 - 1",
                where=self.where,
                remedy="Download the file again, or use another file.",
            )
        return value

    def expect(self, name: str, *allowed: Any) -> None:
        """Remove a key. Raises CheckpointError if its value is not in `allowed`. A missing key counts as the first allowed value."""
        value = self.take(name, allowed[0])
        if value not in allowed:
            raise CheckpointError(
                f"key '{self.prefix}{name}' is {value!r}, but only {' or '.join(map(repr, allowed))} is supported",
                where=self.where,
            )

    def end(self) -> None:
        """Raise CheckpointError if keys remain that could change what the model computes."""
        unknown = [name for name in self._remaining if name not in _IGNORED]
        if unknown:
            raise CheckpointError(
                f"unknown keys: {', '.join(self.prefix + name for name in unknown[:12])}",
                where=self.where,
                remedy="The file cannot be imported, because these keys could change what the model computes.",
            )


def _shortest(value: float) -> float:
    """Return the shortest decimal number with the same fp32 value. A header stores 1e-5 as 9.99999974e-6, for example."""
    return float(str(np.float32(value)))
