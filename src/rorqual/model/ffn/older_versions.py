"""Read configs and tensor names of older Rorqual versions, which stored router fields and tensors directly in the MoE
network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rorqual.model.ffn.router import GroupedTopKConfig

FLAT = GroupedTopKConfig.model_fields.keys() - {"kind"}


def nest_router_fields(data: Any) -> Any:
    """Move the router fields of an older `moe` config under the key `router`. A current `moe` config is returned unchanged."""
    if not isinstance(data, Mapping) or "router" in data:
        return data
    router = {"kind": GroupedTopKConfig.model_fields["kind"].default} | {k: v for k, v in data.items() if k in FLAT}
    return {key: value for key, value in data.items() if key not in FLAT} | {"router": router}


def map_older_names(names: Iterable[str]) -> dict[str, str]:
    """Map tensor names of older Rorqual versions to the current names in `names`, such as `...ffn.gate` to
    `...ffn.router.gate`."""
    current = set(names)
    renamed = {name.replace(".router.", "."): name for name in current if ".router." in name}
    return {older: name for older, name in renamed.items() if older not in current}
