"""The block kinds, one module per kind. Importing `rorqual.model.block` registers all block kinds."""

from rorqual.model.block.block_kind import Block, BlockConfig, ResidualBoundary
from rorqual.model.block.pre_norm import PreNormConfig

__all__ = ["Block", "BlockConfig", "PreNormConfig", "ResidualBoundary"]
