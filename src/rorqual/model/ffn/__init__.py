"""The feed-forward kinds, one module per kind. Importing `rorqual.model.ffn` registers all feed-forward kinds."""

from rorqual.model.ffn.dense import DenseConfig
from rorqual.model.ffn.feed_forward import FFN, FFNConfig
from rorqual.model.ffn.moe import MoE, MoEConfig
from rorqual.model.ffn.older_versions import map_older_names

__all__ = ["FFN", "DenseConfig", "FFNConfig", "MoE", "MoEConfig", "map_older_names"]
