"""Compatibility with runs from before routers became a kind, when router fields and tensor names were flat in the network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rorqual.model.ffn.router import GroupedTopKConfig

FLAT = GroupedTopKConfig.model_fields.keys() - {"kind"}


def nested(data: Any) -> Any:
    """Move the flat router fields of a mixture of experts under `router`."""
    if not isinstance(data, Mapping) or "router" in data:
        return data
    router = {"kind": GroupedTopKConfig.model_fields["kind"].default} | {k: v for k, v in data.items() if k in FLAT}
    return {key: value for key, value in data.items() if key not in FLAT} | {"router": router}


def older_names(names: Iterable[str]) -> dict[str, str]:
    """Map the older name of each renamed tensor in `names` to its current name, such as `...ffn.gate` to `...ffn.router.gate`."""
    today = set(names)
    found = {name.replace(".router.", "."): name for name in today if ".router." in name}
    return {older: name for older, name in found.items() if older not in today}
