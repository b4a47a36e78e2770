"""Feed-forward kinds. Each module holds one; importing this package makes them known."""

from rorqual.model.ffn.base import FFN, FFNConfig
from rorqual.model.ffn.dense import DenseConfig
from rorqual.model.ffn.moe import MoE, MoEConfig
from rorqual.model.ffn.older import older_names

__all__ = ["FFN", "DenseConfig", "FFNConfig", "MoE", "MoEConfig", "older_names"]
