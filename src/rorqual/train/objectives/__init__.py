"""The training objectives, one module per kind. Importing this package registers all kinds of objectives."""

from rorqual.train.objectives.aux_balance import AuxBalance
from rorqual.train.objectives.balance import SequenceBalance
from rorqual.train.objectives.distil import Distil
from rorqual.train.objectives.dpo import DPO
from rorqual.train.objectives.grpo import GRPO
from rorqual.train.objectives.indexer import IndexerSparse, IndexerWarmup
from rorqual.train.objectives.mtp import MultiToken
from rorqual.train.objectives.next_token import NextToken
from rorqual.train.objectives.objective import LossTerm, Objective

__all__ = [
    "DPO",
    "GRPO",
    "AuxBalance",
    "Distil",
    "IndexerSparse",
    "IndexerWarmup",
    "LossTerm",
    "MultiToken",
    "NextToken",
    "Objective",
    "SequenceBalance",
]
