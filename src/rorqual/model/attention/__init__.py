"""The attention kinds, one module per kind. Importing `rorqual.model.attention` registers all attention kinds."""

from rorqual.model.attention.attention import Attention, AttentionConfig, AttentionContext, RMSNorm
from rorqual.model.attention.block_selection import BlockSelectionConfig
from rorqual.model.attention.cache import CacheLayout, CachePart, LayerCache, SelectedRows
from rorqual.model.attention.dsa import DSA, DSAConfig
from rorqual.model.attention.gqa import GQAConfig
from rorqual.model.attention.mla import MLA, MLAConfig, SelectingMLA
from rorqual.model.attention.nsa import NSA, NSAConfig
from rorqual.model.attention.window import SlidingWindowConfig

__all__ = [
    "DSA",
    "MLA",
    "NSA",
    "Attention",
    "AttentionConfig",
    "AttentionContext",
    "BlockSelectionConfig",
    "CacheLayout",
    "CachePart",
    "DSAConfig",
    "GQAConfig",
    "LayerCache",
    "MLAConfig",
    "NSAConfig",
    "RMSNorm",
    "SelectedRows",
    "SelectingMLA",
    "SlidingWindowConfig",
]
