"""The block kinds, one module per kind. Importing this package registers all kinds."""

from rorqual.model.block.block_kind import Block, BlockConfig, ResidualBoundary
from rorqual.model.block.pre_norm import PreNormConfig

__all__ = ["Block", "BlockConfig", "PreNormConfig", "ResidualBoundary"]
