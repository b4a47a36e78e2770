"""The attention kinds, one module per kind. Importing this package registers all kinds."""

from rorqual.model.attention.base import (
    Attention,
    AttentionConfig,
    AttentionContext,
    CacheLayout,
    CachePart,
    LayerCache,
    RMSNorm,
    Selection,
)
from rorqual.model.attention.gqa import GQAConfig
from rorqual.model.attention.mla import MLA, MLAConfig

__all__ = [
    "MLA",
    "Attention",
    "AttentionConfig",
    "AttentionContext",
    "CacheLayout",
    "CachePart",
    "GQAConfig",
    "LayerCache",
    "MLAConfig",
    "RMSNorm",
    "Selection",
]
