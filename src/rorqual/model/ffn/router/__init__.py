"""Router kinds. Each module defines one; importing this package registers them."""

from rorqual.model.ffn.router.base import Router, RouterConfig
from rorqual.model.ffn.router.grouped_topk import GroupedTopK, GroupedTopKConfig

__all__ = ["GroupedTopK", "GroupedTopKConfig", "Router", "RouterConfig"]
