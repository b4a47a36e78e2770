"""Attention kinds. Each module holds one; importing this package makes them known."""

from rorqual.model.attention.base import (
    Attention,
    AttentionConfig,
    AttentionContext,
    CachePart,
    LayerCache,
    RMSNorm,
    check_parts,
)
from rorqual.model.attention.gqa import GQAConfig
from rorqual.model.attention.mla import MLA, MLAConfig

__all__ = [
    "MLA",
    "Attention",
    "AttentionConfig",
    "AttentionContext",
    "CachePart",
    "GQAConfig",
    "LayerCache",
    "MLAConfig",
    "RMSNorm",
    "check_parts",
]
