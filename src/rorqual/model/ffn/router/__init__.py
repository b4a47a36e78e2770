"""Router kinds. Each module holds one; importing this package makes them known."""

from rorqual.model.ffn.router.base import Router, RouterConfig
from rorqual.model.ffn.router.grouped_topk import GroupedTopK, GroupedTopKConfig

__all__ = ["GroupedTopK", "GroupedTopKConfig", "Router", "RouterConfig"]
