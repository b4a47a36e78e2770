"""Block kinds. Each module holds one; importing this package makes them known."""

from rorqual.model.block.base import Block, BlockConfig, StreamEnd
from rorqual.model.block.pre_norm import PreNormConfig

__all__ = ["Block", "BlockConfig", "PreNormConfig", "StreamEnd"]
