"""Block kinds. Each module defines one; importing this package registers them."""

from rorqual.model.block.base import Block, BlockConfig, StreamEnd
from rorqual.model.block.pre_norm import PreNormConfig

__all__ = ["Block", "BlockConfig", "PreNormConfig", "StreamEnd"]
