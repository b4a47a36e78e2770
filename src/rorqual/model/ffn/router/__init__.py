"""The router kinds, one module per kind. Importing `rorqual.model.ffn.router` registers all router kinds."""

from rorqual.model.ffn.router.grouped_topk import GroupedTopK, GroupedTopKConfig
from rorqual.model.ffn.router.router import Router, RouterConfig
from rorqual.model.ffn.router.zero_experts import ZeroExperts, ZeroExpertsConfig

__all__ = ["GroupedTopK", "GroupedTopKConfig", "Router", "RouterConfig", "ZeroExperts", "ZeroExpertsConfig"]
