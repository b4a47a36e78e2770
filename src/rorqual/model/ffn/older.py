"""Read what runs wrote before a router was a kind: its fields stood among those of its network, and so did the names of its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rorqual.model.ffn.router import GroupedTopKConfig

FLAT = GroupedTopKConfig.model_fields.keys() - {"kind"}


def nested(data: Any) -> Any:
    """The fields of a mixture of experts with those of its router under `router`."""
    if not isinstance(data, Mapping) or "router" in data:
        return data
    router = {"kind": GroupedTopKConfig.model_fields["kind"].default} | {k: v for k, v in data.items() if k in FLAT}
    return {key: value for key, value in data.items() if key not in FLAT} | {"router": router}


def older_names(names: Iterable[str]) -> dict[str, str]:
    """Older name -> today's, of those tensors among `names` that had another: `...ffn.gate` is `...ffn.router.gate` now."""
    today = set(names)
    found = {name.replace(".router.", "."): name for name in today if ".router." in name}
    return {older: name for older, name in found.items() if older not in today}
